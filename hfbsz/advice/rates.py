"""The learning rate to take: that of the best finished run, of a sweep, or the recipe's own."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hfbsz.advice.advice import Sure
from hfbsz.advice.evidence import Evidence, PastRun
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.fields import Recipe

_ENOUGH = 3  # rates at one schedule, of which the best is taken as tuned


@dataclass(frozen=True)
class Rate:
    """A peak learning rate and the batch at which it is meant, in sequences; None: the recipe's own."""

    value: float | None
    reference: float | None
    sure: Sure
    why: str


def best_arms(runs: Sequence[PastRun]) -> list[tuple[PastRun, float, int]]:
    """Of the arms with one schedule of batches the best, as (a run of it, its mean loss over seeds, rates tried).

    Arms are compared on the seeds that all of them have, if there are any: rates are often tried on one seed.
    """
    arms: dict[str, list[PastRun]] = defaultdict(list)
    for run in runs:
        arms[run.arm].append(run)
    schedules: dict[str, list[list[PastRun]]] = defaultdict(list)
    for members in arms.values():
        schedules[_schedule_of(members[0])].append(members)
    best = []
    for found in schedules.values():
        shared = set.intersection(*({run.recipe.seed for run in members} for members in found))
        members = min(found, key=lambda arm: _mean([run for run in arm if run.recipe.seed in shared] or arm))
        rates = {arm[0].recipe.optim.lr for arm in found}
        best.append((members[0], _mean(members), len(rates)))
    return sorted(best, key=lambda one: one[1])


def _mean(runs: Sequence[PastRun]) -> float:
    return statistics.fmean(run.loss for run in runs)


def _schedule_of(run: PastRun) -> str:
    """What is the same in runs that differ in their rates, as text: how the batch and the rate go over the run."""
    fields = run.recipe.to_dict()
    batch = {name: value for name, value in fields["batch"].items() if not name.startswith("micro")}
    return json.dumps([fields["duration"], batch, fields["schedule"]], sort_keys=True)


def rate_of(evidence: Evidence, recipe: Recipe, is_given: bool, batch: float, total: float) -> Rate:
    """The rate for a run of `total` sequences that starts at a batch in sequences. `is_given`: the user has set it."""
    if is_given:
        return Rate(None, None, "given", "set on the command line")

    def distance(arm: tuple[PastRun, float, int]) -> tuple[float, float]:
        """How far an arm is from the run, in log length and log batch; then its loss."""
        run, loss, _ = arm
        return round(abs(math.log(run.sequences / total)) + abs(math.log(run.stages[0][1] / batch)), 1), loss

    arms = sorted(best_arms(evidence.of_optimizer(recipe.optim.name)), key=distance)
    tuned = [arm for arm in arms if arm[2] >= _ENOUGH]
    if tuned:
        run, loss, count = tuned[0]
        why = f"the best of {count} rates in the schedule of {run.folder.name} ({loss:.3f} nats/target)"
        return Rate(run.first_rate, run.stages[0][1], "measured", why)
    swept = [(size, rate, sweep.name) for sweep in evidence.sweeps if sweep.optimizer == recipe.optim.name
             for size, rate in sweep.rates.items()]  # fmt: skip
    if swept:
        near, rate, name = min(swept, key=lambda one: abs(math.log(one[0] / batch)))
        why = f"needs the fewest steps at {near:g} sequences in {name}, at a constant rate"
        return Rate(rate, near, "measured" if near == batch else "inferred", why)
    if arms:
        run, loss, count = arms[0]
        why = f"that of {run.folder.name} ({loss:.3f} nats/target); {counted(count, 'rate')} tried in its schedule"
        return Rate(run.first_rate, run.stages[0][1], "inferred" if count > 1 else "assumed", why)
    return Rate(None, None, "assumed", "the recipe's own; no run of this model and data has tried another")
