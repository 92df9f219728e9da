"""Scores of lm-evaluation-harness in the records of a run: `harness/<task>/<measure>`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hfbsz.records.metrics import metric
from hfbsz.records.shapes import is_number

EVENT, PREFIX, ERROR, EXAMPLES = "harness", "harness/", "_stderr", "examples"
SECONDS = "harness/seconds"  # wall time of scoring all tasks
WEIGHTS = "model/step"  # optimizer step of the weights that were scored


@dataclass(frozen=True)
class Score:
    """One measure of a task."""

    task: str
    measure: str  # `acc`, `acc_norm`, …
    value: float
    error: float | None  # standard error; None: not known
    examples: int | None
    step: int  # optimizer step of the weights

    @property
    def name(self) -> str:
        """`<task>/<measure>`."""
        return f"{self.task}/{self.measure}"

    @property
    def heading(self) -> str:
        """What is measured, from the table of metrics."""
        return metric(PREFIX + self.name).heading

    @property
    def form(self) -> str:
        """How a value is formatted, from the table of metrics."""
        return metric(PREFIX + self.name).format

    @property
    def shown(self) -> str:
        """Value and standard error: `0.412 ± 0.025`."""
        return f"{self.value:{self.form}}" + (f" ± {self.error:{self.form}}" if self.error is not None else "")


def scores(records: Iterable[Mapping[str, Any]], step: float | None = None) -> list[Score]:
    """The newest scores of each task: of the weights of `step` if they were scored, else of the latest weights that
    were. A task that was scored again counts once."""
    newest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.get("event") == EVENT and is_number(record.get(WEIGHTS)):
            for task in _tasks(record):
                before = newest.get(task)
                if before is None or _rank(record, step) >= _rank(before, step):
                    newest[task] = record
    return [score for task in sorted(newest) for score in _scores(task, newest[task])]


def same(record: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a record holds exactly these scores; the time that they took is ignored."""
    names = {name for name in (*record, *values) if name == WEIGHTS or (name.startswith(PREFIX) and name != SECONDS)}
    return record.get("event") == EVENT and all(record.get(name) == values.get(name) for name in names)


def _rank(record: Mapping[str, Any], step: float | None) -> tuple[bool, float]:
    return record[WEIGHTS] == step, record[WEIGHTS]


def _tasks(record: Mapping[str, Any]) -> set[str]:
    names = [name.removeprefix(PREFIX) for name in record if name.startswith(PREFIX)]
    return {name.rpartition("/")[0] for name in names} - {""}


def _scores(task: str, record: Mapping[str, Any]) -> Iterable[Score]:
    values = {
        name.removeprefix(f"{PREFIX}{task}/"): value
        for name, value in record.items()
        if name.startswith(f"{PREFIX}{task}/") and is_number(value)
    }
    count = values.pop(EXAMPLES, None)
    for measure, value in values.items():
        if not measure.endswith(ERROR):
            error = values.get(f"{measure}{ERROR}")
            yield Score(task, measure, float(value), error, None if count is None else int(count), int(record[WEIGHTS]))
