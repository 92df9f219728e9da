"""Whether a run overfitted, since when and by how much, in numbers and words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.records.evaluations import LOSS, is_evaluation
from hfbsz.records.run_data import CLOCK, STEPS, TOKENS, RunData, is_number

TRAIN, ONSET = "overfit/train_loss", "overfit/onset_step"


@dataclass(frozen=True)
class Moment:
    """One evaluation of both fixed parts, in evaluation mode; losses in nats per target."""

    step: int
    tokens: float
    epoch: float | None  # None: the rows of an epoch are not known
    train: float
    validation: float
    accuracy: float | None

    @property
    def gap(self) -> float:
        return self.validation - self.train

    @property
    def shown_gap(self) -> float:
        """The difference of both losses as they are shown, to four digits."""
        return round(self.validation, 4) - round(self.train, 4)

    def __str__(self) -> str:
        return f"step {self.step:,}" + ("" if self.epoch is None else f" (epoch {self.epoch:.2f})")


@dataclass(frozen=True)
class Overfitting:
    """The evaluations of a run in order, and the moments that matter."""

    moments: tuple[Moment, ...]
    best: Moment  # the lowest validation loss; of step 0: nothing is better than before training
    onset: Moment | None  # where overfitting began
    sure: Moment | None  # the evaluation that made it sure
    rise: float  # validation loss of the last evaluation − that of the best, nats/target
    lost: int | None = None  # step of the last evaluation, where its loss was not finite: it is none of `moments`

    @property
    def last(self) -> Moment:
        return self.moments[-1]

    @property
    def better(self) -> bool:
        """Whether any evaluation is better than before training."""
        return self.best.step > 0

    @property
    def lowest_after(self) -> Moment:
        """The lowest validation loss after the first step."""
        return min((moment for moment in self.moments if moment.step), key=lambda moment: moment.validation)

    @property
    def verdict(self) -> str:
        """What came of it, in a sentence or two."""
        if self.lost is not None:
            return f"The last evaluation, at step {self.lost:,}, is not finite: the run diverged."
        if not self.better:
            return (
                f"Not better than before training: the validation loss was {self.best.validation:.4f} nats/target at "
                f"step 0, and {self.lowest_after.validation:.4f} at its lowest since, at {self.lowest_after}."
            )
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
    best = min(moments, key=lambda moment: moment.validation)
    dated = [(record[ONSET], moment) for record, moment in zip(records, moments, strict=True) if _finite(record, ONSET)]
    onset = _at(moments, dated[-1][0]) if dated and best.step else None
    sure = next((moment for step, moment in dated if step == dated[-1][0]), None)
    newest = [record for record in run.records if is_evaluation(record)][-1]
    lost = None if _usable(newest) else int(newest[STEPS])
    return Overfitting(moments, best, onset, sure, moments[-1].validation - best.validation, lost)


def _usable(record: Mapping[str, Any]) -> bool:
    return is_evaluation(record) and all(_finite(record, name) for name in (TOKENS, TRAIN, LOSS))


def _moment(record: Mapping[str, Any], rows: float | None) -> Moment:
    return Moment(
        step=int(record[STEPS]),
        tokens=record[TOKENS],
        epoch=record[CLOCK] / rows if rows and _finite(record, CLOCK) else None,
        train=record[TRAIN],
        validation=record[LOSS],
        accuracy=record["eval/accuracy"] if _finite(record, "eval/accuracy") else None,
    )


def _at(moments: Sequence[Moment], step: object) -> Moment | None:
    return next((moment for moment in moments if moment.step == step), None)


def _finite(record: Mapping[str, Any], name: str) -> bool:
    value = record.get(name)
    return is_number(value) and math.isfinite(value)
