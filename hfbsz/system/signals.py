"""Handle signals to stop: before the first step a run stops at once, later after the current step. The time to stop is
limited, since other ranks may never reach that step."""

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

AGREEMENT_SECONDS = 10.0  # how long a rank with a signal waits for other ranks that have no work of their own to do
_POLL_SECONDS = 0.2
_UNINTERRUPTIBLE_SECONDS = 3.0  # how long preparation may stay in a call that Python's handlers cannot interrupt
_CLEANUP_SECONDS = 20.0  # how long preparation may take to exit after Interrupted was raised
_half_written: set[Path] = set()
_wait: tuple[float, float] | None = None  # (start in monotonic seconds, limit in seconds) of a wait for other ranks


class Interrupted(KeyboardInterrupt):
    """Raised by a signal before the first step, from the code that prepares the run."""


@contextmanager
def scratch(path: Path) -> Iterator[None]:
    """Remove a temporary file or folder before and after the block, even if the process exits in it."""
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
    """Inside, a process that has received a signal waits at most `seconds` for the other ranks."""
    global _wait
    _wait = time.monotonic(), seconds
    try:
        yield
    finally:
        _wait = None


class Interrupt:
    """Signal handlers of a run; calling the object returns whether a signal has been received.

    While a run is being prepared, a signal raises Interrupted: there is no training yet that a checkpoint could save.
    After `train` has been called, the signal is recorded, and the run ends after the current step with a checkpoint. A
    second SIGINT ends it at once.

    Python's handlers do not interrupt calls into native code, such as a tokenizer or a wait for another rank. A thread
    therefore watches for signals too: if the main thread stays in preparation after a signal, or a wait (`waiting`)
    exceeds its limit, the process exits without saving; `leaving` is called with the reason first.
    """

    SIGNALS = (
        signal.SIGINT,
        signal.SIGTERM,
        *(getattr(signal, n) for n in ("SIGUSR1", "SIGHUP") if hasattr(signal, n)),
    )

    def __init__(self) -> None:
        self.reason: str | None = None  # the signal's name, or that of `request`
        self.is_requested = False  # whether `request` stopped the run, not a signal
        self.leaving: Callable[[str], None] = lambda why: None
        self._training = False
        for number in self.SIGNALS:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="interrupt", daemon=True).start()

    def __call__(self) -> bool:
        return self.reason is not None

    def train(self) -> None:
        """From now on a signal ends the run after the current step; raises Interrupted if one was received before."""
        self._training = True
        if self.reason is not None:
            raise Interrupted(_message_before_first_step(self.reason))

    def request(self, reason: str) -> None:
        """Do what a signal does to a run that trains; before the first step, it ends there. Another thread may call
        it."""
        if self.reason is None:
            self.reason, self.is_requested = reason, True
            if self._training:
                _announce(reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_repeated = self.reason is not None
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._training:
            if not is_repeated:
                raise Interrupted(_message_before_first_step(self.reason))
        elif rank() == 0:
            _announce(self.reason, " (a second SIGINT ends it at once)" if number == signal.SIGINT else "")

    def _watch(self, reader: int) -> None:
        """The watching thread: wait for a signal, then exit the process if the main thread does not end in time."""
        number = os.read(reader, 1)[0]
        while number not in self.SIGNALS:  # such as the signal of a timer
            number = os.read(reader, 1)[0]
        name = signal.Signals(number).name
        received = time.monotonic()
        while True:
            time.sleep(_POLL_SECONDS)
            now, wait = time.monotonic(), _wait
            if not self._training:
                if now > received + (_UNINTERRUPTIBLE_SECONDS if self.reason is None else _CLEANUP_SECONDS):
                    self._exit(_message_before_first_step(name), everywhere=False)
            elif wait is not None and now > max(wait[0], received) + wait[1]:
                self._exit(
                    f"{name}: the other ranks did not answer within {wait[1]:.0f} s: exited without a checkpoint of "
                    "this step; the same command resumes from the newest one",
                    everywhere=True,
                )

    def _exit(self, why: str, everywhere: bool) -> None:
        if everywhere:
            print(f"error: rank {rank()}: {why}", file=sys.stderr, flush=True)
        elif rank() == 0:
            print(f"error: {why}", file=sys.stderr, flush=True)
        self.leaving(why)
        for path in list(_half_written):
            with suppress(OSError):
                _remove(path)
        os._exit(INTERRUPTED)


def _announce(reason: str, advice: str = "") -> None:
    with suppress(OSError):
        os.write(2, f"\n{reason}: ending after this step with a checkpoint{advice}\n".encode())


def _message_before_first_step(name: str) -> str:
    return f"{name} before the first step: nothing was trained; the same command starts again"
