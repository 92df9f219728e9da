"""Checkpoints: a folder `checkpoint-<step>` that is complete or absent.

Written to a temporary folder, synced to the disk, and renamed; `complete.json`, written last, holds the SHA-256 of the
other files. Weights and optimizer state are safetensors, all else is JSON: nothing in it can run code. Of a model whose
weights are partly frozen it holds the trained ones, and a sum over the others, which come from where they came from.
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
from hfbsz.system.disk import settle, sha256, sync, system_errors
from hfbsz.train.checkpoint_state import check_state
from hfbsz.train.fsdp import shard_like, whole
from hfbsz.train.optimizers import Optimizers

Tensors = dict[str, torch.Tensor]
_FORMAT = 3  # of state.json
_MARK = "complete.json"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}  # of the format


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk, and what its `state.json` says."""

    path: Path
    state: Mapping[str, Any]

    def is_in(self, folder: Path) -> bool:
        return self.path.resolve().parent == folder.resolve()


class Collected(NamedTuple):
    """Whole and on the host. A tied weight comes once; names are those of the model without its wrappers."""

    weights: Tensors
    moments: Tensors
    scalars: list[dict[str, Any]]
    frozen: str | None


def collect(model: Any, optimizer: Optimizers) -> Collected | None:
    """What a checkpoint holds of model and optimizer, on rank 0; None on the others. All ranks call it."""
    main = not dist.is_initialized() or dist.get_rank() == 0
    weights, moments = _weights(model), optimizer.tensors(_names(model))
    found = [{name: _host(whole(tensor), main) for name, tensor in each.items()} for each in (weights, moments)]
    if not main:
        return None
    kept = [{name: tensor for name, tensor in each.items() if tensor is not None} for each in found]
    return Collected(kept[0], kept[1], optimizer.scalars(), _frozen(model))


def _host(tensor: torch.Tensor, main: bool) -> torch.Tensor | None:
    return tensor.detach().to("cpu", copy=True).contiguous() if main else None


def _weights(model: Any) -> Tensors:
    """Parameters that are trained and buffers that belong to the saved model."""
    persistent = model.state_dict().keys()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in persistent}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {_bare(name): tensor for name, tensor in (*trained.items(), *buffers.items())}


def _frozen(model: Any) -> str | None:
    """A hash of a sum over each weight that is not trained, equal on every device; None where there is none."""
    sums = {_bare(name): _bit_sum(weight) for name, weight in model.named_parameters() if not weight.requires_grad}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest() if sums else None


def _bit_sum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bits taken as 64-bit integers: exact, as fast as memory is, another for any one change."""
    flat = tensor.detach().reshape(-1)
    aligned = flat if flat.storage_offset() * flat.element_size() % 8 == 0 else flat.clone()
    bits = aligned.view(torch.uint8)
    words = len(bits) // 8 * 8
    return int(bits[:words].view(torch.int64).sum()) + int(bits[words:].sum())


def _names(model: Any) -> dict[int, str]:
    return {id(weight): _bare(name) for name, weight in model.named_parameters()}


def _bare(name: str) -> str:
    """A weight's name without what wrappers put before it (DDP, torch.compile, peft)."""
    return name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("base_model.model.")


def save(folder: Path, step: int, collected: Collected, state: Mapping[str, Any]) -> Path:
    """Write `checkpoint-<step>` whole or not at all. Raises OSError where the disk is full or cannot be written."""
    weights, moments, scalars, frozen = collected
    final, partial = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.tmp"
    own = {"optimizer": scalars, "frozen": frozen}
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with system_errors():
            save_file(weights, partial / _FILES[0], metadata={"format": "pt"})
            save_file(moments, partial / _FILES[1])
        (partial / _FILES[2]).write_text(json.dumps({"format": _FORMAT, **state, **own}))
        sums = {name: sha256(partial / name) for name in _FILES}
        (partial / _MARK).write_text(json.dumps(sums))
        settle(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder, newest first."""
    found = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted((int(step) for step in found if step.isdigit()), reverse=True)


def prune(folder: Path, keep: int, also: Collection[int] = ()) -> None:
    """Delete all but the newest `keep`, and those of the steps `also`."""
    for step in steps(folder)[keep:]:
        if step not in also:
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints after `step`, from which a run goes on: they are of steps that are trained again."""
    for later in steps(folder):
        if later > step:
            shutil.rmtree(folder / f"checkpoint-{later}", ignore_errors=True)


def newest(
    folder: Path, tell: Callable[[str], None], until: float = math.inf, below: float = math.inf
) -> Checkpoint | None:
    """The newest complete checkpoint of a run's folder, of a clock up to `until` and a step `below`; `tell` gets a line
    for each that is damaged, which is skipped."""
    for step in filter(lambda step: step < below, steps(folder)):
        try:
            found = read(folder / f"checkpoint-{step}")
        except UserError as problem:
            tell(f"{problem.lines[0]}: skipped")
        else:
            if found.state["progress"].get("clock", 0) <= until:
                return found
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`; raises UserError where it is not complete."""
    try:
        sums = json.loads((path / _MARK).read_text())
        for name in _FILES:
            if sha256(path / name) != sums[name]:
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
    """The first weight of a file with values that are not finite."""
    with safe_open(path, "pt") as file:
        return next((name for name in file.keys() if not torch.isfinite(file.get_tensor(name)).all()), None)  # noqa: SIM118


def restore(checkpoint: Checkpoint | None, model: Any, optimizer: Optimizers) -> None:
    """Put weights and optimizer state back. All ranks call it; rank 0 alone reads the disk and has a checkpoint.

    Raises UserError where the checkpoint is of another model or optimizer.
    """
    if _agreed(checkpoint and checkpoint.state.get("frozen")) != _frozen(model):
        raise UserError(
            f"{_where(checkpoint)}: of another model: the weights that are not trained, which it does not hold, have "
            "changed since: bring them back (model.path), or start over with resume=never"
        )
    try:
        with torch.no_grad():
            _fill(_weights(model), checkpoint, _FILES[0])
            layout = _agreed(_layout(checkpoint))
            scalars = _agreed(list(checkpoint.state["optimizer"]) if checkpoint is not None else None)
            moments = (  # one at a time: a model that fits only because it is shared has no room for all of them whole
                (name, _received(checkpoint, _FILES[1], name, shape, dtype, optimizer.device))
                for name, (shape, dtype) in layout.items()
            )
            optimizer.load({_bare(name): weight for name, weight in model.named_parameters()}, moments, scalars)
    except (LookupError, RuntimeError, SafetensorError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(f"{_where(checkpoint)}: of another model or optimizer: {reason}") from None


def _where(checkpoint: Checkpoint | None) -> str:
    return str(checkpoint.path) if checkpoint is not None else "the checkpoint"


def _fill(targets: Tensors, checkpoint: Checkpoint | None, file: str) -> None:
    for name, target in targets.items():
        received = _received(checkpoint, file, name, tuple(target.shape), str(target.dtype), target.device)
        target.copy_(shard_like(received, target))


def _layout(checkpoint: Checkpoint | None) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """Shape and dtype of every optimizer tensor."""
    if checkpoint is None:
        return None
    with safe_open(checkpoint.path / _FILES[1], "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return {name: (tuple(one.get_shape()), _DTYPES[one.get_dtype()]) for name, one in slices.items()}


def _agreed(value: Any) -> Any:
    """Rank 0's plain value, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _received(
    checkpoint: Checkpoint | None, file: str, name: str, shape: tuple[int, ...], dtype: str, device: torch.device
) -> torch.Tensor:
    """A tensor of rank 0's checkpoint, whole, on every rank's device."""
    if checkpoint is not None:
        with safe_open(checkpoint.path / file, "pt") as opened:
            tensor = opened.get_tensor(name).to(device)
        if tuple(tensor.shape) != shape:
            raise LookupError(f"{name} has the shape {tuple(tensor.shape)} there, {shape} here")
    else:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor
