"""Memory of this process and of the machine, in bytes: peak use, and how much a process may still take."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_CGROUPS = (
    ("memory.max", "memory.current"),  # version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # version 1
)
_CGROUP_ROOT = Path("/sys/fs/cgroup")


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
    for limit_name, usage_name in _CGROUPS:
        with suppress(OSError, ValueError):
            limit = int((_CGROUP_ROOT / limit_name).read_text())  # ValueError: "max"
            return max(0, limit - int((_CGROUP_ROOT / usage_name).read_text()))
    return None


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


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
