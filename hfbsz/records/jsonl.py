"""`records.jsonl`: all that was logged, one flat JSON object a line; what W&B and the page show is drawn from it."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfbsz.records.record import Reading
from hfbsz.system.disk import sync
from hfbsz.system.files import write_text

# JSON has no numbers that are not finite: they are written as texts, as in the JSON mapping of Protocol Buffers
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def as_json(value: float | str) -> float | str:
    """A value as it is written: a number that is not finite as a word."""
    if isinstance(value, str) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def from_json(value: Any) -> Any:
    """A value as it was before it was written."""
    return _WORDS.get(value, value) if isinstance(value, str) else value


NUMBER = "record"  # of a record in its file, from 0: what is missing, or there twice, shows by it


class JsonLines:
    """Appends readings to a file; every line is on its way to the disk before the next step."""

    def __init__(self, path: Path) -> None:
        if path.is_symlink():  # is not written through
            path.unlink()
        self._next = path.read_bytes().count(b"\n") if path.is_file() else 0
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, reading: Reading) -> dict[str, float | str]:
        """Append a line, and return it with its numbers as they are."""
        flat = {**reading.flat(), "time": round(time.time(), 3), NUMBER: self._next}
        self._file.write(json.dumps({name: as_json(value) for name, value in flat.items()}) + "\n")
        self._file.flush()
        self._next += 1
        return flat

    def sync(self) -> None:
        """Wait until all records are on the disk: a checkpoint of their steps is about to be."""
        os.fsync(self._file.fileno())
        sync(self._path.parent)

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._file.close()


def trim(path: Path, step: int) -> frozenset[tuple[str, int]]:
    """Cut records.jsonl back to what was written up to `step`, without the `final` record: a run that goes on writes it
    again. Returns (event, step) of the records cut off, now or by an earlier start, which W&B may have already. A line
    that a crash cut short goes too."""
    kept: list[dict[str, Any]] = []
    seen = path.with_name("sent.json")  # a start that was cut off sooner must not forget what the one before had sent
    cut, numbers = _seen(seen), []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            event, at = str(record["event"]), int(record["train/global_step"])
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        numbers.append(record.get(NUMBER))
        if at <= step and event != "final":
            kept.append(record)
        else:
            cut.add((event, at))
    if numbers == list(range(len(numbers))):  # else it stays visible that some are missing
        kept = [{**record, NUMBER: number} for number, record in enumerate(kept)]
    write_text(seen, json.dumps(sorted(cut)))
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return frozenset(cut)


def gaps(records: Sequence[Mapping[str, Any]]) -> str | None:
    """What is missing from a file's records, or there twice, by their numbers; None: nothing is."""
    numbers = [number for record in records if isinstance(number := record.get(NUMBER), int)]
    missing = sorted({*range(max(numbers, default=-1) + 1)} - {*numbers})
    doubles = sorted({number for number, count in Counter(numbers).items() if count > 1})
    told = [f"{what} {_some(found)}" for what, found in (("lacks", missing), ("holds twice", doubles)) if found]
    return " and ".join(told) if told else None


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(f"{number:,}" for number in numbers[:3]) + (", …" if len(numbers) > 3 else "")
    return f"{len(numbers):,} record{'s' * (len(numbers) > 1)} (number {shown})"


def _seen(path: Path) -> set[tuple[str, int]]:
    """(event, step) of records that an earlier start has cut off; none where that cannot be read."""
    try:
        return {(str(event), int(at)) for event, at in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()
