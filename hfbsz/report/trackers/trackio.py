"""Trackio: the rows of a run in its local database, over tokens.

Trackio draws a metric over its step, so the step of a row is its number of input tokens: runs of different batch sizes
are then comparable. Its x-axis menu offers optimizer steps, sequences and training time too.
"""

import importlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hfbsz.errors import UserError
from hfbsz.records.metrics import LAYERS
from hfbsz.records.run_data import STEPS, TOKENS
from hfbsz.report.trackers.tracker import Row

_PRINTING = ("trackio", "trackio.run", "trackio.utils", "trackio.deploy")  # modules that print


class TrackioStore:
    """A run of Trackio, created or continued: a `Store`. Rows of `earlier` that are not there are written at once, and
    rows that are there already, because an interrupted start wrote them, are not written again.

    With TRACKIO_SERVER_URL or TRACKIO_SPACE_ID, Trackio sends the rows to a server, whose rows are not read back:
    `earlier` then counts as sent.
    """

    def __init__(
        self, project: str, name: str, group: str | None, config: Mapping[str, Any], earlier: Sequence[Row]
    ) -> None:
        _silence()
        import trackio

        options: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(project, name=name, group=group, config=dict(config), resume="allow", **options)
        self._is_remote = trackio.context_vars.current_server.get() is not None
        self._there = Counter(map(_key, earlier)) if self._is_remote else self._stored()
        self._written: Counter[tuple[Any, ...]] = Counter()
        self.write(earlier)

    def write(self, rows: Sequence[Row]) -> None:
        """Hand rows to Trackio, which writes them within a second."""
        for row in rows:
            key = _key(row)
            self._written[key] += 1
            if self._there[key]:
                self._there[key] -= 1
                continue
            values = {name: value for name, value in row.items() if name != "time" and not name.startswith(LAYERS)}
            self._run.log(values, step=int(row.get(TOKENS, 0)))

    def close(self) -> None:
        """End the run; raises UserError if rows did not arrive: Trackio itself only warns of its faults."""
        from trackio.sqlite_storage import SQLiteStorage

        self._run.finish()
        if self._is_remote:
            if SQLiteStorage.has_pending_data(self._run.project):
                raise UserError(
                    "its server did not take all rows; Trackio sends them with the next run of this project"
                )
        elif missing := (self._written - self._stored()).total():
            raise UserError(f"{missing:,} of {self._written.total():,} rows are not in its database")

    def _stored(self) -> Counter[tuple[Any, ...]]:
        """The keys of the rows in Trackio's database."""
        from trackio.sqlite_storage import SQLiteStorage

        return Counter(map(_key, SQLiteStorage.get_logs(self._run.project, self._run.name, run_id=self._run.id)))


def _key(row: Row) -> tuple[Any, ...]:
    """What identifies a row: a step that is trained again after a resume has the same key."""
    return row.get("event"), row.get(STEPS), row.get("state")


def _silence() -> None:
    """Keep Trackio's messages and warnings off the terminal: a name in a module hides the built-in `print`."""
    warnings.filterwarnings("ignore", module=r"trackio\.")
    for name in _PRINTING:
        importlib.import_module(name).print = lambda *_, **__: None  # type: ignore[attr-defined]
