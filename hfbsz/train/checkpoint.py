"""Checkpoints: a folder `checkpoint-<step>` that is complete or absent.

It is written to a temporary folder, synced to disk and renamed. `complete.json`, written last, holds the SHA-256 of the
other files. Weights and optimizer state are safetensors, everything else is JSON: no file can run code. For a model
with frozen weights it holds the trainable weights and a hash of the frozen ones, which are loaded from their source
again.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hfbsz.errors import UserError
from hfbsz.system.disk import new_folder, sha256
from hfbsz.train.checkpoint_state import check_state
from hfbsz.train.fsdp import full_tensor, shard_like
from hfbsz.train.optimizers import Optimizers

Tensors = dict[str, torch.Tensor]
_FORMAT = 3  # of state.json
_MARK = "complete.json"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}  # of safetensors


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, with the contents of its `state.json`."""

    path: Path
    state: Mapping[str, Any]

    def is_in(self, folder: Path) -> bool:
        """Whether the checkpoint is directly inside `folder`, by whichever paths the two are given."""
        return self.path.resolve().parent == folder.resolve()


class Collected(NamedTuple):
    """The contents of a checkpoint: full (unsharded) tensors in host memory.

    A tied weight is listed once; names are those of the model without its wrappers.
    """

    weights: Tensors  # trainable weights and persistent buffers
    moments: Tensors  # optimizer state
    scalars: list[dict[str, Any]]  # optimizer state that is not a tensor, one dictionary per parameter group
    frozen: str | None  # hash of the frozen weights; None if there are none


def collect(model: Any, optimizer: Optimizers) -> Collected | None:
    """Copy the state of model and optimizer to the host of rank 0; None on other ranks. All ranks call it."""
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    weights, moments = (_gathered(tensors, is_main) for tensors in (_weights(model), optimizer.tensors(_names(model))))
    return Collected(weights, moments, optimizer.scalars(), _frozen_hash(model)) if is_main else None


def _gathered(tensors: Tensors, is_main: bool) -> Tensors:
    """Full tensors in host memory on rank 0; an empty dictionary on other ranks. All ranks call it."""
    host: Tensors = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if is_main:
            host[name] = full.detach().to("cpu", copy=True).contiguous()
        del full  # before the next one is gathered
    return host


def _weights(model: Any) -> Tensors:
    """Trainable parameters and persistent buffers."""
    persistent = model.state_dict().keys()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {_bare(name): tensor for name, tensor in (*trained.items(), *buffers.items())}


def _frozen_hash(model: Any) -> str | None:
    """A hash of the frozen weights (of one sum per weight), the same on every device; None if there are none."""
    sums = {_bare(name): _bit_sum(weight) for name, weight in model.named_parameters() if not weight.requires_grad}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest() if sums else None


def _bit_sum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bits read as 64-bit integers: exact, limited only by memory speed; any single changed value
    changes it."""
    flat = tensor.detach().reshape(-1)
    aligned = flat if flat.storage_offset() * flat.element_size() % 8 == 0 else flat.clone()
    bits = aligned.view(torch.uint8)
    words = len(bits) // 8 * 8
    return int(bits[:words].view(torch.int64).sum()) + int(bits[words:].sum())


def _names(model: Any) -> dict[int, str]:
    return {id(weight): _bare(name) for name, weight in model.named_parameters()}


def _bare(name: str) -> str:
    """A weight's name without the prefixes of wrappers (DDP, torch.compile, peft)."""
    return name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("base_model.model.")


def save(folder: Path, step: int, collected: Collected, state: Mapping[str, Any]) -> Path:
    """Write `checkpoint-<step>` atomically and return its path. Raises OSError if the disk is full or not writable."""
    weights, moments, scalars, frozen = collected
    path = folder / f"checkpoint-{step}"
    body = {"format": _FORMAT, **state, "optimizer": scalars, "frozen": frozen}
    with new_folder(path) as partial:
        save_file(weights, partial / _FILES[0], metadata={"format": "pt"})
        save_file(moments, partial / _FILES[1])
        (partial / _FILES[2]).write_text(json.dumps(body))
        hashes = {name: sha256(partial / name) for name in _FILES}
        (partial / _MARK).write_text(json.dumps(hashes))
    return path


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder, newest first."""
    suffixes = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted((int(suffix) for suffix in suffixes if suffix.isdigit()), reverse=True)


def prune(folder: Path, keep: int, also: Collection[int] = ()) -> None:
    """Delete all checkpoints but the newest `keep` and those of the steps in `also`."""
    for step in steps(folder)[keep:]:
        if step not in also:
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints after `step`, from which a run resumes: their steps are trained again."""
    for later in steps(folder):
        if later > step:
            shutil.rmtree(folder / f"checkpoint-{later}", ignore_errors=True)


def newest(
    folder: Path, warn: Callable[[str], None], until: float = math.inf, below: float = math.inf
) -> Checkpoint | None:
    """The newest complete checkpoint in a run's folder; None if there is none.

    Only checkpoints with a clock of at most `until` and a step less than `below` are considered. Damaged ones are
    skipped; `warn` is called with one line for each.
    """
    for step in filter(lambda step: step < below, steps(folder)):
        try:
            checkpoint = read(folder / f"checkpoint-{step}")
        except UserError as problem:
            warn(f"{problem.lines[0]}: skipped")
        else:
            if checkpoint.state["progress"].get("clock", 0) <= until:
                return checkpoint
    return None


def read(path: Path) -> Checkpoint:
    """Read the checkpoint at `path`. Raises UserError if it is not complete, damaged, not finite or outdated."""
    try:
        hashes = json.loads((path / _MARK).read_text())
        for name in _FILES:
            if sha256(path / name) != hashes[name]:
                raise UserError(f"{path}: {name} is damaged")
        state = json.loads((path / "state.json").read_text())
        if state["format"] != _FORMAT:
            raise UserError(f"{path}: written by another version of hfbsz")
        check_state(state)
        if (weight := _not_finite(path / _FILES[0])) is not None:
            raise UserError(f"{path}: values of {weight} are not finite: the run had diverged")
        return Checkpoint(path, state)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as problem:
        raise UserError(f"{path}: not a complete checkpoint ({problem})") from None


def _not_finite(path: Path) -> str | None:
    """The name of the first weight in a file with values that are not finite; None if all are finite."""
    with safe_open(path, "pt") as file:
        return next((name for name in file.keys() if not torch.isfinite(file.get_tensor(name)).all()), None)  # noqa: SIM118


def restore(checkpoint: Checkpoint | None, model: Any, optimizer: Optimizers) -> None:
    """Load weights and optimizer state. All ranks call it; only rank 0 reads the disk and passes a checkpoint.

    Raises UserError if the checkpoint belongs to another model or optimizer.
    """
    if _from_rank_0(checkpoint and checkpoint.state.get("frozen")) != _frozen_hash(model):
        raise UserError(
            f"{_label(checkpoint)}: the frozen weights, which a checkpoint does not hold, have changed since it was "
            "saved: restore them (model.path), or start over with resume=never"
        )
    try:
        with torch.no_grad():
            _fill(_weights(model), checkpoint, _FILES[0])
            layout = _from_rank_0(_layout(checkpoint))
            scalars = _from_rank_0(list(checkpoint.state["optimizer"]) if checkpoint is not None else None)
            moments = (  # one at a time: a sharded model may not fit into memory with all of them unsharded
                (name, _broadcast(checkpoint, _FILES[1], name, shape, dtype, optimizer.device))
                for name, (shape, dtype) in layout.items()
            )
            optimizer.load({_bare(name): weight for name, weight in model.named_parameters()}, moments, scalars)
    except (LookupError, RuntimeError, SafetensorError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(f"{_label(checkpoint)}: saved from another model or optimizer: {reason}") from None


def _label(checkpoint: Checkpoint | None) -> str:
    return str(checkpoint.path) if checkpoint is not None else "the checkpoint"


def _fill(targets: Tensors, checkpoint: Checkpoint | None, file: str) -> None:
    for name, target in targets.items():
        full = _broadcast(checkpoint, file, name, tuple(target.shape), str(target.dtype), target.device)
        target.copy_(shard_like(full, target))


def _layout(checkpoint: Checkpoint | None) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """Shape and dtype of every optimizer tensor in the checkpoint, by name; None without a checkpoint."""
    if checkpoint is None:
        return None
    with safe_open(checkpoint.path / _FILES[1], "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return {name: (tuple(part.get_shape()), _DTYPES[part.get_dtype()]) for name, part in slices.items()}


def _from_rank_0(value: Any) -> Any:
    """Rank 0's value (plain data), on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _broadcast(
    checkpoint: Checkpoint | None, file: str, name: str, shape: tuple[int, ...], dtype: str, device: torch.device
) -> torch.Tensor:
    """One tensor of rank 0's checkpoint, unsharded, on the device of every rank."""
    if checkpoint is not None:
        with safe_open(checkpoint.path / file, "pt") as opened:
            tensor = opened.get_tensor(name).to(device)
        if tuple(tensor.shape) != shape:
            raise LookupError(f"{name} has shape {tuple(tensor.shape)} in the checkpoint, {shape} in the model")
    else:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor
