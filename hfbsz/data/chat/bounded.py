"""A bound on what a chat template, which is another's program, may take: of time, and of memory."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

SECONDS = 10.0  # of the processor
BYTES = 2**30  # beyond what the process has


class TooLong(BaseException):
    """More time than that; no Exception, for a template's own compiler swallows these."""


@contextmanager
def bounded(seconds: float = SECONDS, room: int = BYTES) -> Iterator[None]:
    """Inside, TooLong is raised after so much time, and MemoryError where more than `room` bytes are taken.

    Outside the main thread, and on Windows, nothing is bounded; without /proc, memory is not.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGVTALRM, _stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
        with _room(room):
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


@contextmanager
def _room(size: int) -> Iterator[None]:
    import resource  # not there on Windows

    before = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):  # no /proc, or a lower limit is set
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + size
        if before[0] == resource.RLIM_INFINITY or limit < before[0]:
            resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
