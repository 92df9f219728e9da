"""What the evaluations of a run say: its curve, the best point of it, and what the saved model reaches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfbsz.records.run_data import CLOCK, STEPS, RunData, is_number

WORSE = "a new model that ends worse than it began has diverged: lower optim.lr, or lengthen schedule.warmup"
LOSS = "eval/loss"  # of the fixed part of validation: every point of it is of the same rows


@dataclass(frozen=True)
class Kept:
    """What the model that a run keeps reaches, or what the last evaluation said, while the run has not finished."""

    step: int  # of the weights
    whole: bool  # measured once, at the end; else on the fixed part of validation
    values: Mapping[str, Any]  # `loss` (NaN: not finite), `accuracy`, `<set>/loss`, …
    fixed: Mapping[str, Any]  # the same weights on the fixed part; empty: not known
    last: Mapping[str, Any]  # the last weights on the same rows, where earlier ones are kept; else empty

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.values["loss"])

    @property
    def is_all(self) -> bool:
        """Whether the numbers are of every row of validation."""
        return self.whole and self.values.get("set_rows", self.values.get("rows")) == self.values.get("rows")

    @property
    def on(self) -> str:
        """What rows the numbers are of."""
        count = f"{self.values['rows']:,} rows" if "rows" in self.values else "rows"
        if self.is_all:
            return f"all {count} of validation"
        if self.whole:
            return f"{self.values['rows']:,} of {self.values['set_rows']:,} rows of validation, evenly spread"
        return f"a fixed part of validation ({count})" if "rows" in self.values else "a fixed part of validation"

    @property
    def apart(self) -> bool:
        """Whether the same weights have numbers on the fixed part too, and that is less than the whole."""
        return self.whole and bool(self.fixed) and self.fixed["loss"] != self.values["loss"]


def is_evaluation(record: Mapping[str, Any]) -> bool:
    return record.get("event") == "eval" and is_number(record.get(LOSS)) and is_number(record.get(STEPS))


def start_loss(run: RunData) -> float | None:
    """The loss before training; None: not measured, or not finite."""
    at = [record[LOSS] for record in run.records if is_evaluation(record) and record[STEPS] == 0]
    return float(at[0]) if at and math.isfinite(at[0]) else None


def validation_curve(run: RunData) -> list[Mapping[str, Any]]:
    """Evaluations in order, from the first step on."""
    return [record for record in run.records if is_evaluation(record) and record[STEPS]]


def best_evaluation(run: RunData) -> Mapping[str, Any] | None:
    """The evaluation of the lowest loss; None where none is below the loss before training."""
    start = start_loss(run)
    found = [record for record in validation_curve(run) if math.isfinite(record[LOSS])]
    found = [record for record in found if start is None or record[LOSS] < start]
    return min(found, key=lambda record: record[LOSS], default=None)


def kept_of(run: RunData) -> Kept | None:
    """None where nothing was evaluated. A run that diverged keeps no model: its loss is NaN, whatever was finite
    before."""
    if run.status.get("state") == "diverged":
        return Kept(int(run.largest(STEPS) or 0), False, {"loss": math.nan}, {}, {})
    final = _final(run)
    curve = [record for record in run.records if is_evaluation(record)]
    step = final.get("model/step", curve[-1][STEPS] if curve else None)
    if step is None:
        return None
    fixed = next((_of("eval", record) for record in reversed(curve) if record[STEPS] == step), {})
    full = _of("full", final)
    if not full and not fixed:
        return None
    return Kept(int(step), bool(full), full or fixed, fixed, _of("last", final))


def not_better(run: RunData) -> str | None:
    """What is to be said of a run that ends no better than it began, on the fixed part of validation; else None."""
    start, curve, best, kept = start_loss(run), validation_curve(run), best_evaluation(run), kept_of(run)
    if start is None or not curve or kept is None:
        return None
    before = f"{start:.4f} nats/target before training"
    model = (run.plan.get("recipe") or {}).get("model") or {}
    is_new = not model.get("path") and not model.get("package")
    worse = f"; {WORSE}" if is_new and kept.fixed.get("loss", start) > start else ""
    if best is None:
        lowest = min(curve, key=lambda record: record[LOSS] if math.isfinite(record[LOSS]) else math.inf)
        found = f"{lowest[LOSS]:.4f} at step {lowest[STEPS]:,}" if math.isfinite(lowest[LOSS]) else "not finite"
        return f"not better than before training: the lowest validation loss is {found}, {before}{worse}"
    loss = kept.fixed.get("loss")
    if loss is None or loss < start:
        return None
    found = f"{loss:.4f}" if math.isfinite(loss) else "not finite"
    return (
        f"not better than before training: the validation loss of step {kept.step:,} is {found}, {before} "
        f"(the best evaluation: {best[LOSS]:.4f} at step {best[STEPS]:,}){worse}"
    )


def held_weights(run: RunData) -> str | None:
    """Which weights the saved model holds: `best`, where they are not the last ones, or `last`; None: none is saved."""
    kept = kept_of(run)
    if kept is not None and _final(run) and kept.step != run.largest(STEPS):
        return "best"
    return "last" if run.status.get("state") in ("finished", "preempted") else None


def stopped_early(run: RunData) -> bool | None:
    """Whether a run ended by its own choice before its budget did; None while that is open."""
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    if run.status.get("state") != "finished" or clock is None or not is_number(planned):
        return None
    return clock < planned


def _final(run: RunData) -> Mapping[str, Any]:
    """The record of the saved model; empty: there is none, or a longer budget went on after it."""
    told = [record for record in run.records if record.get("event") in ("step", "eval", "final")]
    return told[-1] if told and told[-1]["event"] == "final" else {}


def _of(part: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one part of the evaluation, by their names without it."""
    return {name.removeprefix(f"{part}/"): value for name, value in record.items() if name.startswith(f"{part}/")}
