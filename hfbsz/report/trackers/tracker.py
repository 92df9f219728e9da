"""What every tracker of a run does, and a tracker that writes in a thread of its own.

A tracker gets each record once and must not harm the run: a fault is reported once and turns the tracker off;
records.jsonl holds every record.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hfbsz.display import one_line
from hfbsz.errors import UserError

Row = Mapping[str, Any]  # one line of records.jsonl
OPEN_SECONDS = 30.0  # time limit for opening a store, which may import large packages
FINISH_SECONDS = 60.0  # time limit for writing the remaining rows when a run ends
WAITING_ROWS = 10_000  # longest queue before a store counts as hung


class Tracker(Protocol):
    """Gets the records of a run; its methods do not raise and return after a bounded time."""

    def log(self, flat: Row) -> None:
        """Take one line of records.jsonl; returns at once."""
        ...

    def finish(self, exit_code: int = 0) -> bool:
        """End the run; returns whether all rows have been written."""
        ...


class Store(Protocol):
    """Where a tracker keeps rows; its methods may raise anything."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        ...

    def close(self) -> None:
        """Close it; raises if rows are missing."""
        ...


class ThreadedTracker:
    """Writes rows to a store in a thread of its own: a `Tracker`.

    `open_store` is called in that thread. `warn` is called in the caller's thread, once for a fault; `remedy` ends the
    warning and says how to write the missing rows.
    """

    def __init__(self, name: str, open_store: Callable[[], Store], warn: Callable[[str], None], remedy: str) -> None:
        self._name, self._open, self._warn, self._remedy = name, open_store, warn, remedy
        self._queue: queue.SimpleQueue[Row | None] = queue.SimpleQueue()  # None ends it
        self._fault: str | None = None
        self._on, self._opened = True, threading.Event()
        self._thread = threading.Thread(target=self._run, name=name.lower(), daemon=True)
        self._thread.start()
        if not self._opened.wait(OPEN_SECONDS):
            self._switch_off("it does not start")
        self._report()

    def log(self, flat: Row) -> None:
        """Queue one line of records.jsonl; returns at once."""
        if self._on:
            self._queue.put(dict(flat))  # a copy, since the caller may change the row
            if self._queue.qsize() > WAITING_ROWS:
                self._switch_off(f"it leaves more than {WAITING_ROWS:,} rows waiting")
        self._report()

    def finish(self, exit_code: int = 0) -> bool:
        """Write the remaining rows, for a bounded time; returns whether all rows have been written."""
        if self._on:
            self._queue.put(None)
            self._thread.join(FINISH_SECONDS)
            if self._thread.is_alive():
                self._switch_off("it does not end")
        complete, self._on = self._on, False
        self._report()
        return complete

    def _switch_off(self, reason: str) -> None:
        if self._on:
            self._on = False
            self._fault = f"{self._name} is off for the rest of the run, {reason}; {self._remedy}"

    def _report(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            self._warn(fault)

    def _run(self) -> None:
        """Open the store, write rows until the end, close it."""
        try:
            store = self._open()
            self._opened.set()
            while self._on:
                rows = self._next_rows()
                store.write([row for row in rows if row is not None])
                if rows[-1] is None:
                    store.close()
                    break
        except Exception as fault:  # no fault of a tracker may end the run
            self._switch_off(reason_of(fault))
        finally:
            self._opened.set()

    def _next_rows(self) -> list[Row | None]:
        """All rows that wait, at least one; None at the end of them ends the run."""
        rows = [self._queue.get()]
        while rows[-1] is not None and not self._queue.empty():
            rows.append(self._queue.get())
        return rows


def reason_of(fault: Exception) -> str:
    """One line for a fault: that of a UserError, else the exception's type and the first line of its message."""
    if isinstance(fault, UserError):
        return fault.lines[0]
    return one_line(f"{type(fault).__name__}: {fault}".splitlines()[0].removesuffix(": "))[:200]
