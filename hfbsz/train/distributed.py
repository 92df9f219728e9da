"""What the launcher determines: threads, precision and the accelerator; and how ranks exchange values."""

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

_COLLECTIVE_TIMEOUT = timedelta(hours=2)  # ranks wait this long while rank 0 tokenizes


def set_threads(recipe: Recipe) -> None:
    """Set torch's CPU threads: the recipe's or the user's number, else cores ÷ local processes.

    OMP_NUM_THREADS=1 is not taken as the user's choice under accelerate's launcher, which sets it.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    by_launcher = chosen == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ
    available = max(1, cpu_cores() // processes)
    torch.set_num_threads(recipe.threads or (chosen if chosen and not by_launcher else available))


def precision_of(recipe: Recipe) -> str:
    """The precision of a run on this device: fp32, bf16 or fp64."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The accelerator for a recipe. Raises UserError if the launcher asks for another precision, or started more
    processes than accelerate sees."""
    precision = precision_of(recipe)
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher_precision not in ("no", precision):
        raise UserError(
            f"mixed_precision={launcher_precision} of the launch command or its config contradicts "
            f"precision={precision}: remove it there (fp16 is not supported: it needs loss scaling, bf16 does not)"
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
            "launch with a config from accelerate_configs/"
        )
    return accelerator


def shared(accelerator: Accelerator, value: Any) -> Any:
    """Rank 0's value, on every rank; all ranks call it."""
    if accelerator.num_processes == 1:
        return value
    # rank 0 has finished its work, so the others are ready soon; they may wait long for rank 0
    with waiting(AGREEMENT_SECONDS if accelerator.is_main_process else math.inf):
        return broadcast_object_list([value])[0]


def gathered(accelerator: Accelerator, value: Any) -> list[Any]:
    """The values of all ranks, in the order of ranks, on every rank; all ranks call it."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def on_main(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """Run `work` on rank 0 only and return its result (None on other ranks). All ranks call it; if it raises UserError,
    every rank raises it."""
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
    """Run `work` on every rank and return its result.

    If a rank raises UserError, every rank raises it, with the lines of the first such rank.
    """
    result, lines = None, None
    try:
        result = work()
    except UserError as problem:
        lines = problem.lines
    for rank, rank_lines in enumerate(gathered(accelerator, lines)):
        if rank_lines is not None:
            raise UserError([f"rank {rank}: {line}" for line in rank_lines])
    return result


def refuse_other_rows(accelerator: Accelerator, manifest: Manifest) -> None:
    """Raise UserError on every rank if the prepared data differs between ranks, which would train on a mixture."""
    manifests = gathered(accelerator, manifest)
    for rank, other in enumerate(manifests):
        if other != manifests[0]:
            raise UserError(
                f"data: rank {rank} prepared other rows than rank 0 ({other.train.rows:,} and "
                f"{manifests[0].train.rows:,} training rows): every machine must see the same files, the same "
                "Python (its own source is the default corpus) and the same versions of packages"
            )
