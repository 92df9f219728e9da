"""The critical batch by branching: the largest multiple of a run's batch that costs no loss over the same tokens.

From one checkpoint at batch B and learning rate η, branches train on the same number of tokens at k·B and η·f(k), with
f the rule by which the rate follows the batch (√k for Adam). The largest k whose loss is at most the lowest loss of
the smaller multiples plus a tolerance is k*, and k*·B the critical batch there (Merrill et al. 2025, arXiv
2505.23971, who took 2 billion tokens and a tolerance of 0.01 nats). It needs no target loss and no assumption on the
optimizer.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.01  # nats/target, of Merrill et al.


@dataclass(frozen=True)
class Branch:
    """The runs at one batch: `losses` of the seeds in nats/target."""

    batch: int  # sequences
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean loss over the seeds; infinite if one diverged."""
        return statistics.fmean(self.losses) if all(map(math.isfinite, self.losses)) else math.inf


@dataclass(frozen=True)
class Bracket:
    """The critical batch lies from `batch` on and below `above` (None: no larger batch was tried), in sequences."""

    batch: int
    above: int | None
    tolerance: float  # nats/target


def tolerance_of(branches: Sequence[Branch]) -> float:
    """Twice the standard error of a difference between two means, from the spread over the seeds within branches; that
    of Merrill et al. where a branch has a single seed."""
    spreads = [statistics.variance(branch.losses) for branch in branches if len(branch.losses) > 1]
    if len(spreads) < len(branches) or not all(map(math.isfinite, spreads)):
        return TOLERANCE
    fewest = min(len(branch.losses) for branch in branches)
    return 2 * math.sqrt(2 * statistics.fmean(spreads) / fewest)


def bracket(branches: Sequence[Branch], tolerance: float) -> Bracket:
    """The bracket of the critical batch from branches of rising batches, of which the first is the run's own. Raises
    ValueError for batches that do not rise."""
    batches = [branch.batch for branch in branches]
    if not batches or batches != sorted(set(batches)):
        raise ValueError("batches must rise")
    largest, lowest = 0, math.inf
    for index, branch in enumerate(branches):
        if index == 0 or branch.mean <= lowest + tolerance:
            largest = index
        lowest = min(lowest, branch.mean)
    above = batches[largest + 1] if largest + 1 < len(batches) else None
    return Bracket(batches[largest], above, tolerance)
