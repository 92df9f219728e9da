"""A signal to end: before the first step it ends the work at once, afterwards after the loop's step; bounded where
other ranks never come to that step."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hfbsz.errors import INTERRUPTED, rank

AGREEMENT_SECONDS = 10.0  # that a rank which was told to stop waits for others that have no work of their own to do
_LOOK_SECONDS = 0.2
_DEAF_SECONDS = 3.0  # that preparation may stay inside a call which Python's handlers cannot interrupt
_LEAVE_SECONDS = 20.0  # that it may take to leave once it was told
_half_written: set[Path] = set()
_wait: tuple[float, float] | None = None  # this process waits for others since (monotonic, s), for so many s at most


class Interrupted(KeyboardInterrupt):
    """A signal before the first step: raised out of whatever is being prepared."""


@contextmanager
def scratch(path: Path) -> Iterator[None]:
    """Inside, a file or folder is half written: it is removed at the end, also where the process leaves at once."""
    _remove(path)
    _half_written.add(path)
    try:
        yield
    finally:
        _remove(path)
        _half_written.discard(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
    """Called, it says whether a signal has come.

    While a run is prepared, a signal raises Interrupted: nothing is trained yet that a checkpoint could keep. After
    `train`, it is remembered, and the run ends at its next step, with a checkpoint. A second SIGINT ends it at once.

    A call outside Python, such as a tokenizer's or one that waits for another rank, is not interrupted by Python's
    handlers. So a thread of its own hears of signals too: where one has come and the main thread stays in preparation,
    or a wait (`waiting`) takes longer than its limit, the process leaves without saving; `leaving` is called first.
    """

    SIGNALS = (
        signal.SIGINT,
        signal.SIGTERM,
        *(getattr(signal, n) for n in ("SIGUSR1", "SIGHUP") if hasattr(signal, n)),
    )

    def __init__(self) -> None:
        self.reason: str | None = None  # the signal's name
        self.leaving: Callable[[str], None] = lambda why: None
        self._training = False
        for number in self.SIGNALS:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(heard,), name="interrupt", daemon=True).start()

    def __call__(self) -> bool:
        return self.reason is not None

    def train(self) -> None:
        """From here on a signal ends the run after its step; raises Interrupted where one has come before."""
        self._training = True
        if self.reason is not None:
            raise Interrupted(_before(self.reason))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        came_before = self.reason is not None
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._training:
            if not came_before:
                raise Interrupted(_before(self.reason))
        elif rank() == 0:
            again = " (SIGINT once more: at once)" if number == signal.SIGINT else ""
            with suppress(OSError):
                os.write(2, f"\n{self.reason}: ending after this step with a checkpoint{again}\n".encode())

    def _watch(self, heard: int) -> None:
        number = os.read(heard, 1)[0]
        while number not in self.SIGNALS:  # a timer's
            number = os.read(heard, 1)[0]
        name = signal.Signals(number).name
        came = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            now, wait = time.monotonic(), _wait
            if not self._training:
                if now > came + (_DEAF_SECONDS if self.reason is None else _LEAVE_SECONDS):
                    self._leave(_before(name), everywhere=False)
            elif wait is not None and now > max(wait[0], came) + wait[1]:
                self._leave(
                    f"{name}: the other ranks did not answer within {wait[1]:.0f} s: left without a checkpoint of this "
                    "step; the same command goes on from the newest one",
                    everywhere=True,
                )

    def _leave(self, why: str, everywhere: bool) -> None:
        if everywhere:
            print(f"error: rank {rank()}: {why}", file=sys.stderr, flush=True)
        elif rank() == 0:
            print(f"error: {why}", file=sys.stderr, flush=True)
        self.leaving(why)
        for path in list(_half_written):
            with suppress(OSError):
                _remove(path)
        os._exit(INTERRUPTED)


def _before(name: str) -> str:
    return f"{name} before the first step: this start trained nothing; the same command starts again"
