"""Whether a run overfitted, since when and by how much, as numbers and as a sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.records.evaluations import LOSS, is_evaluation
from hfbsz.records.run_data import CLOCK, STEPS, TOKENS, RunData, is_number

_ACCURACIES = ("eval/accuracy", "eval/preference_accuracy")  # of which a task has at most one

TRAIN, ONSET = "overfit/train_loss", "overfit/onset_step"


@dataclass(frozen=True)
class Moment:
    """One evaluation of validation and training rows (fixed parts), in evaluation mode; losses in nats/target."""

    step: int
    tokens: float
    epoch: float | None  # None: the number of training rows is not known
    train: float  # loss on training rows
    validation: float  # loss on validation rows
    accuracy: float | None  # on validation rows, of labels or of preferences; None: of another task

    @property
    def gap(self) -> float:
        """Generalization gap: validation loss − loss on training rows, nats/target."""
        return self.validation - self.train

    @property
    def shown_gap(self) -> float:
        """The gap between the two losses as they are displayed, rounded to four decimals."""
        return round(self.validation, 4) - round(self.train, 4)

    def __str__(self) -> str:
        return f"step {self.step:,}" + ("" if self.epoch is None else f" (epoch {self.epoch:.2f})")


@dataclass(frozen=True)
class Overfitting:
    """The evaluations of a run in order, with the best one and the onset of overfitting."""

    moments: tuple[Moment, ...]
    best: Moment  # lowest validation loss; step 0: no evaluation is better than before training
    onset: Moment | None  # the evaluation after which the run overfitted; None: not detected
    confirmed: Moment | None  # the first evaluation significantly worse than `onset`
    rise: float  # validation loss of the last evaluation − that of the best one, nats/target
    diverged_at: int | None = None  # step of the last evaluation if its loss is not finite; it is not in `moments`

    @property
    def last(self) -> Moment:
        """The last evaluation with finite losses."""
        return self.moments[-1]

    @property
    def better(self) -> bool:
        """Whether any evaluation is better than the one before training."""
        return self.best.step > 0

    @property
    def lowest_after(self) -> Moment:
        """The evaluation with the lowest validation loss, without the one before training."""
        return min((moment for moment in self.moments if moment.step), key=lambda moment: moment.validation)

    @property
    def verdict(self) -> str:
        """Whether the run overfitted, in one or two sentences."""
        if self.diverged_at is not None:
            return f"The run diverged: the loss of the last evaluation, at step {self.diverged_at:,}, is not finite."
        if not self.better:
            return (
                f"Not better than before training: the validation loss was {self.best.validation:.4f} nats/target at "
                f"step 0; the lowest since is {self.lowest_after.validation:.4f}, at {self.lowest_after}."
            )
        change = "fell" if self.last.train < self.best.train else "rose"
        if self.onset is not None and self.onset == self.best and self.rise > 0:
            return (
                f"The run overfits: since {self.best} the validation loss rose by {self.rise:.3f} nats/target, while "
                f"the loss on training rows {change} by {abs(self.last.train - self.best.train):.3f} nats/target."
            )
        if self.onset is not None:
            since = f"; since then it rose by {self.rise:.3f} nats/target" if self.rise > 0 else ""
            return (
                f"Overfitting began at {self.onset}, but the validation loss recovered: its lowest value is at "
                f"{self.best}{since}."
            )
        if self.rise > 0:
            return (
                f"No significant overfitting: the last validation loss is {self.rise:.3f} nats/target above the best, "
                f"at {self.best}. The difference is within sampling noise, or the loss on training rows did not fall."
            )
        return "No overfitting: the last evaluation is the best."


def overfitting_of(run: RunData) -> Overfitting | None:
    """The evaluations of a run for its overfitting report.

    None if the run did not evaluate training rows (`eval.watch`), or has fewer than two finite evaluations.
    """
    by_step = {int(record[STEPS]): record for record in run.records if _is_complete(record)}
    if len(by_step) < 2:
        return None
    records = [by_step[step] for step in sorted(by_step)]
    moments = tuple(_moment(record, run.rows) for record in records)
    best = min(moments, key=lambda moment: moment.validation)
    onsets = [
        (record[ONSET], moment) for record, moment in zip(records, moments, strict=True) if _finite(record, ONSET)
    ]
    onset = _moment_of_step(moments, onsets[-1][0]) if onsets and best.step else None
    confirmed = next((moment for step, moment in onsets if step == onsets[-1][0]), None)
    newest = [record for record in run.records if is_evaluation(record)][-1]
    diverged_at = None if _is_complete(newest) else int(newest[STEPS])
    return Overfitting(moments, best, onset, confirmed, moments[-1].validation - best.validation, diverged_at)


def _is_complete(record: Mapping[str, Any]) -> bool:
    return is_evaluation(record) and all(_finite(record, name) for name in (TOKENS, TRAIN, LOSS))


def _moment(record: Mapping[str, Any], rows: float | None) -> Moment:
    return Moment(
        step=int(record[STEPS]),
        tokens=record[TOKENS],
        epoch=record[CLOCK] / rows if rows and _finite(record, CLOCK) else None,
        train=record[TRAIN],
        validation=record[LOSS],
        accuracy=next((record[name] for name in _ACCURACIES if _finite(record, name)), None),
    )


def _moment_of_step(moments: Sequence[Moment], step: object) -> Moment | None:
    return next((moment for moment in moments if moment.step == step), None)


def _finite(record: Mapping[str, Any], name: str) -> bool:
    value = record.get(name)
    return is_number(value) and math.isfinite(value)
