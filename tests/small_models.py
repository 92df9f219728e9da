"""Small models with a tokenizer, saved as their makers would save them."""

import sysconfig
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from hfbsz.data.tokenizer.tokenizer import train_tokenizer

SIZE = 300
_PLAIN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_GROUPED = {**_PLAIN, "num_key_value_heads": 1}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}
SHAPES = {
    "llama": {**_GROUPED, "max_position_embeddings": 256, "tie_word_embeddings": True},
    "gpt2": {**_GPT2, "n_positions": 256},
    "gpt_neox": _PLAIN,
    "bert": _PLAIN,
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "roberta": {**_PLAIN, "max_position_embeddings": 66, "pad_token_id": 1},
    "xlm-roberta": {**_PLAIN, "max_position_embeddings": 34, "pad_token_id": 1},
    "camembert": {**_PLAIN, "max_position_embeddings": 66, "pad_token_id": 1},
    "mpnet": {**_PLAIN, "max_position_embeddings": 130, "pad_token_id": 1},
    "longformer": {**_PLAIN, "max_position_embeddings": 130, "attention_window": [8, 8], "pad_token_id": 1},
    "electra": {**_PLAIN, "embedding_size": 16},
    "deberta-v2": {**_PLAIN, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c"]},
    "albert": {**_PLAIN, "embedding_size": 16},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "modernbert": {**_PLAIN, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    "fnet": _PLAIN,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 64},
    "gptj": {**_GPT2, "rotary_dim": 8, "n_positions": 64},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "gemma2": {**_GROUPED, "head_dim": 16},
    "gemma3_text": {**_GROUPED, "head_dim": 16},
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "phi3": _GROUPED,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "stablelm": _GROUPED,
    "olmo2": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen3_moe": {**_GROUPED, "num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
}  # fmt: skip


def small_tokenizer():
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    return train_tokenizer([text], SIZE)


def small_config(kind: str, **changed):
    return AutoConfig.for_model(kind, **{"vocab_size": SIZE, "pad_token_id": 0, **SHAPES[kind], **changed})


def small_model(
    folder: Path, kind: str = "llama", dtype=torch.float32, labels: int = 0, auto=None, tokenizer=None, **changed
) -> Path:
    """A model of random weights that are not zero anywhere, and its tokenizer, in Hugging Face's form."""
    config = small_config(kind, **changed)
    if labels and "id2label" not in changed:
        config.num_labels = labels
    torch.manual_seed(7)
    auto = auto or (AutoModelForSequenceClassification if labels else AutoModelForCausalLM)
    model = auto.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    model.to(dtype).save_pretrained(folder)
    (tokenizer or small_tokenizer()).save_pretrained(folder)
    return folder


def rows(count: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, SIZE, (count, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Of a few rows, without dropout."""
    was = model.training
    found = model.eval()(**rows()).logits
    model.train(was)
    return found


def same_logits(one, other) -> bool:
    """Whether the logits of two models are equal to rounding: the last layer of one may be computed in another way."""
    return torch.allclose(logits(one), logits(other), rtol=0, atol=1e-6)
