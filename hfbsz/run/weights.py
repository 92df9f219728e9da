"""The model of a run with its saved weights, or those of a checkpoint, for measurements after training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hfbsz.data.batches import Batch
from hfbsz.data.prepare.corpus import Progress as Show
from hfbsz.data.rows import Rows
from hfbsz.errors import UserError
from hfbsz.recipe.fields import EvalSet, Recipe
from hfbsz.recipe.load import from_mapping
from hfbsz.system.yaml import read_yaml
from hfbsz.train.device import to_device
from hfbsz.train.setup import Setup, setup

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Weights:
    """A saved model in memory, with the data of its run."""

    path: Path  # of the run, or of a checkpoint in it
    recipe: Recipe
    setup: Setup

    @property
    def model(self) -> Any:
        """The model, not wrapped."""
        return self.setup.accelerator.unwrap_model(self.setup.model)

    def batches(self, rows: Rows, count: int, micro_batch: int) -> Iterator[Batch]:
        """`count` rows, evenly spread, in micro-batches on the device of the model; the same for every checkpoint."""
        numbers = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
        for start in range(0, len(numbers), micro_batch):
            part = numbers[start : start + micro_batch]
            batch = self.setup.task.collate([rows[int(number)] for number in part])
            yield to_device(batch, self.setup.accelerator.device)


def load_weights(path: Path, show: Show = lambda *_: None, shifted: str | None = None) -> Weights:
    """The model and data of the folder of a run, or of a checkpoint in one; the loss is that of the logits, which has
    second derivatives. `shifted`: paths or a glob of files, a further evaluation set of that name. Raises UserError for
    other folders, and for LoRA."""
    run = path if (path / "recipe.yaml").is_file() else path.parent
    if not (path / WEIGHTS).is_file() or not (run / "recipe.yaml").is_file():
        raise UserError(f"{path}: not the folder of a finished run, or of a checkpoint in one (no {WEIGHTS})")
    recipe = from_mapping(read_yaml(run / "recipe.yaml"))
    if recipe.model.lora is not None:
        raise UserError(f"{path}: model.lora: the weights of LoRA are not supported")
    plain = recipe.model.model_copy(
        update={"fused_loss": False, "compile": False, "activation_checkpointing": False, "attention": "sdpa"}
    )
    batch = recipe.batch.model_copy(update={"micro_max": 1}) if recipe.batch.micro_max == "auto" else recipe.batch
    changed: dict[str, Any] = {"model": plain, "batch": batch, "precision": "fp32"}
    if shifted is not None:
        sets = {**recipe.eval.sets, "shifted": EvalSet(files=shifted)}
        changed["eval"] = recipe.eval.model_copy(update={"sets": sets})
    built = setup(recipe.model_copy(update=changed), show=show)
    weights = Weights(path, recipe, built)
    _fill(weights.model, path / WEIGHTS)
    return weights


def _fill(model: torch.nn.Module, path: Path) -> None:
    """Load saved weights into a model. Raises UserError if they are not those of the model."""
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from None
    own = model.state_dict()
    wrong = next((name for name, one in saved.items() if name not in own or own[name].shape != one.shape), None)
    if wrong is not None:
        raise UserError(f"{path}: {wrong} is not a weight of the recipe's model")
    missing = model.load_state_dict(saved, strict=False).missing_keys
    tied = {one.data_ptr() for name, one in own.items() if name in saved}
    lost = next((name for name in missing if own[name].data_ptr() not in tied), None)
    if lost is not None:
        raise UserError(f"{path}: the weight {lost} is missing")
