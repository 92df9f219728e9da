"""What the folder of a run holds, read back: records, plan, status and recipe."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.errors import UserError
from hfbsz.records.folder import read_status
from hfbsz.records.jsonl import gaps
from hfbsz.records.shapes import is_number, machine_in, plan_in, record_in
from hfbsz.system.files import json_object

TOKENS, STEPS, SECONDS = "train/num_input_tokens_seen", "train/global_step", "train/seconds"
CLOCK = "train/sequences"
_FILES = ("records.jsonl", "plan.json", "recipe.yaml", "machine.json", "rows.json")

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
    preview: Mapping[str, Any] = field(default_factory=dict)  # a few training rows, with what is learned (data/preview)
    notes: tuple[str, ...] = ()  # what of it could not be read

    def series(self, metric: str, axis: str) -> tuple[Array, Array]:
        """A metric over an axis."""
        found = [
            (record[axis], record[metric])
            for record in self.records
            if is_number(record.get(axis)) and is_number(record.get(metric))
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
    records, plan, recipe, machine, rows = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / name for name in _FILES)
    )
    known = plan_in(plan)
    notes = [] if known is not None or not plan else [f"{folder / 'plan.json'}: not a run's plan: read without it"]
    lines = [record for record in map(record_in, records.splitlines()) if record]
    if (missing := gaps(lines)) is not None:
        notes.append(f"{folder / 'records.jsonl'}: {missing}")
    told = _records(lines), known or {}, read_status(folder)
    return RunData(folder.resolve(), *told, recipe, machine_in(machine), json_object(rows) or {}, tuple(notes))


def _records(lines: Iterable[dict[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The lines that can be read: a crash cuts one, and what a resumed run did again replaces what it did before."""
    records: list[Mapping[str, Any]] = []
    last = -math.inf
    for record in lines:
        step = record.get(STEPS)
        if record.get("event") == "step" and is_number(step):
            if step <= last:
                records = [earlier for earlier in records if earlier.get(STEPS, -1) < step]
            last = step
        records += _as_now(record, records) if record.get("event") in ("eval", "final") else [record]
    return tuple(records)


def _as_now(record: dict[str, Any], before: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A record of an evaluation in the form of today; `before`: those read so far, of which it may replace the last.

    Earlier versions left a loss that was not finite out of its record: it is NaN again, so that no other takes its
    place.

    Earlier versions wrote evaluations of the whole set as `eval/…` too, marked by `eval/full`, and by `eval/best` where
    the best weights were evaluated at the end: these become the `full/…` (and `last/…`) of a final record. The loss of
    the fixed part at that moment is known from the gap of overfitting, and stays `eval/loss`.
    """
    event, whole, best = record["event"], record.pop("eval/full", None), record.pop("eval/best", None)
    parts = ["eval"] if event == "eval" else [name[:-5] for name in record if name.endswith("/rows")]
    record = {f"{part}/loss": math.nan for part in parts} | record
    if not whole and not best:
        return [record]
    axes = {name: value for name, value in record.items() if not name.startswith(("eval/", "overfit/"))}
    at, gap, train = (record.get(name) for name in (STEPS, "overfit/gap", "overfit/train_loss"))
    step = record.get("overfit/best_step", at) if best else at
    final = {**axes, "event": "final", "model/step": step}
    final |= {f"full/{name[5:]}": value for name, value in record.items() if whole and name.startswith("eval/")}
    if best:
        if before and before[-1].get("event") == "final" and before[-1].get(STEPS) == at != step:
            last = before.pop()
            final |= {f"last/{name[5:]}": value for name, value in last.items() if name.startswith("full/")}
        return [final]
    if not is_number(gap) or not is_number(train):
        return [final]
    watched = {name: value for name, value in record.items() if name.startswith("overfit/")}
    return [{**axes, **watched, "eval/loss": train + gap}, final]


def names(runs: Sequence[RunData]) -> list[str]:
    """As much of the end of each folder's path as tells the runs apart."""
    depth = 1
    while True:
        names = ["/".join(run.folder.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names) or depth > max(len(run.folder.parts) for run in runs):
            return names
        depth += 1
