"""Options of other tools (the Trainer, TRL, axolotl, litgpt, nanoGPT, torchtitan), and what to write instead."""

import json
from collections.abc import Mapping

from hfbsz.recipe.foreign import (
    Answer,
    Option,
    accumulation,
    betas,
    clip,
    count,
    dataset,
    epochs,
    floor,
    hub_field,
    intervals,
    no_field,
    optimizer,
    per_device,
    percent,
    precision,
    processes,
    renamed,
    resume,
    shape,
    sharded,
    share,
    split,
    switch,
    targets,
    tracker,
    unsupported,
    weights,
    write,
)


def answer(key: str, value: object, words: Mapping[str, object] | None = None) -> str | None:
    """What to write instead of `key=value`, an option of another tool: the end of a line that starts with the option.

    `words` are all words of the command line, since the answer may depend on several of them (a batch per device and
    accumulation). None if `key` is not an option of a known tool.
    """
    plain = key.strip("-").replace("-", "_").lower()
    entry = TABLE.get(plain) or TABLE.get(plain.rpartition(".")[2])
    if entry is None:
        return None
    options = {name.rpartition(".")[2].replace("-", "_"): _text(other) for name, other in (words or {}).items()}
    return entry(Option(_text(value), options))


def is_foreign(key: str) -> bool:
    """Whether a name is an option of another, known tool."""
    return answer(key, "") is not None


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _repository(option: Option) -> str:
    """The word for the repository that the Trainer's options name."""
    return f"hub.id={option.options.get('hub_model_id') or 'OWNER/NAME'}"


_TOKEN = unsupported("a token is never written to a recipe: hf auth login, or the environment variable HF_TOKEN")
_QUANTIZED = unsupported("quantized weights are not supported; model.lora={} trains few weights")
_LOADING = unsupported("rows are memory-mapped, no loader processes are needed: leave it out")
_ANSWERS = unsupported("task=instruction trains on the answers only; with data.answers=last on the last one only")
_REFERENCE = unsupported("task=preference: the initial model is the reference; its log-probabilities are cached")
_NOTHING = unsupported("it is always on or never needed: leave it out")

_ENTRIES: dict[str, Answer] = {
    "lr learning_rate max_lr peak_lr base_lr": renamed("optim.lr", "1e-3"),
    "epochs num_train_epochs num_epochs max_epochs n_epochs train_epochs": epochs,
    "max_steps max_iters num_steps num_iterations n_steps total_steps train_steps training.steps "
    "lr_decay_iters": count("duration", "steps", "1000steps"),
    "max_tokens train_tokens": count("duration", "tok", "1Mtok"),
    "per_device_train_batch_size per_gpu_train_batch_size train_batch_size batch_size micro_batch_size "
    "device_batch_size local_batch_size": per_device,
    "per_device_eval_batch_size eval_batch_size eval.batch_size": renamed("eval.micro_batch", "8"),
    "gradient_accumulation_steps accumulation grad_accum_steps accumulate_grad_batches "
    "gradient_accumulation": accumulation,
    "total_batch_size global_batch_size effective_batch_size": count("batch.size", "seq", "64seq"),
    "warmup_ratio": percent("schedule.warmup", "10%", 100),
    "warmup_steps warmup_iters num_warmup_steps lr_warmup_steps "
    "warmup": count("schedule.warmup", "steps", "5%", share=True),
    "weight_decay wd": renamed("optim.weight_decay", "0.1"),
    "max_grad_norm grad_clip gradient_clip_val max_norm clip_grad_norm gradient_clipping": clip,
    "adam_beta1 adam_beta2 beta1 beta2 betas": betas,
    "adam_epsilon adam_eps epsilon eps": renamed("optim.eps", "1e-8"),
    "lr_scheduler_type lr_scheduler scheduler lr_schedule decay_type": shape,
    "min_lr lr_min min_learning_rate": floor,
    "optim optimizer optimizer_name optimizer_type": optimizer,
    "out out_dir output output_directory save_dir checkpoint_dir outdir dump_folder logging_dir "
    "run_dir": renamed("output_dir", "runs/NAME"),
    "model_name_or_path model_name model_path base_model pretrained pretrained_model init_from model_id "
    "model.name": weights,
    "model_type": lambda option: write(f"model.shape.model_type={option.value or 'llama'}"),
    "tokenizer_name tokenizer_name_or_path tokenizer tokenizer_path": renamed("data.tokenizer", "FOLDER"),
    "dataset dataset_name datasets dataset_path data_path data_dir train_data data.path data.name": dataset,
    "dataset_config dataset_config_name": hub_field("data.hub_config", "NAME"),
    "dataset_split dataset_train_split train_split": hub_field("data.split", "train"),
    "eval_split dataset_test_split": hub_field("data.validation_split", "test"),
    "validation_split": split,
    "dataset_text_field text_column text_field text_column_name text_key": renamed("data.text", "text"),
    "label_column label_column_name label_field label_key": renamed("data.label", "label"),
    "train_file train_files training_file": renamed("data.files", "train.jsonl"),
    "validation_file eval_file val_file valid_file dev_file": renamed("data.validation_files", "validation.jsonl"),
    "test_file": renamed("eval.sets.test", "test.jsonl"),
    "validation_split_percentage": percent("data.validation", "5%", 1),
    "val_set_size val_size test_size eval_size": share,
    "max_length max_seq_length max_seq_len block_size context_length seq_len sequence_len seq_length max_source_length "
    "cutoff_len context_window": renamed("data.sequence_length", "128"),
    "packing pack sample_packing": switch("data.pack=true", "data.pack=false"),
    "max_train_samples num_train_samples max_samples": renamed("data.rows", "1000"),
    "max_eval_samples eval_iters": renamed("eval.rows", "128"),
    "group_by_length length_grouped": switch("batch.by_length=true", "batch.by_length=false"),
    "streaming": lambda option: write("data.stream=false") if option.is_no
    else hub_field("data.stream", "true")(Option("true", option.options)),
    "bf16 bf16_full_eval": switch("precision=bf16", "precision=fp32"),
    "fp16 fp16_full_eval half": lambda option: no_field("precision=auto is the default") if option.is_no
    else precision(Option("fp16", {})),
    "fp32": switch("precision=fp32", "precision=auto"),
    "mixed_precision torch_dtype dtype amp": precision,
    "tf32 allow_tf32": unsupported("matrix products use the precision of the recipe; precision=bf16 is faster"),
    "gradient_checkpointing activation_checkpointing "
    "activation_checkpoint": switch("model.activation_checkpointing=true", "model.activation_checkpointing=false"),
    "eval_steps eval_interval val_check_interval evaluate_every": count("eval.every", "steps", "10%", share=True),
    "save_steps save_interval checkpoint_interval save_every": count("checkpoint.every", "steps", "25%", share=True),
    "logging_steps log_interval log_freq log_every "
    "log_every_n_steps": count("log.every", "steps", "5steps", share=True),
    "eval_strategy evaluation_strategy": intervals("eval.every"),
    "save_strategy": intervals("checkpoint.every"),
    "logging_strategy": intervals("log.every"),
    "save_total_limit": renamed("checkpoint.keep", "2"),
    "load_best_model_at_end": switch("checkpoint.save=best", "checkpoint.save=last"),
    "early_stopping_patience patience early_stopping": renamed("eval.patience", "3"),
    "metric_for_best_model greater_is_better": unsupported("the best evaluation has the lowest validation loss"),
    "report_to wandb_log use_wandb wandb log_with logger with_tracking": tracker,
    "run_name wandb_run_name exp_name experiment_name": lambda option: write(
        f"output_dir=runs/{option.value or 'NAME'}", why="W&B's name comes from model, data, batch and rate"
    ),
    "wandb_project project_name project": renamed("log.project", "NAME"),
    "wandb_entity entity": renamed("log.entity", "TEAM"),
    "wandb_group group": renamed("log.group", "NAME"),
    "wandb_mode": tracker,
    "resume_from_checkpoint resume_from": resume,
    "overwrite_output_dir": switch("resume=never", "resume=auto"),
    "random_seed random_state data_seed manual_seed rng_seed seed_everything": renamed("seed", "0"),
    "lora_r lora_rank r": renamed("model.lora.rank", "16"),
    "lora_alpha": renamed("model.lora.alpha", "32"),
    "lora_dropout": renamed("model.lora.dropout", "0.05"),
    "target_modules lora_target_modules lora_target": targets,
    "lora_target_linear": lambda option: write("model.lora.targets=all-linear"),
    "lora use_lora peft use_peft adapter": switch("model.lora={}", "model.lora=null"),
    "qlora load_in_4bit load_in_8bit quantization": _QUANTIZED,
    "use_liger_kernel use_liger liger_kernel": switch("model.fused_loss=true", "model.fused_loss=auto"),
    "torch_compile compile use_compile": switch("model.compile=true", "model.compile=false"),
    "attn_implementation": lambda option: write(f"model.attention={'eager' if option.value == 'eager' else 'sdpa'}"),
    "flash_attention flash_attention_2 flash_attn use_flash_attention_2": lambda option: write("model.attention=sdpa"),
    "dataloader_num_workers num_workers num_proc preprocessing_num_workers dataset_num_proc "
    "dataloader_pin_memory": _LOADING,
    "num_threads n_threads": renamed("threads", "4"),
    "ddp devices num_gpus n_gpu n_gpus gpus nproc nproc_per_node num_processes num_nodes nnodes "
    "strategy accelerator": processes,
    "fsdp fsdp_config deepspeed zero_stage": sharded,
    "local_rank": unsupported("the launcher sets it: accelerate launch scripts/…"),
    "device use_cpu no_cuda cuda": unsupported(
        "the launcher sets it; for CPU only, put CUDA_VISIBLE_DEVICES= before the command"
    ),
    "assistant_only_loss completion_only_loss train_on_inputs train_on_prompt": _ANSWERS,
    "beta dpo_beta rl_beta": lambda option: write("task=preference", f"preference.beta={option.value or '0.1'}"),
    "loss_type": lambda option: write(
        "task=preference", f"preference.length_normalized={str(option.value == 'sigmoid_norm').lower()}"
    )
    if option.value in ("", "sigmoid", "sigmoid_norm")
    else no_field("task=preference has TRL's losses sigmoid and sigmoid_norm"),
    "ref_model precompute_ref_log_probs": _REFERENCE,
    "push_to_hub": lambda option: write("hub.id=null" if option.is_no else _repository(option)),
    "hub_model_id repo_id": renamed("hub.id", "OWNER/NAME"),
    "hub_private_repo": switch("hub.private=true", "hub.private=false"),
    "hub_strategy": lambda option: write(_repository(option), *([] if option.value == "end" else ["hub.every=25%"])),
    "hub_token": _TOKEN,
    "trust_remote_code": unsupported("code from the Hub is never executed"),
    "do_train do_eval do_predict remove_unused_columns disable_tqdm log_level": _NOTHING,
    "n_layer n_head n_embd n_positions hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size":
    unsupported("it belongs to model.shape: model.shape.NAME=VALUE, NAME as in the model's transformers config"),
    "config config_file yaml": lambda option: write(f"recipe={option.value or 'FILE.yaml'}"),
}  # fmt: skip
TABLE: Mapping[str, Answer] = {name: entry for names, entry in _ENTRIES.items() for name in names.split()}
