"""`records.jsonl`: everything that a run logs, one flat JSON object per line; W&B and the page show these records."""

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

# JSON has no NaN or infinity: they are written as strings, as in the JSON mapping of Protocol Buffers
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def as_json(value: float | str) -> float | str:
    """A value as it is written to JSON: "NaN", "Infinity" or "-Infinity" for a number that is not finite."""
    if isinstance(value, str) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def from_json(value: Any) -> Any:
    """A value read from JSON, as it was before `as_json`."""
    return _WORDS.get(value, value) if isinstance(value, str) else value


NUMBER = "record"  # number of a record in its file, from 0, by which missing and duplicate records are detected


class JsonLines:
    """Appends readings to a file; every line is flushed to the operating system before the next step."""

    def __init__(self, path: Path) -> None:
        if path.is_symlink():  # the file that it points to stays unchanged
            path.unlink()
        self._next = path.read_bytes().count(b"\n") if path.is_file() else 0
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, reading: Reading) -> dict[str, float | str]:
        """Append a reading as one line; returns the record, with NaN and infinity as numbers."""
        flat = {**reading.flat(), "time": round(time.time(), 3), NUMBER: self._next}
        self._file.write(json.dumps({name: as_json(value) for name, value in flat.items()}) + "\n")
        self._file.flush()
        self._next += 1
        return flat

    def sync(self) -> None:
        """Wait until all records are on the disk. Called before a checkpoint of their steps is saved."""
        os.fsync(self._file.fileno())
        sync(self._path.parent)

    def close(self) -> None:
        """Sync the file to disk and close it."""
        try:
            self.sync()
        finally:
            self._file.close()


def trim(path: Path, step: int) -> frozenset[tuple[str, int]]:
    """Remove the records after `step` and the `final` record from records.jsonl: a resumed run writes them again. Lines
    that a crash left incomplete are removed too.

    Returns (event, step) of the records removed now or by earlier starts: W&B may already have them.
    """
    remaining: list[dict[str, Any]] = []
    sent = path.with_name("sent.json")  # adds up over starts: one that crashed early has not logged its steps again
    removed, numbers = _read_sent(sent), []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            event, at = str(record["event"]), int(record["train/global_step"])
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        numbers.append(record.get(NUMBER))
        if at <= step and event != "final":
            remaining.append(record)
        else:
            removed.add((event, at))
    if numbers == list(range(len(numbers))):  # else the numbers stay, so that `gaps` still reports the missing ones
        remaining = [{**record, NUMBER: number} for number, record in enumerate(remaining)]
    write_text(sent, json.dumps(sorted(removed)))
    write_text(path, "".join(json.dumps(record) + "\n" for record in remaining))
    return frozenset(removed)


def gaps(records: Sequence[Mapping[str, Any]]) -> str | None:
    """A message about missing and duplicate numbers in a file's records; None if there are none."""
    numbers = [number for record in records if isinstance(number := record.get(NUMBER), int)]
    missing = sorted({*range(max(numbers, default=-1) + 1)} - {*numbers})
    duplicates = sorted({number for number, count in Counter(numbers).items() if count > 1})
    parts = [f"{verb} {_listed(group)}" for verb, group in (("lacks", missing), ("holds twice", duplicates)) if group]
    return " and ".join(parts) if parts else None


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(f"{number:,}" for number in numbers[:3]) + (", …" if len(numbers) > 3 else "")
    return f"{len(numbers):,} record{'s' * (len(numbers) > 1)} (number {shown})"


def _read_sent(path: Path) -> set[tuple[str, int]]:
    """(event, step) of the records that earlier starts removed; empty if the file cannot be read."""
    try:
        return {(str(event), int(at)) for event, at in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()
