"""Evaluations of a run: its validation curve, the best point of it, and the result of the saved model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfbsz.records.run_data import CLOCK, STEPS, RunData, is_number

WORSE = "a new model that ends worse than it began has diverged: lower optim.lr, or lengthen schedule.warmup"
LOSS = "eval/loss"  # on the fixed part of validation: the same rows at every evaluation


@dataclass(frozen=True)
class FinalResult:
    """The metrics of the saved model; of the last evaluation if the run has not finished."""

    step: int  # optimizer step of the weights
    measured_at_end: bool  # True: on validation at the end of the run; False: on the fixed part of validation
    values: Mapping[str, Any]  # `loss` (NaN: not finite), `accuracy`, `<set>/loss`, …
    fixed_part: Mapping[str, Any]  # of the same weights on the fixed part; empty: not measured
    last_weights: Mapping[str, Any]  # of the last weights on the same rows, if earlier ones are saved; else empty

    @property
    def loss(self) -> float:
        """Validation loss, nats per target."""
        return float(self.values["loss"])

    @property
    def covers_validation(self) -> bool:
        """Whether the model was evaluated on every row of validation."""
        return self.measured_at_end and self.values.get("set_rows", self.values.get("rows")) == self.values.get("rows")

    @property
    def rows_description(self) -> str:
        """The rows that were evaluated, in words: `all 2,000 rows of validation`."""
        count = f"{self.values['rows']:,} rows" if "rows" in self.values else "rows"
        if self.covers_validation:
            return f"all {count} of validation"
        if self.measured_at_end:
            return f"{self.values['rows']:,} of {self.values['set_rows']:,} rows of validation, evenly spread"
        return f"a fixed part of validation ({count})" if "rows" in self.values else "a fixed part of validation"

    @property
    def differs_from_fixed_part(self) -> bool:
        """Whether the loss at the end of the run and that on the fixed part are both known, and differ."""
        return self.measured_at_end and bool(self.fixed_part) and self.fixed_part["loss"] != self.values["loss"]


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record is an evaluation on the fixed part of validation; its loss may be NaN."""
    return record.get("event") == "eval" and is_number(record.get(LOSS)) and is_number(record.get(STEPS))


def start_loss(run: RunData) -> float | None:
    """Validation loss before training, nats/target; None: not measured, or not finite."""
    losses = [record[LOSS] for record in run.records if is_evaluation(record) and record[STEPS] == 0]
    return float(losses[0]) if losses and math.isfinite(losses[0]) else None


def validation_curve(run: RunData) -> list[Mapping[str, Any]]:
    """The evaluations of a run in order, without the one before training."""
    return [record for record in run.records if is_evaluation(record) and record[STEPS]]


def best_evaluation(run: RunData) -> Mapping[str, Any] | None:
    """The evaluation with the lowest loss; None if none is below the loss before training."""
    start = start_loss(run)
    finite = [record for record in validation_curve(run) if math.isfinite(record[LOSS])]
    better = [record for record in finite if start is None or record[LOSS] < start]
    return min(better, key=lambda record: record[LOSS], default=None)


def final_result(run: RunData) -> FinalResult | None:
    """The metrics of the saved model, or of the last evaluation; None if nothing was evaluated.

    A run that diverged saves no model: its loss is NaN, even if earlier evaluations were finite.
    """
    if run.status.get("state") == "diverged":
        return FinalResult(int(run.largest(STEPS) or 0), False, {"loss": math.nan}, {}, {})
    final = _final_record(run)
    evaluations = [record for record in run.records if is_evaluation(record)]
    step = final.get("model/step", evaluations[-1][STEPS] if evaluations else None)
    if step is None:
        return None
    fixed_part = next((_part("eval", record) for record in reversed(evaluations) if record[STEPS] == step), {})
    at_end = _part("full", final)
    if not at_end and not fixed_part:
        return None
    return FinalResult(int(step), bool(at_end), at_end or fixed_part, fixed_part, _part("last", final))


def not_better(run: RunData) -> str | None:
    """A sentence about a run whose validation loss (fixed part) ends no lower than before training; else None."""
    start, curve, best, result = start_loss(run), validation_curve(run), best_evaluation(run), final_result(run)
    if start is None or not curve or result is None:
        return None
    before = f"{start:.4f} nats/target before training"
    model = (run.plan.get("recipe") or {}).get("model") or {}
    is_new = not model.get("path") and not model.get("package")
    worse = f"; {WORSE}" if is_new and result.fixed_part.get("loss", start) > start else ""
    if best is None:
        lowest = min(curve, key=lambda record: record[LOSS] if math.isfinite(record[LOSS]) else math.inf)
        shown = f"{lowest[LOSS]:.4f} at step {lowest[STEPS]:,}" if math.isfinite(lowest[LOSS]) else "not finite"
        return f"not better than before training: the lowest validation loss is {shown}, {before}{worse}"
    loss = result.fixed_part.get("loss")
    if loss is None or loss < start:
        return None
    shown = f"{loss:.4f}" if math.isfinite(loss) else "not finite"
    return (
        f"not better than before training: the validation loss of step {result.step:,} is {shown}, {before} "
        f"(the best evaluation: {best[LOSS]:.4f} at step {best[STEPS]:,}){worse}"
    )


def saved_weights(run: RunData) -> str | None:
    """The weights in the saved model: `best` if they are not the last ones, else `last`; None: no model is saved."""
    result = final_result(run)
    if result is not None and _final_record(run) and result.step != run.largest(STEPS):
        return "best"
    return "last" if run.status.get("state") in ("finished", "preempted") else None


def stopped_early(run: RunData) -> bool | None:
    """Whether a finished run ended before its budget (`eval.patience`, `eval.target`); None: it has not finished."""
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    if run.status.get("state") != "finished" or clock is None or not is_number(planned):
        return None
    return clock < planned


def _final_record(run: RunData) -> Mapping[str, Any]:
    """The record of the saved model; empty if there is none, or if training with a longer budget continued after it."""
    records = [record for record in run.records if record.get("event") in ("step", "eval", "final")]
    return records[-1] if records and records[-1]["event"] == "final" else {}


def _part(part: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of one part of an evaluation, such as `full`, without its prefix."""
    return {name.removeprefix(f"{part}/"): value for name, value in record.items() if name.startswith(f"{part}/")}
