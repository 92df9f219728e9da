"""The limit of the peak memory of a process that trials of micro-batches keep to."""

from contextlib import suppress

import torch
from accelerate import Accelerator

from hfbsz.errors import number_of
from hfbsz.system import memory
from hfbsz.train.distributed import gathered

SHARE = {"cpu": 0.5, "cuda": 0.95}  # of the free memory that trials may take, by type of device
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def bytes_of(text: str) -> int:
    """An amount of memory, such as `8GB` or `512MiB`, in bytes. Raises ValueError."""
    for suffix, factor in _BYTES.items():
        if text.endswith(suffix):
            with suppress(ValueError, OverflowError):
                value = float(text.removesuffix(suffix)) * factor
                if value >= 1:
                    return int(value)
    raise ValueError(f"{text!r} is not an amount of memory: write 8GB or 512MiB")


def limit_of(accelerator: Accelerator, share: float | None = None) -> tuple[int, str]:
    """The limit of the peak memory of a process, in bytes, and its source: what the process holds and `share` (None:
    `SHARE`) of what is free; that of the rank with the least. All ranks call it."""
    device = accelerator.device
    share = SHARE.get(device.type, SHARE["cuda"]) if share is None else share
    if device.type == "cuda":
        available, _ = torch.cuda.mem_get_info(device)
        room = memory.Headroom(available, "free GPU memory")
        used = torch.cuda.memory_allocated(device)
    else:
        room, used = memory.headroom(), memory.resident_bytes()
        local = max(1, number_of("LOCAL_WORLD_SIZE", 1))  # processes of one machine share its memory
        room = room._replace(bytes=room.bytes // local)
    mine = int(used + share * room.bytes), f"{100 * share:g} % of the {room.source}"
    return min(gathered(accelerator, mine))
