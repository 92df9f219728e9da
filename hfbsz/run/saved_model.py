"""Saves the model of a run in Hugging Face format: weights, configuration, tokenizer."""

from pathlib import Path

import torch

from hfbsz.data.tokenizer.tokenizer import save_tokenizer
from hfbsz.system.disk import new_folder, writing_into
from hfbsz.train.lora import merged
from hfbsz.train.model import set_generation_ends
from hfbsz.train.setup import Setup


def save_model(setup: Setup, weights: dict[str, torch.Tensor] | None, folder: Path) -> list[str]:
    """Save the model and its tokenizer to a folder, completely or not at all; returns the paths of the files, relative
    to it. Called on rank 0. `weights` are those gathered from all ranks if they are sharded. Raises OSError."""
    model = setup.accelerator.unwrap_model(setup.model, keep_torch_compile=False)
    with setup.optimizer.averaged(), writing_into(folder) as partial:
        saved = merged(model)
        if ends := setup.data.manifest.end_ids:
            set_generation_ends(saved, ends)
        saved.save_pretrained(partial, state_dict=weights)
        save_tokenizer(setup.tokenizer, partial)
        return [file.relative_to(partial).as_posix() for file in partial.rglob("*") if file.is_file()]


def save_loader(setup: Setup, folder: Path) -> None:
    """Save the model's configuration and tokenizer to a folder: what `from_pretrained` needs beside the weights of a
    checkpoint. Called on rank 0. Raises OSError."""
    model = setup.accelerator.unwrap_model(setup.model, keep_torch_compile=False)
    with new_folder(folder) as partial:
        model.config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        save_tokenizer(setup.tokenizer, partial)
