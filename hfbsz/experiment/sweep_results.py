"""The results of a sweep: the steps to the target loss at each batch and rate."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfbsz.errors import UserError
from hfbsz.experiment import search

SELECTION_NOTE = (
    "The rates were chosen on the first seed, whose steps are counted too: they are a little too few there."
)


@dataclass(frozen=True)
class Tried:
    """A run to the target loss."""

    rate: float | None  # at the batch of the run, after the scaling rule; None: unknown, because it has not started
    steps: float | None  # to the target; infinite: not reached, or diverged; None: not ended, or failed
    early: bool = False  # whether it reached the target by the end of the warmup, or at its first evaluation
    failure: str | None = None  # why it failed, in one line


@dataclass(frozen=True)
class Point:
    """The runs at one batch."""

    words: str
    batch: int | None  # sequences; None: no run has started
    tried: Mapping[float, Tried]  # on the first seed by `optim.lr`, in rising order
    chosen: float | None  # `optim.lr` with the fewest steps; None: none reached the target, or not all have ended
    runs: tuple[Tried, ...]  # at the chosen rate, by seed

    @property
    def best(self) -> Tried | None:
        """The run at the chosen rate on the first seed."""
        return None if self.chosen is None else self.tried.get(self.chosen)

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps to the target of the runs at the chosen rate that have ended; infinite: not reached."""
        return tuple(run.steps for run in self.runs if run.steps is not None)

    @property
    def failures(self) -> list[str]:
        """The reason of every run that failed, in one line each."""
        runs = {id(run): run for run in (*self.tried.values(), *self.runs)}
        return [f"{self.words}: {run.failure}" for run in runs.values() if run.failure]

    def problem(self, target: float) -> str | None:
        """Why the steps at this batch cannot be used, in one line; None: they can."""
        if self.chosen is None:
            if all(run.failure for run in self.tried.values()):
                return f"{self.words}: all runs failed"
            return f"{self.words}: no rate reached {target:g} nats/target: raise target=, or duration="
        if any(run.early for run in self.runs):
            return reached_early(self.words, target)
        if not search.is_inside({value: run.steps for value, run in self.tried.items()}):
            end = f"the best optim.lr, {self.chosen:g}, is at the end of those tried"
            return f"{self.words}: {end}: set optim.lr near it, or raise rates="
        if len(self.steps) < len(self.runs) or not all(map(math.isfinite, self.steps)):
            return f"{self.words}: a run at the best optim.lr failed or did not reach {target:g} nats/target"
        return None

    @property
    def best_rate(self) -> float | None:
        """The vertex of the parabola of log steps over log rate through the chosen rate and its neighbors; None if one
        of them did not reach the target."""
        values = list(self.tried)
        index = values.index(self.chosen) if self.chosen is not None and self.chosen in self.tried else 0
        three = [self.tried[value] for value in values[index - 1 : index + 2]] if index else []
        known = [(run.rate, run.steps) for run in three if run.rate and run.steps and math.isfinite(run.steps)]
        if len(known) < 3 or not search.is_inside({value: run.steps for value, run in self.tried.items()}):
            return None
        (x0, y0), (x1, y1), (x2, y2) = ((math.log(rate), math.log(steps)) for rate, steps in known)
        left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        if right <= left:
            return None
        return math.exp((x0 + x1) / 2 - left * (x2 - x0) / 2 / (right - left))


@dataclass(frozen=True)
class Sweep:
    """The current state of a sweep."""

    name: str
    command: str
    target: float  # validation loss, nats/target
    first: float | None  # the batch up to which scaling is taken to be perfect, in sequences; None: the smallest
    points: tuple[Point, ...]
    state: str  # running | finished | preempted
    recipe: Mapping[str, Any] = field(default_factory=dict)  # of its first run, as plain data

    @property
    def perfect_until(self) -> float:
        """The batch in sequences up to which scaling is taken to be perfect."""
        return self.first or min((point.batch for point in self.points if point.batch), default=1)

    @property
    def failures(self) -> list[str]:
        """The reason of every run that failed, in one line each."""
        return list(dict.fromkeys(failure for point in self.points for failure in point.failures))

    @property
    def usable(self) -> list[tuple[int, float]]:
        """The batch in sequences and the steps to the target of the runs at the chosen rates, without the batches that
        have a problem."""
        points = [point for point in self.points if point.batch and point.problem(self.target) is None]
        return [(point.batch or 0, steps) for point in points for steps in point.steps]

    def table(self) -> list[tuple[int, float]]:
        """The batch in sequences and the steps to the target of every run at a chosen rate.

        Raises UserError for a batch that has a problem, such as a best rate at the end of those tried: without it, the
        critical batch would be that of the rates, not of the batches.
        """
        if problems := [problem for point in self.points if (problem := point.problem(self.target))]:
            raise UserError(problems)
        return self.usable


def reached_early(words: str, target: float) -> str:
    """The problem of a batch whose runs reach the target before their rate is the tuned one."""
    when = "by the end of the warmup or at the first evaluation"
    return (
        f"{words}: {target:g} nats/target is reached {when}: lower target=, or shorten schedule.warmup and eval.every"
    )


def rate_exponent(points: Sequence[Point]) -> float | None:
    """The exponent p of the best rate ∝ batch^p, by least squares over the batches; None for fewer than two batches."""
    pairs = [(math.log(point.batch), math.log(point.best_rate)) for point in points if point.batch and point.best_rate]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope if len(pairs) > 1 else None


def lines_of(sweep: Sweep) -> list[str]:
    """The steps and the tuned rate at each batch as lines of text."""
    heads = f"{'batch':>12} {'steps':>9} {'seeds':>6} {'optim.lr':>9} {'rate':>9} {'best rate':>10}"
    lines = [f"sweep to {sweep.target:g} nats/target", f"{heads}   steps by optim.lr"]
    for point in sweep.points:
        finite = [steps for steps in point.steps if math.isfinite(steps)]
        tried = ", ".join(f"{value:g}: {_count(run)}" for value, run in point.tried.items())
        mean = f"{statistics.fmean(finite):,.0f}" if finite else "–"
        rate = None if point.best is None else point.best.rate
        cells = f"{_number(point.chosen):>9} {_number(rate):>9} {_number(point.best_rate):>10}"
        lines.append(f"{point.batch or 0:>8,} seq {mean:>9} {len(finite):>6} {cells}   {tried}")
    exponent = rate_exponent(sweep.points)
    if exponent is not None:
        lines.append(f"best rate    ∝ batch^{exponent:.2f}, by least squares over the batches")
    return [*lines, f"note         {SELECTION_NOTE}", *(f"failed       {failure}" for failure in sweep.failures)]


def _count(run: Tried) -> str:
    if run.steps is None:
        return "failed" if run.failure else "–"
    return f"{run.steps:,.0f}" if math.isfinite(run.steps) else "∞"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
