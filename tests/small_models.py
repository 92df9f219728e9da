"""Small models with a tokenizer, saved as their makers would save them."""

import sysconfig
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from hfbsz.data.tokenizer import train_tokenizer

SHAPES = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "max_position_embeddings": 256, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "pad_token_id": 0},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
}  # fmt: skip
SIZE = 300


def small_tokenizer():
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    return train_tokenizer([text], SIZE)


def small_model(folder: Path, kind: str = "llama", dtype=torch.float32, labels: int = 0, **changed) -> Path:
    """A model of random weights that are not zero anywhere, and its tokenizer, in Hugging Face's form."""
    config = AutoConfig.for_model(kind, **{**SHAPES[kind], "vocab_size": SIZE, "pad_token_id": 0, **changed})
    if labels:
        config.num_labels = labels
    torch.manual_seed(7)
    model = (AutoModelForSequenceClassification if labels else AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    model.to(dtype).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
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
