"""The schedule of batches: doublings that the critical batch allows, and how long they take to a loss."""

import math
from collections.abc import Sequence
from itertools import pairwise

from hfbsz.advice.frontier import Frontier
from hfbsz.advice.known import Known
from hfbsz.advice.progress import Stages, effective
from hfbsz.measure.frontier import Point
from hfbsz.plan.plan import Plan

_FIRST = 0.05  # share of the run at whose critical batch a ramp starts
REACHED = 0.75  # share of the run by which a ramp is at its largest batch
_KNEE = 0.95  # of the best throughput
_TOLERANCE = 1e-3  # on the sequences to a loss, relative


def batches_of(taken: Point, frontier: Frontier, critical: float) -> list[int]:
    """The batches of the run: doublings from what the critical batch early in the run allows, but no less than keeps
    the devices busy, to that of the point."""
    seconds = frontier.device.seconds
    best = max(size / time for size, time in seconds.items())
    knee = min(size for size, time in seconds.items() if size / time >= _KNEE * best)
    first = 2 ** math.floor(math.log2(max(1.0, _FIRST * max(critical, taken.batch / REACHED))))
    start = taken.batch
    while start % 2 == 0 and start // 2 >= max(knee * taken.devices, first) and (start // 2) % taken.devices == 0:
        start //= 2
    batches = [start]
    while batches[-1] < taken.batch:
        batches.append(2 * batches[-1])
    return batches


def stages(batches: Sequence[int], total: float, known: Known) -> list[tuple[float, int]]:
    """The sequences at each batch of doublings over `total` sequences."""
    starts = [0.0, *(total * share for share in shares(batches, known.critical * total / known.total)), total]
    return [(end - start, batch) for batch, (start, end) in zip(batches, pairwise(starts), strict=True)]


def sequences(batches: Sequence[int], needed: float, known: Known) -> float:
    """The sequences after which a schedule of batches has an effective number of sequences, by bisection."""

    def reached(total: float) -> float:
        return effective(stages(batches, total, known), known.critical, known.total)

    low, high = needed, needed
    while reached(high) < needed:
        low, high = high, 2 * high
    while high / low > 1 + _TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reached(middle) < needed else (low, middle)
    return high


def batch_words(batches: Sequence[int], critical: float) -> list[str]:
    """The words of a schedule of doublings: each batch from where the critical batch reaches it."""
    if len(batches) == 1:
        return [f"batch.size={batches[0]}seq", "batch.start=null", "batch.ramp=null"]
    ends = shares(batches, critical)
    points = [f"{100 * share:.3g}%:{batch}" for share, batch in zip(ends, batches[1:], strict=True)]
    return ["batch.size=null", "batch.start=null", f"batch.ramp={' '.join([f'0:{batches[0]}', *points])}"]


def shares(batches: Sequence[int], critical: float) -> list[float]:
    """The share of the run from which each batch but the first is taken, for a critical batch at its end."""
    end = max(critical, batches[-1] / REACHED)
    return [batch / end for batch in batches[1:]]


def stages_of(plan: Plan) -> Stages:
    """The sequences at each batch of a plan."""
    return [(float(phase.steps * phase.batch), phase.batch) for phase in plan.phases if phase.steps]
