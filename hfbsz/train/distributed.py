"""What the launcher gave: threads, precision, the accelerator; and how ranks come to one answer."""

import math
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list, gather_object

from hfbsz.data.manifest import Manifest
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Recipe
from hfbsz.records.folder import cpu_cores
from hfbsz.system.signals import AGREEMENT_SECONDS, waiting

_COLLECTIVE_TIMEOUT = timedelta(hours=2)  # ranks wait this long for rank 0 to tokenise


def set_threads(recipe: Recipe) -> None:
    """CPU threads: what the user chose, else cores ÷ local processes (accelerate's launcher sets OMP_NUM_THREADS=1)."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    launched = chosen == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ
    available = max(1, cpu_cores() // local)
    torch.set_num_threads(recipe.threads or (chosen if chosen and not launched else available))


def precision_of(recipe: Recipe) -> str:
    """fp32, bf16 or fp64 on this device."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def make_accelerator(recipe: Recipe) -> Accelerator:
    precision = precision_of(recipe)
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise UserError(
            f"mixed_precision={asked} of the launch command or its config contradicts precision={precision}: "
            "remove it there (fp16 is not offered: it needs loss scaling, bf16 does not)"
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=_COLLECTIVE_TIMEOUT),
        ],
    )
    if accelerator.num_processes != world_size:
        raise UserError(
            f"the launcher started {world_size} processes, accelerate sees {accelerator.num_processes}: "
            "launch with a config of accelerate_configs/"
        )
    return accelerator


def shared(accelerator: Accelerator, value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if accelerator.num_processes == 1:
        return value
    # rank 0 has done its work and finds the others ready; they may wait long for its work
    with waiting(AGREEMENT_SECONDS if accelerator.is_main_process else math.inf):
        return broadcast_object_list([value])[0]


def gathered(accelerator: Accelerator, value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def on_main(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Do work on rank 0 alone (None elsewhere); where it raises UserError, every rank does."""
    result, lines = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except UserError as problem:
            lines = problem.lines
    if (lines := shared(accelerator, lines)) is not None:
        raise UserError(lines)
    return result


def on_all(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Do work on every rank; where it raises UserError on any of them, every rank does, with the first one's lines."""
    result, lines = None, None
    try:
        result = work()
    except UserError as problem:
        lines = problem.lines
    for rank, told in enumerate(gathered(accelerator, lines)):
        if told is not None:
            raise UserError([f"rank {rank}: {line}" for line in told])
    return result


def refuse_other_rows(accelerator: Accelerator, manifest: Manifest) -> None:
    """Raise UserError on every rank where a machine made other rows of the data: ranks would train on a mixture."""
    everyone = gathered(accelerator, manifest)
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            raise UserError(
                f"data: rank {rank} made other rows than rank 0 ({theirs.train.rows:,} and "
                f"{everyone[0].train.rows:,} to train on): every machine must see the same files, the same "
                "Python (its own source is the default corpus) and the same versions of packages"
            )
