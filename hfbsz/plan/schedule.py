"""The learning rate and the batch as functions of the clock (sequences consumed): decay shapes, warmup, ramps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# p in [0, 1] is the completed fraction of the decay; each decaying shape falls from 1 at p = 0 to 0 at p = 1.
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,  # Loshchilov & Hutter 2017
    "quarter_cosine": lambda p: math.cos(math.pi * p / 2),
    "wsd": lambda p: 1 - p,  # constant, then linear over `decay` sequences: Hu et al. 2024, Hägele et al. 2024
}


@dataclass(frozen=True)
class Shape:
    """The learning rate relative to its peak over a run of `total` sequences."""

    name: str
    total: int
    warmup: float = 0  # sequences of linear warmup from 0
    floor: float = 0.0  # value at the end of the decay
    decay: float = 0  # wsd: sequences of decay at the end
    cut: float = 0  # > 1: the decay falls in steps of 1/cut (Seesaw)

    def factor(self, clock: float) -> float:
        """The factor of the peak learning rate after `clock` sequences; after the end of the run, that of its end."""
        clock = min(clock, self.total)
        if clock < self.warmup:
            return clock / self.warmup
        level = self.level(clock)
        if self.cut and level > 0:
            level = self.cut ** -math.floor(math.log(1 / level, self.cut) + 1e-9)
        return level

    def level(self, clock: float) -> float:
        """The smooth decay after warmup, from 1 to `floor`."""
        start = self.total - self.decay if self.name == "wsd" else self.warmup
        length = self.total - start
        p = min(max((clock - start) / length, 0.0), 1.0) if length > 0 else float(clock >= self.total)
        level = _SHAPES[self.name](p)
        return level if self.name == "constant" else self.floor + (1 - self.floor) * level

    def clock_at(self, level: float) -> float:
        """The first clock (sequences) at which the smooth decay is at most `level`; bisection, as it is monotone."""
        low, high = float(self.warmup), float(self.total)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if self.level(middle) <= level else (middle, high)
        return high


# Each ramp returns (threshold in sequences, batch before rounding), with thresholds ascending from 0.
Phases = list[tuple[float, float]]


def doubling(start: int, size: int, span: float) -> Phases:
    """start, 2·start, 4·start … size: the batches below `size` share the first `span` sequences equally."""
    count = max(0, math.ceil(math.log2(size / start) - 1e-9))
    return [(span * k / count if count else 0.0, min(start * 2**k, size)) for k in range(count + 1)]


def linear(start: int, size: int, span: float, granule: int) -> Phases:
    """From start to size over `span` sequences, in increments of `granule`."""
    sign = 1 if size >= start else -1
    count = abs(size - start) // granule
    return [(span * k / count if count else 0.0, start + sign * k * granule) for k in range(count + 1)]


def below_critical(ladder: Sequence[int], points: Sequence[tuple[float, float]]) -> list[tuple[float, int]]:
    """Each batch of a ladder from the clock on at which it is at most the critical batch, linear between `points` of
    (clock, critical batch) and constant after them; the first from 0. The batch never falls."""
    clocks, sizes = zip(*points, strict=True)
    phases = [(0.0, ladder[0])]
    for batch in ladder[1:]:
        number = next((index for index, size in enumerate(sizes) if size >= batch), None)
        if number is None:
            break
        if number == 0:
            at = 0.0
        else:
            share = (batch - sizes[number - 1]) / (sizes[number] - sizes[number - 1])
            at = clocks[number - 1] + share * (clocks[number] - clocks[number - 1])
        phases = [phase for phase in phases if phase[0] < at] + [(at, batch)]
    return phases


def seesaw(start: int, size: int, cut: float, shape: Shape) -> Phases:
    """B ← cut·B where the schedule would divide the rate by `cut` (Seesaw 2025): with η following as √B, each cut
    multiplies η by 1/√cut. Past `size` the batch stays and the rate takes the whole cut."""
    phases: Phases = [(0.0, start)]
    k = 1
    while start * cut**k <= size * (1 + 1e-9) and cut**-k >= max(shape.floor, 1e-6) - 1e-9:
        phases.append((shape.clock_at(cut**-k), start * cut**k))
        k += 1
    return phases
