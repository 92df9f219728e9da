"""With a fixed batch, the same rows and the same hyperparameters, 50 steps equal transformers' own Trainer."""

import numpy as np
import torch
from conftest import ROOT, TINY, records
from safetensors.numpy import load_file
from transformers import Trainer, TrainingArguments

from hfbsz.data.batches import Windows
from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.train.model import build_model
from hfbsz.train.tasks.language_modeling import IGNORED, LanguageModeling

SAME = ["schedule.shape=constant", "schedule.warmup=0seq", "batch.micro_max=4", "optim.lr=1e-3", "log.every=1steps"]


def trainer_losses(recipe, folder):
    """The Trainer on the rows that our plan takes, one after another, in 2 × 4 sequences."""
    data = prepare(recipe.data, {}, lambda *_: None)
    tokenizer = load_tokenizer(data.tokenizer_path)
    plan = resolve(recipe, 1, data.facts)
    windows = Windows(data.train, plan, LanguageModeling(tokenizer.eos_token_id).collate, 0, 1)
    numbers = windows.row_numbers(0, 50 * 8)
    rows = [{"input_ids": data.train[int(number)]} for number in numbers]

    def collate(features):
        longest = max(len(feature["input_ids"]) for feature in features)
        inputs = torch.full((len(features), longest), tokenizer.eos_token_id)
        labels = torch.full((len(features), longest), IGNORED)
        for place, feature in enumerate(features):
            tokens = torch.tensor(feature["input_ids"], dtype=torch.int64)
            inputs[place, : len(tokens)] = labels[place, : len(tokens)] = tokens
        return {"input_ids": inputs, "labels": labels}

    optim = recipe.optim
    arguments = TrainingArguments(
        output_dir=str(folder), train_sampling_strategy="sequential", logging_steps=1, logging_nan_inf_filter=False,
        optim="adamw_torch_fused", lr_scheduler_type="constant", learning_rate=optim.lr, adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1], adam_epsilon=optim.eps, weight_decay=optim.weight_decay, max_grad_norm=optim.clip,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=50, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    model = build_model(recipe.model, tokenizer, recipe.seed, recipe.data.sequence_length)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


def test_fifty_steps_equal_the_trainers(hfbsz, ragged, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    words = [TINY, f"data.files={ragged}", *SAME]
    ended = hfbsz("pretrain.py", *words, f"output_dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    ours = [record["train/loss"] for record in records(tmp_path / "run", "step")]
    theirs, model = trainer_losses(load(words).recipe, tmp_path / "trainer")
    assert len(ours) == len(theirs) == 50
    assert np.allclose(ours, theirs, rtol=1e-5, atol=0)  # float32; measured: 1.5e-7
    weights = load_file(tmp_path / "run" / "model.safetensors")
    state = {name: weight for name, weight in model.state_dict().items() if name in weights}
    assert state and max(np.abs(weights[name] - weight.numpy()).max() for name, weight in state.items()) < 1e-3
