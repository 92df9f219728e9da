"""TensorBoard: an event file in the run's folder, over tokens.

The step of an event is the number of input tokens, so that runs of different batch sizes are comparable.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfbsz.records.metrics import LAYERS
from hfbsz.records.run_data import TOKENS
from hfbsz.records.shapes import is_number
from hfbsz.report.trackers.tracker import Row

_FILES = "events.out.tfevents.*.hfbsz"


class TensorBoardStore:
    """An event file in a folder: a `Store`. It begins with `earlier`, the rows of earlier starts, and replaces their
    event files, so that a step trained again after a resume is there once."""

    def __init__(self, folder: Path, earlier: Sequence[Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        replaced = list(folder.glob(_FILES))
        path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}.hfbsz"
        self._event, self._summary = Event, Summary
        self._records = RecordWriter(path.open("wb"))
        start = SessionLog(status=SessionLog.START)  # has a page that is open now drop what it has read
        for event in (Event(file_version="brain.Event:2"), Event(session_log=start, step=0)):
            event.wall_time = time.time()
            self._records.write(event.SerializeToString())
        self.write(earlier)
        for other in replaced:
            other.unlink()

    def write(self, rows: Sequence[Row]) -> None:
        """Write each row as one event, without what is not a number."""
        for row in rows:
            values = [self._summary.Value(tag=name, simple_value=float(row[name])) for name in row if _drawn(name, row)]
            event = self._event(
                wall_time=float(row.get("time", time.time())),
                step=int(row.get(TOKENS, 0)),
                summary=self._summary(value=values),
            )
            self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()


def _drawn(name: str, row: Row) -> bool:
    value: Any = row[name]
    return is_number(value) and name not in ("time", "record") and not name.startswith(LAYERS)
