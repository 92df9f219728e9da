"""How far a schedule of batches gets with its sequences: a model of the final loss, fitted to finished runs.

A sequence in a batch B moves the loss as far as 1 ÷ (1 + B ÷ B_crit) sequences in a very small batch do (McCandlish et
al. 2018, arXiv 1812.06162, eq. 2.7). The critical batch grows in proportion to the sequences seen, as the noise scale
does over the runs of LOG.md (exponents of 0.46, as over the lengths of runs in the literature, and of 1.5 predict runs
that were left out no better). The sum of these shares over a run is its *effective sequences* E, and the final loss of
runs of one model, data and optimizer is taken to be c − α·log E, with α from a validation curve. It knows nothing of
learning rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Stages = Sequence[tuple[float, int]]  # (sequences, batch in sequences), in order
Curve = Sequence[tuple[float, float]]  # (sequences, validation loss), in order
MIN_SCHEDULES = 3  # different ones, for a fit of B_crit and c
_GRID = np.geomspace(0.5, 2**20, 360)  # critical batches that are tried, sequences
_PIECES = 64  # of a stage, within which the critical batch is constant
_ROUNDS = 10  # of α from E and B_crit from α
_TAIL, _MIN_POINTS = 0.2, 4  # share of a validation curve that is not used, and points of the rest


def critical_at(critical: float, share: float) -> float:
    """The critical batch after a share of the run at whose end it is `critical`, in sequences."""
    return critical * share


def effective(stages: Stages, critical: float, total: float) -> float:
    """The effective sequences E of stages, where the critical batch after `total` sequences is `critical`."""
    clock, result = 0.0, 0.0
    for amount, batch in stages:
        clocks = clock + amount * (np.arange(_PIECES) + 0.5) / _PIECES
        result += float(np.sum(amount / _PIECES / (1 + batch / (critical * clocks / total))))
        clock += amount
    return result


def slope_of(stages: Stages, curve: Curve, critical: float = math.inf, total: float = 1.0) -> float | None:
    """α from the validation curve (sequences, loss) of a run with these stages: by least squares over log E, without
    the first fifth; None for fewer than four points, or a loss that does not fall."""
    end = max((clock for clock, _ in curve), default=0.0)
    points = [
        (math.log(effective(_until(stages, clock), critical, total)), loss)
        for clock, loss in curve
        if clock >= _TAIL * end and clock > 0
    ]
    if len(points) < _MIN_POINTS:
        return None
    x, y = np.array(points).T
    slope = -float(np.polyfit(x, y, 1)[0])
    return slope if slope > 0 else None


def _until(stages: Stages, clock: float) -> Stages:
    """The stages up to a number of sequences."""
    kept, left = [], clock
    for amount, batch in stages:
        kept.append((min(amount, max(left, 0.0)), batch))
        left -= amount
    return kept


@dataclass(frozen=True)
class Progress:
    """The model: loss = c − α·log E, in nats/target."""

    critical: float  # B_crit after `total` sequences, in sequences
    total: float
    slope: float  # α
    offset: float  # c
    error: float | None = None  # root mean square over runs, each predicted from the others; None: too few
    low: float | None = None  # the range of `critical` over fits that leave out one schedule
    high: float | None = None

    def loss(self, stages: Stages) -> float:
        """The predicted final validation loss."""
        return self.offset - self.slope * math.log(effective(stages, self.critical, self.total))

    @classmethod
    def through(
        cls, runs: Sequence[tuple[Stages, float]], slope: float, critical: float, total: float, error: float | None
    ) -> "Progress":
        """The model of a known critical batch and α through runs (stages, final loss), by their median."""
        offsets = [loss + slope * math.log(effective(stages, critical, total)) for stages, loss in runs]
        return cls(critical, total, slope, float(np.median(offsets)), error)


def fit(runs: Sequence[tuple[Stages, float]], stages: Stages, curve: Curve, total: float) -> Progress | None:
    """The model of runs (stages, final loss), one for each schedule, with the least sum of absolute deviations, and α
    from the validation curve of a run with `stages`, over the E of the model; None for fewer than three schedules, or
    if they do not tell a critical batch."""
    model: Progress | None = None
    for _ in range(_ROUNDS):
        slope = slope_of(stages, curve, math.inf if model is None else model.critical, total)
        new = None if slope is None else _fit(runs, slope, total)
        if new is None or (model is not None and new.critical == model.critical):
            return new
        model = new
    return model


def _fit(runs: Sequence[tuple[Stages, float]], slope: float, total: float) -> Progress | None:
    """The same for a known α."""
    if len(runs) < MIN_SCHEDULES:
        return None
    logs = np.log([[effective(stages, critical, total) for stages, _ in runs] for critical in _GRID])
    losses = np.array([loss for _, loss in runs])

    def least(kept: list[int]) -> tuple[int, float, float]:
        """The place in the grid, c and the deviation of the best fit to some of the runs."""
        offsets = np.median(losses[kept] + slope * logs[:, kept], axis=1)
        sums = np.abs(offsets[:, None] - slope * logs[:, kept] - losses[kept]).sum(axis=1)
        place = int(np.argmin(sums))
        return place, float(offsets[place]), float(sums[place])

    everything = list(range(len(runs)))
    place, offset, _ = least(everything)
    if place in (0, len(_GRID) - 1):
        return None
    errors, places = [], []
    if len(runs) > MIN_SCHEDULES:
        for index in everything:
            other, its_offset, _ = least([number for number in everything if number != index])
            errors.append(its_offset - slope * logs[other, index] - losses[index])
            places.append(other)
    error = math.sqrt(float(np.mean(np.square(errors)))) if errors else None
    low, high = (float(_GRID[pick(places)]) for pick in (min, max)) if places else (None, None)
    return Progress(float(_GRID[place]), total, slope, offset, error, low, high)
