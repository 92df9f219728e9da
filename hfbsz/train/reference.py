"""Reference log-probabilities of preference pairs: those under the initial weights, computed once and cached.

They are computed before the first step and before a checkpoint is restored, by the run's own passes in its precision,
so that all rewards are 0 at the start up to rounding. With LoRA, the initial weights are those of the base model.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from xxhash import xxh3_128

from hfbsz.data.batches import Batch
from hfbsz.data.cache import cache_folder
from hfbsz.data.prepare.corpus import Progress as Show
from hfbsz.data.rows import Prepared, Rows
from hfbsz.errors import UserError
from hfbsz.plan.plan import Plan
from hfbsz.system.disk import sha256
from hfbsz.train.distributed import precision_of, shared
from hfbsz.train.evaluate import evaluate
from hfbsz.train.tasks import BatchEvaluation
from hfbsz.train.tasks.preference import Preference

_VERSION = 1  # of the cached files


def hash_of(model: Any) -> str:
    """A hash of the weights of a model that is not wrapped or sharded, and of its configuration. LoRA's factors, whose
    product is 0 at the start, do not count."""
    digest = xxh3_128(model.config.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        if "lora_" not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def with_references(
    data: Prepared, model: Any, task: Preference, initial: str, plan: Plan, accelerator: Accelerator, show: Show
) -> Prepared:
    """The data with the reference log-probabilities of every set, the same on every rank; all ranks call it.

    `model`: with its initial weights, prepared or sharded; `initial`: its `hash_of`. Raises UserError where they are
    not finite.
    """

    def referenced(name: str, rows: Rows) -> Rows:
        path = cache_folder() / "references" / f"{_key(rows, initial, plan, accelerator)}.npz"
        cached = shared(accelerator, _read(path, len(rows)) if accelerator.is_main_process else None)
        if cached is not None:
            return rows.with_reference(cached)
        values = _computed(rows, model, task, plan, accelerator, partial(show, f"reference of {name}"))
        if not np.isfinite(values).all():
            number = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise UserError(f"{name}, row {number}: its log-probability under the initial weights is not finite")
        if accelerator.is_main_process:
            _write(path, values)
        return rows.with_reference(values)

    train, validation = referenced("training", data.train), referenced("validation", data.validation)
    sets = {name: referenced(f"eval.sets.{name}", rows) for name, rows in data.sets.items()}
    if plan.recipe.model.compile:
        torch.compiler.reset()  # a run that finds them in the cache compiles the same code
    return replace(data, train=train, validation=validation, sets=sets)


def without_rewards(data: Prepared) -> Prepared:
    """The data with training pairs whose reference is 0, for measurements of memory and speed."""
    return replace(data, train=data.train.with_reference(np.zeros((len(data.train), 2))))


class _LogProbabilities:
    """A task for `evaluate`, whose outputs are the log-probabilities of the answers."""

    def __init__(self, task: Preference) -> None:
        self.task, self.collate, self.loss_sum = task, task.collate, task.loss_sum

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        values = self.task.log_probabilities(model, batch)
        return BatchEvaluation(-values.sum(dim=1), torch.ones_like(values[:, 0]), values)


def _computed(
    rows: Rows, model: Any, task: Preference, plan: Plan, accelerator: Accelerator, show: Callable[[int, int], None]
) -> np.ndarray:
    recipe = plan.recipe
    fitting = (recipe.batch.micro_tokens or 0) // max(1, int(rows.lengths.max()))
    micro = recipe.eval.micro_batch or plan.micro_batch or max(1, fitting)
    return evaluate(model, _LogProbabilities(task), rows, range(len(rows)), micro, accelerator, show).outputs


def _key(rows: Rows, initial: str, plan: Plan, accelerator: Accelerator) -> str:
    """A hash of what log-probabilities depend on."""
    parts = [_VERSION, initial, precision_of(plan.recipe), accelerator.device.type, transformers.__version__]
    content = sha256(rows.path) if accelerator.is_main_process else ""
    return hashlib.sha256(json.dumps([*parts, content]).encode()).hexdigest()[:16]


def _read(path: Path, rows: int) -> np.ndarray | None:
    """The values in a file of the cache; None if there is none, or if it is damaged (zip files have checksums)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values: np.ndarray = file["log_probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return values if values.shape == (rows, 2) and values.dtype == np.float64 else None


def _write(path: Path, values: np.ndarray) -> None:
    with suppress(OSError):  # a cache that cannot be written costs the next start the same passes
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")  # runs of a sweep write the same file
        np.savez(temporary, log_probabilities=values)
        temporary.replace(path)
