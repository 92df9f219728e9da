"""Read the folder of a run: its records, plan, status and recipe."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.errors import UserError
from hfbsz.records.folder import read_status
from hfbsz.records.jsonl import gaps
from hfbsz.records.shapes import is_number, parse_machine, parse_plan, parse_record
from hfbsz.system.files import json_object

TOKENS, STEPS, SECONDS = "train/num_input_tokens_seen", "train/global_step", "train/seconds"
CLOCK = "train/sequences"
_FILES = ("records.jsonl", "plan.json", "recipe.yaml", "machine.json", "rows.json")

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class RunData:
    """The contents of a run's folder; a file that is missing or cannot be read gives an empty value."""

    folder: Path
    records: tuple[Mapping[str, Any], ...]
    plan: Mapping[str, Any]
    status: Mapping[str, Any]
    recipe: str  # YAML text
    machine: Mapping[str, Any] = field(default_factory=dict)
    preview: Mapping[str, Any] = field(default_factory=dict)  # a few training rows and their targets (data/preview)
    notes: tuple[str, ...] = ()  # problems of reading, one line each

    def series(self, metric: str, axis: str) -> tuple[Array, Array]:
        """The points (x, y) of a metric over an axis, two arrays of shape [records that have both]; a value that is not
        finite is NaN."""
        points = [
            (record[axis], record[metric])
            for record in self.records
            if is_number(record.get(axis)) and is_number(record.get(metric))
        ]
        x, y = np.array(points, dtype=float).reshape(-1, 2).T
        return x, np.where(np.isfinite(y), y, np.nan)

    @property
    def rows(self) -> float | None:
        """The number of training rows, which is one epoch; None if the plan does not give it."""
        return (self.plan.get("facts") or {}).get("rows")

    @property
    def batches(self) -> list[float]:
        """The global batches in order, sequences: planned, or those of the records if the run decides them."""
        phases = self.plan.get("phases") or []
        decided = all(phase.get("steps") != 0 for phase in phases)
        return [phase["batch"] for phase in phases] if phases and decided else self.values("batch/global")

    def values(self, metric: str) -> list[float]:
        """The finite values of a metric, in the order of the records."""
        values = [record.get(metric) for record in self.records]
        return [value for value in values if is_number(value) and math.isfinite(value)]

    def largest(self, metric: str) -> float | None:
        """The largest finite value of a metric; None if there is none."""
        return max(self.values(metric), default=None)


def read_run(folder: Path) -> RunData:
    """Read the folder of a run. Raises UserError if it has no records.jsonl; other files are optional."""
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder}: no records.jsonl: not the folder of a run")
    records, plan_text, recipe, machine, rows = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / name for name in _FILES)
    )
    notes = []
    plan = parse_plan(plan_text)
    if plan is None and plan_text:
        notes.append(f"{folder / 'plan.json'}: not the plan of a run: ignored")
    lines = [record for record in map(parse_record, records.splitlines()) if record]
    if (problem := gaps(lines)) is not None:
        notes.append(f"{folder / 'records.jsonl'}: {problem}")
    return RunData(
        folder.resolve(),
        _records(lines),
        plan or {},
        read_status(folder),
        recipe,
        parse_machine(machine),
        json_object(rows) or {},
        tuple(notes),
    )


def _records(lines: Iterable[dict[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The records of a run in their current form. Steps that a resumed run trained again replace those before."""
    records: list[Mapping[str, Any]] = []
    last = -math.inf
    for record in lines:
        step = record.get(STEPS)
        if record.get("event") == "step" and is_number(step):
            if step <= last:
                records = [earlier for earlier in records if earlier.get(STEPS, -1) < step]
            last = step
        records += _in_current_form(record, records) if record.get("event") in ("eval", "final") else [record]
    return tuple(records)


def _in_current_form(record: dict[str, Any], before: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A record of an evaluation, converted from the form of earlier versions. `before`: the records read so far; its
    last one is removed if the result replaces it.

    Earlier versions omitted a loss that was not finite: it becomes NaN, so that no other loss takes its place.

    Earlier versions also wrote evaluations of complete sets as `eval/…`, marked by `eval/full`, or by `eval/best` if
    the best weights were evaluated at the end: they become the `full/…` (and `last/…`) of a final record. The loss of
    the fixed part at the same step follows from `overfit/gap`, and becomes `eval/loss`.
    """
    event, is_full, is_best = record["event"], record.pop("eval/full", None), record.pop("eval/best", None)
    parts = ["eval"] if event == "eval" else [name[:-5] for name in record if name.endswith("/rows")]
    record = {f"{part}/loss": math.nan for part in parts} | record
    if not is_full and not is_best:
        return [record]
    axes = {name: value for name, value in record.items() if not name.startswith(("eval/", "overfit/"))}
    at, gap, train = (record.get(name) for name in (STEPS, "overfit/gap", "overfit/train_loss"))
    step = record.get("overfit/best_step", at) if is_best else at
    final = {**axes, "event": "final", "model/step": step}
    final |= {f"full/{name[5:]}": value for name, value in record.items() if is_full and name.startswith("eval/")}
    if is_best:
        if before and before[-1].get("event") == "final" and before[-1].get(STEPS) == at != step:
            last = before.pop()
            final |= {f"last/{name[5:]}": value for name, value in last.items() if name.startswith("full/")}
        return [final]
    if not is_number(gap) or not is_number(train):
        return [final]
    overfit = {name: value for name, value in record.items() if name.startswith("overfit/")}
    return [{**axes, **overfit, "eval/loss": train + gap}, final]


def short_names(runs: Sequence[RunData]) -> list[str]:
    """A name for each run: that of its folder."""
    return short_paths([run.folder for run in runs])


def short_paths(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its last parts, as few as make the names different."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names) or depth > max(len(path.parts) for path in paths):
            return names
        depth += 1
