"""A signal to end: remembered until the loop's next step, and bounded where other ranks never come to that step."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hfbsz.errors import INTERRUPTED, rank

AGREEMENT_SECONDS = 10.0  # that a rank which was told to stop waits for others that have no work of their own to do
_LOOK_SECONDS = 0.2
_wait: tuple[float, float] | None = None  # this process waits for others since (monotonic, s), for so many s at most


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Inside, a process that has got a signal waits for the other ranks no longer than `seconds`."""
    global _wait
    _wait = time.monotonic(), seconds
    try:
        yield
    finally:
        _wait = None


class Interrupt:
    """Called, it says whether a signal has come: the run then ends at its next step, with a checkpoint. A second SIGINT
    ends it at once.

    A rank that waits for one that hangs sits in a call that Python's handlers cannot interrupt. So a thread of its own
    hears of signals too: where one has come and a wait (`waiting`) takes longer than its limit, the process leaves
    without saving; `leaving` is called first.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.reason: str | None = None  # the signal's name
        self.leaving: Callable[[str], None] = lambda why: None
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(heard,), name="interrupt", daemon=True).start()

    def __call__(self) -> bool:
        return self.reason is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if rank() == 0:
            again = " (SIGINT once more: at once)" if number == signal.SIGINT else ""
            os.write(2, f"\n{self.reason}: ending after this step with a checkpoint{again}\n".encode())

    def _watch(self, heard: int) -> None:
        number = os.read(heard, 1)[0]
        came = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            wait = _wait
            if wait is not None and time.monotonic() > max(wait[0], came) + wait[1]:
                why = (
                    f"{signal.Signals(number).name}: the other ranks did not answer within {wait[1]:.0f} s: left "
                    "without a checkpoint of this step; the same command goes on from the newest one"
                )
                print(f"error: rank {rank()}: {why}", file=sys.stderr, flush=True)
                self.leaving(why)
                os._exit(INTERRUPTED)
