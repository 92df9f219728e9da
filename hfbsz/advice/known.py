"""What the evidence says of a run's loss and critical batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hfbsz.advice import progress as progress_model
from hfbsz.advice.advice import Estimate
from hfbsz.advice.critical import estimates
from hfbsz.advice.evidence import Evidence, PastRun
from hfbsz.advice.progress import Progress, slope_of
from hfbsz.advice.rates import best_arms
from hfbsz.errors import UserError
from hfbsz.plan.plan import Plan

_FAR = 100.0  # times the recipe's sequences, either way, to which a loss is not predicted
LIKE = 4.0  # times the sequences of a run, either way, to which its loss is carried


@dataclass(frozen=True)
class Known:
    """What was worked out from the evidence for a run of `total` sequences."""

    total: float
    progress: Progress | None  # of the loss
    schedules: int  # behind it; 0: one run and a critical batch of another kind
    estimates: list[Estimate]

    @property
    def critical(self) -> float:
        """The critical batch at the end of the run, in sequences."""
        return self.estimates[0].value


def known_of(evidence: Evidence, plan: Plan, given: float | None = None) -> Known:
    """The loss and the critical batch of a plan's run, from the evidence. `given`: a critical batch over the run in
    sequences, set by the user."""
    optimizer, total = plan.recipe.optim.name, float(plan.total)
    arms = best_arms(evidence.of_optimizer(optimizer))
    curved = with_curve([run for run, *_ in arms])
    points = [(run.stages, loss) for run, loss, _ in arms]
    length = min((run.sequences for run, *_ in arms), key=lambda one: abs(math.log(one / total)), default=total)
    fitted = None if curved is None else progress_model.fit(points, curved.stages, curved.curve, length)
    both = None if fitted is None else (fitted, len(arms))
    found = estimates(evidence, optimizer, total, plan.tokens_per_row, both, given)
    model, critical = None, found[0].value
    slope = None if curved is None else slope_of(curved.stages, curved.curve, critical, total)
    if slope is not None and fitted is not None:
        model = Progress.through(points, slope, critical, total, fitted.error)
    elif slope is not None:  # too few for a median: the run of the nearest length
        run, loss, _ = min(arms, key=lambda arm: (abs(math.log(arm[0].sequences / total)), arm[1]))
        model = Progress.through([(run.stages, loss)], slope, critical, total, None)
    return Known(total, model, 0 if fitted is None else len(arms), found)


def with_curve(runs: Sequence[PastRun]) -> PastRun | None:
    """The run whose curve tells α: of those with enough evaluations, the one with the smallest mean batch."""
    known = [run for run in runs if slope_of(run.stages, run.curve) is not None]
    return min(known, key=lambda run: run.batch, default=None)


def effective_for(target: float, known: Known) -> float:
    """The effective sequences to a loss. Raises UserError if no run tells."""
    model = known.progress
    if model is None:
        raise UserError(
            "target_loss: no finished run of this model and data tells how the loss falls: train one, or leave it out"
        )
    log_times = (model.offset - target) / model.slope - math.log(known.total)
    if abs(log_times) > math.log(_FAR):
        more = "more" if log_times > 0 else "less"
        raise UserError(
            f"target_loss={target:g}: needs {_FAR:g} times {more} sequences than the recipe has, or beyond: too far "
            "from what was trained to be predicted"
        )
    return known.total * math.exp(log_times)


def is_like(evidence: Evidence, optimizer: str, length: float) -> bool:
    """Whether a run with an optimizer has about as many sequences."""
    runs = evidence.of_optimizer(optimizer)
    return any(1 / LIKE <= run.sequences / length <= LIKE for run in runs)
