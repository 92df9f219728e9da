"""Limits on the time and memory of a chat template, which is code from a third party."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

SECONDS = 10.0  # of CPU time
BYTES = 2**30  # beyond what the process uses already


class TooLong(BaseException):
    """The time limit was exceeded. Not an Exception, because Jinja's compiler catches those."""


@contextmanager
def bounded(seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """Context that raises TooLong after `seconds` of CPU time, and MemoryError for more than `memory` new bytes.

    There are no limits outside the main thread and on Windows, and no memory limit without /proc.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGVTALRM, _stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
        with _memory_limit(memory):
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


@contextmanager
def _memory_limit(size: int) -> Iterator[None]:
    import resource  # not available on Windows

    before = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):  # no /proc, or a lower hard limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + size
        if before[0] == resource.RLIM_INFINITY or limit < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
