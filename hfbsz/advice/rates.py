"""The learning rate to take: that of the best finished run, of a sweep, or the recipe's own."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hfbsz.advice.advice import Sure
from hfbsz.advice.evidence import Evidence, PastRun
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.fields import Recipe

_ENOUGH = 3  # rates at one schedule, of which the best is taken as tuned


@dataclass(frozen=True)
class Rate:
    """`optim.lr` and the batch at which it is meant, in sequences; None: the recipe's own."""

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


def rate_of(evidence: Evidence, recipe: Recipe, is_given: bool, batch: float) -> Rate:
    """The rate for a run that starts at a batch in sequences. `is_given`: the user has set it."""
    if is_given:
        return Rate(None, None, "given", "set on the command line")
    arms = best_arms(evidence.of_optimizer(recipe.optim.name))
    tuned = [arm for arm in arms if arm[2] >= _ENOUGH]
    if tuned:
        run, loss, count = tuned[0]
        why = f"the best of {count} rates in the schedule of {run.folder.name} ({loss:.3f} nats/target)"
        return Rate(_value(run), _reference(run), "measured", why)
    for sweep in evidence.sweeps:
        if sweep.optimizer == recipe.optim.name and sweep.rates:
            near = min(sweep.rates, key=lambda size: abs(math.log(size / batch)))
            _, rate = sweep.rates[near]
            why = f"needs the fewest steps at {near:g} sequences in {sweep.name}, at a constant rate"
            return Rate(rate, near, "measured" if near == batch else "inferred", why)
    if arms:
        run, loss, count = arms[0]
        why = f"that of the best run, {run.folder.name} ({loss:.3f} nats/target); {counted(count, 'rate')} tried there"
        return Rate(_value(run), _reference(run), "inferred", why)
    return Rate(None, None, "guess", "the recipe's own; no run of this model and data has tried another")


def _value(run: PastRun) -> float | None:
    value = run.recipe.optim.lr
    return value if isinstance(value, float) else None


def _reference(run: PastRun) -> float:
    return resolve(run.recipe, run.processes, run.facts).reference
