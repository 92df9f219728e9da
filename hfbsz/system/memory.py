"""Memory of this process and of the machine, in bytes: peak use, and how much a process may still take."""

import ctypes
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_CGROUP_ROOT, _CGROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class Headroom(NamedTuple):
    """How much more memory this process may take."""

    bytes: int
    source: str  # what limits it, for people


def headroom() -> Headroom:
    """The memory that this process may still take: the least of what the machine, its control group and its address
    space limit (`ulimit -v`) leave."""
    found = [Headroom(psutil.virtual_memory().available, "available memory")]
    if (group := _cgroup_headroom()) is not None:
        found.append(Headroom(group, "memory that the control group leaves"))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(
            Headroom(max(0, limit - psutil.Process().memory_info().vms), "address space that ulimit -v leaves")
        )
    return min(found)


def _cgroup_headroom() -> int | None:
    """The least that the control group of this process and the groups above it leave; page cache that can be dropped
    counts as free."""
    found = []
    for group in _cgroups():
        for limit_name, usage_name, cache_name in _CGROUP_FILES:
            with suppress(OSError, ValueError):
                limit = int((group / limit_name).read_text())  # ValueError: "max"
                used = int((group / usage_name).read_text()) - _statistic(group / "memory.stat", cache_name)
                found.append(max(0, limit - used))
    return min(found, default=None)


def _cgroups() -> list[Path]:
    """The folders of this process's control groups for memory and of those above them."""
    folders = {_CGROUP_ROOT, _CGROUP_ROOT / "memory"}
    with suppress(OSError, ValueError):
        for line in _CGROUPS_OF_PROCESS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                folder = (_CGROUP_ROOT / controllers / path.lstrip("/")).resolve()
                folders |= {one for one in (folder, *folder.parents) if one.is_relative_to(_CGROUP_ROOT)}
    return sorted(folders)


def _statistic(path: Path, name: str) -> int:
    """A number of a file of names and numbers; 0 if it is missing."""
    with suppress(OSError, ValueError):
        return next((int(value) for key, value in map(str.split, path.read_text().splitlines()) if key == name), 0)
    return 0


def hardware() -> list[object]:
    """The processor, its cores and the memory of the machine, as far as a measurement depends on them."""
    model = platform.processor()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return [model, os.cpu_count(), psutil.virtual_memory().total]


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def keep_freed_memory() -> None:
    """Keep freed memory in this process, where the C library is glibc.

    By default it returns each freed block above 32 MiB to the system, so that every step takes new pages for a large
    gradient (mallopt(3): M_MMAP_THRESHOLD). `reset_peak` still returns all that is free.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def reset_peak() -> None:
    """Return free memory to the system, and start the measurement of `peak_bytes` anew, where the system supports it
    (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The peak resident memory of this process since `reset_peak`; elsewhere than on Linux, since its start."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
