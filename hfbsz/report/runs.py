"""What the folder of a run holds, read back: records, plan, status and recipe."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from hfbsz.errors import UserError

TOKENS, STEPS, SECONDS = "train/num_input_tokens_seen", "train/global_step", "train/seconds"
CLOCK = "train/sequences"
_FILES = ("records.jsonl", "plan.json", "status.json", "recipe.yaml", "machine.json")

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class RunData:
    """What a run's folder says; what is missing from it is empty."""

    folder: Path
    records: tuple[Mapping[str, Any], ...]
    plan: Mapping[str, Any]
    status: Mapping[str, Any]
    recipe: str  # YAML text
    machine: Mapping[str, Any] = field(default_factory=dict)

    def series(self, metric: str, axis: str, full: bool | None = None) -> tuple[Array, Array]:
        """A metric over an axis; `full`: only evaluations of the whole set, or only of its fixed part.

        An evaluation of the best weights, taken up again at the end, is no point of a curve.
        """
        found = [
            (record[axis], record[metric])
            for record in self.records
            if is_number(record.get(axis)) and is_number(record.get(metric))
            if full is None or bool(record.get("eval/full")) == full
            if not record.get("eval/best")
        ]
        x, y = np.array(found, dtype=float).reshape(-1, 2).T
        return x, np.where(np.isfinite(y), y, np.nan)

    @property
    def rows(self) -> float | None:
        """Training rows: an epoch."""
        return (self.plan.get("facts") or {}).get("rows")

    def values(self, metric: str) -> list[float]:
        """The finite values of a metric, in order."""
        values = [record.get(metric) for record in self.records]
        return [value for value in values if is_number(value) and math.isfinite(value)]

    def largest(self, metric: str) -> float | None:
        return max(self.values(metric), default=None)


def read_run(folder: Path) -> RunData:
    """Read the folder of a run; raises UserError where it is none."""
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder}: no records.jsonl: not the folder of a run")
    records, plan, status, recipe, machine = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / name for name in _FILES)
    )
    return RunData(folder.resolve(), _records(records), _mapping(plan), _mapping(status), recipe, _mapping(machine))


def _records(text: str) -> tuple[Mapping[str, Any], ...]:
    """The lines that can be read: a crash cuts one, and what a resumed run did again replaces what it did before."""
    records: list[Mapping[str, Any]] = []
    last = -math.inf
    for record in filter(None, map(_mapping, text.splitlines())):
        step = record.get(STEPS)
        if record.get("event") == "step" and is_number(step):
            if step <= last:
                records = [earlier for earlier in records if earlier.get(STEPS, -1) < step]
            last = step
        records.append(record)
    return tuple(records)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def names(runs: Sequence[RunData]) -> list[str]:
    """As much of the end of each folder's path as tells the runs apart."""
    depth = 1
    while True:
        names = ["/".join(run.folder.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names) or depth > max(len(run.folder.parts) for run in runs):
            return names
        depth += 1
