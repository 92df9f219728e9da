"""Estimates of the critical batch at the end of a run, from what is known; the best first."""

import math
import statistics
from collections.abc import Iterator, Sequence

from hfbsz.advice.advice import Estimate
from hfbsz.advice.evidence import Evidence, PastRun, SweepTable
from hfbsz.advice.progress import Progress
from hfbsz.advice.rates import best_arms
from hfbsz.errors import UserError
from hfbsz.measure.critical_batch import fit
from hfbsz.plan.laws import CRITICAL
from hfbsz.recipe.amounts import counted, short, sized

# The b ÷ a of S(B) = a + b ÷ B over the run whose critical batch grows in proportion to the sequences seen, divided by
# that at its end: the u at which half of the sequences count, 1 − u·log((1 + u) ÷ u) = ½.
OVER_THE_RUN = 0.4
_LATE = 0.6  # share of a run after which its noise scale is used
_LAW_FACTOR = 4.0  # either way: a law of other models, data and definitions
_PROXY_FACTOR = 2.0  # either way: noise scales against branches and fits to runs of one model in LOG.md
_NEAR = 2.0  # times the sequences of a sweep, up to which it is taken as one of this run


def estimates(
    evidence: Evidence,
    optimizer: str,
    total: float,
    tokens_per_row: float,
    fitted: tuple[Progress, int] | None,
    given: float | None = None,
) -> list[Estimate]:
    """The estimates for a run of `total` sequences with an optimizer: the surest first, among equally sure ones that of
    the narrowest range. `fitted`: the fit to finished runs, and how many schedules it is of; None: there is none;
    `given`: a critical batch over the run, set by the user."""
    arms = best_arms(evidence.of_optimizer(optimizer))
    found = [*_sweeps(evidence, optimizer, total), *_noise([run for run, *_ in arms], total)]
    if fitted is not None:
        found.append(_runs(*fitted, total))
    found.append(_law(total, tokens_per_row))
    if given is not None:
        end = given / OVER_THE_RUN
        found.append(Estimate("frontier.critical", end, end, end, "given", f"{sized(given)} sequences over the run"))
    order = ("given", "measured", "inferred", "assumed")
    return sorted(found, key=lambda one: (order.index(one.sure), one.high / max(one.low, 1e-9)))


def _sweeps(evidence: Evidence, optimizer: str, total: float) -> Iterator[Estimate]:
    for sweep in evidence.sweeps:
        if sweep.optimizer == optimizer:
            try:
                yield _sweep(sweep, total)
            except UserError:  # too few batches
                continue


def _sweep(sweep: SweepTable, total: float) -> Estimate:
    """The sweep's b ÷ a, carried from the sequences of its target (b) to those of the run. Raises UserError."""
    result = fit(sweep.batches, sweep.steps)
    balance, reached = result.balance, result.least_sequences
    factor = total / reached
    near = 1 / _NEAR <= total / reached <= _NEAR
    return Estimate(
        "sweep",
        *_carried([end / OVER_THE_RUN for end in (balance.value, balance.low, balance.high)], factor),
        "measured" if near and result.is_bounded else "inferred",
        f"b ÷ a = {sized(balance.value)} sequences (95 %: {sized(balance.low)} to {sized(balance.high)}) to "
        f"{sweep.target:g} nats/target in {sweep.name}, reached after {reached:,.0f} sequences; grown in proportion "
        f"to the {total:,.0f} of this run",
    )


def _runs(progress: Progress, schedules: int, total: float) -> Estimate:
    low, high = progress.low, progress.high
    if low is None or high is None:
        low, high = progress.critical / _PROXY_FACTOR, progress.critical * _PROXY_FACTOR
    error = "" if progress.error is None else f"; a run left out is predicted to {progress.error:.3f} nats/target"
    why = f"the losses of {counted(schedules, 'schedule')} of batches, at the best of the rates tried{error}"
    ends = _carried((progress.critical, low, high), total / progress.total)
    return Estimate("finished runs", *ends, "inferred", why)


def _noise(runs: Sequence[PastRun], total: float) -> Iterator[Estimate]:
    """The median of the late noise scales of runs, each carried to the end of this run."""
    late = [(run, [point for point in run.noise if point.clock >= _LATE * run.sequences]) for run in runs]
    at_end = [
        (run.sequences, statistics.median(point.scale * run.sequences / point.clock for point in points))
        for run, points in late
        if points
    ]
    if not at_end:
        return
    nearest = min((length for length, _ in at_end), key=lambda length: abs(math.log(length / total)))
    scales = [scale * nearest / length for length, scale in at_end]
    low, high = min(scales) / _PROXY_FACTOR, max(scales) * _PROXY_FACTOR
    count = sum(len(points) for _, points in late)
    yield Estimate(
        "noise scale",
        *_carried((statistics.median(scales), low, high), total / nearest),
        "inferred",
        f"{counted(count, 'measurement')} of the gradient noise scale late in {counted(len(at_end), 'run')}, grown in "
        f"proportion to the sequences; a proxy, good to a factor of {_PROXY_FACTOR:g}",
    )


def _carried(ends: Sequence[float], factor: float) -> tuple[float, float, float]:
    """(value, low, high) carried to a run of `factor` times the sequences: in proportion, and the range by exponents of
    ½ and 1½, which predict finished runs no worse (advice/progress)."""
    value, low, high = ends
    wide = math.sqrt(max(factor, 1 / factor))
    return value * factor, low * factor / wide, high * factor * wide


def _law(total: float, tokens_per_row: float) -> Estimate:
    tokens = total * tokens_per_row
    value = CRITICAL.batch(1.0, tokens) / tokens_per_row / OVER_THE_RUN
    outside = CRITICAL.outside(None, tokens)
    why = f"b ÷ a = {CRITICAL.batch_formula} of D = {short(tokens)}, {CRITICAL.source}; a factor of {_LAW_FACTOR:g} "
    why += "either way is assumed" + (f"; outside its fit: {outside[0]}" if outside else "")
    return Estimate("law", value, value / _LAW_FACTOR, value * _LAW_FACTOR, "assumed", why)
