"""What the evaluations of a run say: of the model it keeps, of its best moment, and whether it overfitted, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.report.runs import CLOCK, STEPS, TOKENS, RunData, is_number

TRAIN, GAP, RISE = "overfit/train_loss", "overfit/gap", "overfit/rise"
LOSS = "eval/loss"
BEST, ONSET = "overfit/best_step", "overfit/onset_step"


@dataclass(frozen=True)
class Moment:
    """One evaluation of both fixed parts, in evaluation mode; losses in nats per target."""

    step: int
    tokens: float
    epoch: float | None  # None: the rows of an epoch are not known
    train: float
    validation: float
    accuracy: float | None
    whole: bool  # the accuracy is of the whole validation set

    @property
    def gap(self) -> float:
        return self.validation - self.train

    def __str__(self) -> str:
        return f"step {self.step:,}" + ("" if self.epoch is None else f" (epoch {self.epoch:.2f})")


@dataclass(frozen=True)
class Overfitting:
    """The evaluations of a run in order, and the moments that matter."""

    moments: tuple[Moment, ...]
    best: Moment
    onset: Moment | None  # where overfitting began
    sure: Moment | None  # the evaluation that made it sure
    rise: float  # validation loss of the last evaluation − that of the best, nats/target

    @property
    def last(self) -> Moment:
        return self.moments[-1]

    @property
    def verdict(self) -> str:
        """What came of it, in a sentence or two."""
        change = "has fallen" if self.last.train < self.best.train else "has risen"
        if self.onset is not None and self.onset == self.best and self.rise > 0:
            return (
                f"It overfits. Since {self.best} the validation loss has risen by {self.rise:.3f} nats/target, while "
                f"that of the training rows {change} by {abs(self.last.train - self.best.train):.3f}."
            )
        if self.onset is not None:
            since = f"; since then the loss has risen by {self.rise:.3f} nats/target" if self.rise > 0 else ""
            return f"Overfitting began at {self.onset}, but was made up for: the best is at {self.best}{since}."
        if self.rise > 0:
            return (
                f"No overfitting is sure. The last evaluation is {self.rise:.3f} nats/target above the best, at "
                f"{self.best}: no more than chance among its rows may make, or training rows that fit no better."
            )
        return "No overfitting seen: the last evaluation is the best."


def overfitting_of(run: RunData) -> Overfitting | None:
    """None where the run did not watch its training rows, or has not evaluated twice yet."""
    found = {int(record[STEPS]): record for record in run.records if _usable(record)}
    if len(found) < 2:
        return None
    records = [found[step] for step in sorted(found)]
    moments = tuple(_moment(record, run.rows) for record in records)
    lowest = min(moments, key=lambda moment: moment.validation)
    best = _at(moments, records[-1].get(BEST)) or lowest
    dated = [(record[ONSET], moment) for record, moment in zip(records, moments, strict=True) if _finite(record, ONSET)]
    onset = _at(moments, dated[-1][0]) if dated else None
    sure = next((moment for step, moment in dated if step == dated[-1][0]), None)
    rise = records[-1][RISE] if _finite(records[-1], RISE) else moments[-1].validation - best.validation
    return Overfitting(moments, best, onset, sure, rise)


def of_best_weights(run: RunData) -> Mapping[str, Any] | None:
    """The evaluation of the best weights, which the saved model holds; None where it holds the last ones."""
    evaluations = [record for record in run.records if record.get("event") == "eval"]
    return evaluations[-1] if evaluations and evaluations[-1].get("eval/best") else None


def kept_evaluation(run: RunData) -> Mapping[str, Any]:
    """The evaluation of the model that a finished run keeps."""
    return of_best_weights(run) or [record for record in run.records if _is_evaluation(record)][-1]


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    return record.get("event") == "eval" and is_number(record.get(LOSS)) and not record.get("eval/best")


def validation_curve(run: RunData) -> list[Mapping[str, Any]]:
    """Evaluations of the fixed part in order, from the first step on; `eval/loss` is that of the fixed part in each."""
    records: list[Mapping[str, Any]] = []
    for record in run.records:
        if not (_is_evaluation(record) and record[STEPS]):
            continue
        if is_number(record.get(GAP)):
            records.append({**record, LOSS: record[TRAIN] + record[GAP]})
        elif not record.get("eval/full"):
            records.append(record)
    return records


def best_evaluation(run: RunData) -> Mapping[str, Any] | None:
    """The evaluation of the lowest validation loss (fixed part)."""
    finite = [record for record in validation_curve(run) if math.isfinite(record[LOSS])]
    return min(finite, key=lambda record: record[LOSS], default=None)


def held_weights(run: RunData) -> str | None:
    """Which weights the saved model holds; None where none is saved yet."""
    if of_best_weights(run) is not None:
        return "best"
    return "last" if run.status.get("state") in ("finished", "preempted") else None


def stopped_early(run: RunData) -> bool | None:
    """Whether a run ended by its own choice before its budget did; None while that is open."""
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    if run.status.get("state") != "finished" or clock is None or not is_number(planned):
        return None
    return clock < planned


def _usable(record: Mapping[str, Any]) -> bool:
    if record.get("event") != "eval" or record.get("eval/best"):
        return False
    return all(_finite(record, name) for name in (STEPS, TOKENS, TRAIN)) and _validation(record) is not None


def _validation(record: Mapping[str, Any]) -> float | None:
    """The loss of the validation's fixed part: at the end `eval/loss` is that of the whole set."""
    if _finite(record, GAP):
        return record[TRAIN] + record[GAP]
    return record[LOSS] if _finite(record, LOSS) and not record.get("eval/full") else None


def _moment(record: Mapping[str, Any], rows: float | None) -> Moment:
    validation = _validation(record)
    assert validation is not None
    return Moment(
        step=int(record[STEPS]),
        tokens=record[TOKENS],
        epoch=record[CLOCK] / rows if rows and _finite(record, CLOCK) else None,
        train=record[TRAIN],
        validation=validation,
        accuracy=record["eval/accuracy"] if _finite(record, "eval/accuracy") else None,
        whole=bool(record.get("eval/full")),
    )


def _at(moments: Sequence[Moment], step: object) -> Moment | None:
    return next((moment for moment in moments if moment.step == step), None)


def _finite(record: Mapping[str, Any], name: str) -> bool:
    value = record.get(name)
    return is_number(value) and math.isfinite(value)
