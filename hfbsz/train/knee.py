"""`batch.micro_max=auto`: the micro-batch at the knee, from a probe that is made once for a model on some hardware."""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator

from hfbsz.data.cache import cache_folder
from hfbsz.plan.plan import Plan
from hfbsz.records.probe import probe_from_dict
from hfbsz.system import memory
from hfbsz.system.files import read_object, write_text
from hfbsz.train.device import free, reset_peak
from hfbsz.train.distributed import shared
from hfbsz.train.machine import software_and_device
from hfbsz.train.micro_batch import LARGEST, Parts, Show, about, probe


def knee_of(make: Callable[[], Parts], plan: Plan, accelerator: Accelerator, show: Show, shards: bool) -> int:
    """The micro-batch at the knee for the batches of a plan, in rows: of the probe in the cache, or of a new one with
    what `make` builds. All ranks call it. `shards`: whether FSDP2 shards its weights. Raises UserError like `probe`."""
    largest = 2 ** math.ceil(math.log2(max(1, plan.largest_batch // plan.world_size)))
    entry = cache_folder() / f"probes/{_key(plan, accelerator, largest, shards)}.json"
    if (known := shared(accelerator, _cached(entry) if accelerator.is_main_process else None)) is not None:
        return int(known)
    parts = make()
    result = probe(parts, about(parts, ""), largest=min(largest, LARGEST), prices=False, show=show)
    del parts
    accelerator.free_memory()
    free(accelerator.device)  # after its references have gone: a wrapped model holds itself in a cycle
    if plan.recipe.model.compile:
        torch.compiler.reset()  # a run that finds its probe in the cache compiles the same code
    reset_peak(accelerator.device)
    if accelerator.is_main_process:
        with suppress(OSError):  # a cache that cannot be written costs the next start a probe
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_text(entry, json.dumps(result.to_dict(), indent=1))
    return result.knee


def _key(plan: Plan, accelerator: Accelerator, largest: int, shards: bool) -> str:
    """A hash of what the result of a probe depends on, the hardware included. `shards`: whether FSDP2 is on."""
    recipe = plan.recipe.model_dump(mode="json")
    data = {name: recipe["data"][name] for name in ("sequence_length", "vocab_size", "pack", "attend")}
    parts = [recipe["model"], data, recipe["task"], recipe["precision"], recipe["optim"]["name"]]
    parts += [recipe["optim"]["average"], torch.get_num_threads(), shards, memory.hardware()]
    parts += [software_and_device(accelerator.device), accelerator.num_processes, plan.facts.data_hash, largest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _cached(entry: Path) -> int | None:
    """The knee of the probe in a file of the cache; None if there is none, or it cannot be read."""
    try:
        return probe_from_dict(read_object(entry) or {}).knee
    except (KeyError, TypeError, ValueError):
        return None
