"""The advice checked by its own past: each schedule of finished runs is predicted from the others."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.stats import spearmanr

from hfbsz.advice import progress as progress_model
from hfbsz.advice.evidence import Evidence
from hfbsz.advice.known import with_curve
from hfbsz.advice.rates import best_arms
from hfbsz.display import with_minus
from hfbsz.errors import UserError
from hfbsz.plan.resolve import resolve


@dataclass(frozen=True)
class Checked:
    """A schedule that was left out, and what the others predict of it."""

    name: str
    batch: str
    steps: int
    planned_steps: int  # predicted
    loss: float  # nats/target
    predicted: float

    @property
    def error(self) -> float:
        """Predicted − actual loss."""
        return self.predicted - self.loss


def check(evidence: Evidence, optimizer: str) -> list[Checked]:
    """Every schedule of an optimizer's finished runs over the most common number of tokens, predicted from the others.
    Raises UserError if they are too few."""
    runs = evidence.of_optimizer(optimizer)
    lengths = [round(math.log(run.tokens), 1) for run in runs if run.tokens]
    common = max(set(lengths), key=lengths.count) if lengths else None
    arms = best_arms([run for run in runs if run.tokens and round(math.log(run.tokens), 1) == common])
    if len(arms) <= progress_model.MIN_SCHEDULES:
        raise UserError(
            f"check: {len(arms)} schedules of batches with {optimizer} are known over one number of tokens: more than "
            f"{progress_model.MIN_SCHEDULES} are needed"
        )
    checked = []
    for index, (run, loss, _) in enumerate(arms):
        others = [arm for place, arm in enumerate(arms) if place != index]
        curved = with_curve([other for other, *_ in others])
        total = max(other.sequences for other, *_ in arms)
        points = [(other.stages, its) for other, its, _ in others]
        model = progress_model.fit(points, curved.stages, curved.curve, total) if curved else None
        if model is None:
            continue
        planned = resolve(run.recipe, run.processes, run.facts).steps
        sizes = " → ".join(dict.fromkeys(f"{batch:,}" for _, batch in run.stages))
        checked.append(Checked(run.folder.name, sizes, run.steps, planned, loss, model.loss(run.stages)))
    if len(checked) < 2:
        raise UserError("check: the runs do not tell a critical batch without one of them")
    return checked


def rank_correlation(checked: list[Checked]) -> float:
    """Spearman's, of predicted and actual losses."""
    return float(spearmanr([one.loss for one in checked], [one.predicted for one in checked]).statistic)


def root_mean_square(checked: list[Checked]) -> float:
    """Of the errors, in nats/target."""
    return math.sqrt(math.fsum(one.error**2 for one in checked) / len(checked))


def lines_of(checked: list[Checked]) -> Iterator[str]:
    """The check as text, the lowest loss first."""
    yield "check     each schedule predicted from the others (loss in nats/target)"
    yield f"  {'run':<36} {'batch':<26} {'steps':>7} {'planned':>10} {'loss':>8} {'predicted':>10} {'error':>8}"
    for one in checked:
        shown = with_minus(f"{one.error:+.3f}")
        yield (
            f"  {one.name:<36} {one.batch:<26} {one.steps:>7,} {one.planned_steps:>10,} {one.loss:>8.3f} "
            f"{one.predicted:>10.3f} {shown:>8}"
        )
    errors = sorted(abs(one.error) for one in checked)
    yield (
        f"  rank correlation {rank_correlation(checked):.2f} (Spearman); error {root_mean_square(checked):.3f} root "
        f"mean square, {errors[len(errors) // 2]:.3f} median"
    )
