"""The length of a run, the shape of its learning rate, and its phases, each with a constant global batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfbsz.plan import schedule
from hfbsz.plan.batch import Batches, follows_noise, ladder
from hfbsz.plan.given import Given
from hfbsz.plan.plan import Phase
from hfbsz.recipe.amounts import Amount

Thresholds = list[tuple[float, int]]  # (clock in sequences, batch from there on)


@dataclass(frozen=True)
class PhaseInputs:
    """The inputs from which the phases of a run of any length follow."""

    given: Given
    batches: Batches
    granule: int  # sequences: every batch is a multiple of micro-batch × processes
    warmup_factor: float  # factor on a warmup that is not given in steps
    rule: str  # name of the scaling rule of the learning rate


def total(inputs: PhaseInputs) -> int:
    """The length of the run in sequences. Valid only if `duration_problems` yields nothing.

    For a duration in steps it is the smallest length that takes at least this number of steps, found by bisection: a
    longer run never takes fewer steps.
    """
    duration = inputs.given.recipe.duration
    if duration.unit != "steps":
        return math.ceil(inputs.given.sequences(duration))
    steps = math.ceil(duration.value)
    low, high = 0, steps * max(inputs.batches.first, inputs.batches.last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _takes(inputs, middle, steps) else (middle, high)
    return high


def _takes(inputs: PhaseInputs, sequences: int, steps: int) -> bool:
    """Whether warmup, decay and ramp fit into this number of sequences, and it takes at least this number of steps."""
    if any(shape_problems(inputs, sequences)) or any(ramp_problems(inputs, sequences)):
        return False
    return sum(phase.steps for phase in phases(thresholds(inputs, sequences), sequences)) >= steps


def duration_problems(inputs: PhaseInputs) -> Iterator[str]:
    """The problems with `duration`, one line each."""
    duration = inputs.given.recipe.duration
    if duration.unit == "%":
        yield f"duration: '{duration}' has no total that it is a share of: write tokens, sequences, steps or epochs"
    elif duration.unit == "steps":
        if duration.value == 0:
            yield f"duration: '{duration}' is less than one sequence"
    else:
        yield from (problems := list(inputs.given.amount_problems("duration", duration)))
        if not problems and inputs.given.sequences(duration) < 1:
            yield f"duration: '{duration}' is less than one sequence"


def shape(inputs: PhaseInputs, sequences: int) -> schedule.Shape:
    """The learning rate over a run of `sequences` sequences, relative to its peak. Valid only if `shape_problems`
    yields nothing."""
    wanted, ramp = inputs.given.recipe.schedule, inputs.given.ramp
    warmup = _clock(inputs, wanted.warmup, inputs.batches.first, sequences)
    if wanted.warmup.unit != "steps":
        warmup *= inputs.warmup_factor
    decay = _clock(inputs, wanted.decay, inputs.batches.last, sequences) if wanted.shape == "wsd" else 0.0
    return schedule.Shape(wanted.shape, sequences, warmup, wanted.floor, decay, ramp.cut if ramp else 0.0)


def _clock(inputs: PhaseInputs, amount: Amount, batch: int, sequences: int) -> float:
    """An amount in sequences; steps are counted at `batch`."""
    return amount.value * batch if amount.unit == "steps" else inputs.given.sequences(amount, sequences)


def shape_problems(inputs: PhaseInputs, sequences: int) -> Iterator[str]:
    """The problems with warmup, decay and a seesaw ramp in a run of `sequences` sequences, one line each."""
    given, wanted = inputs.given, inputs.given.recipe.schedule
    parts = {"schedule.warmup": wanted.warmup}
    if wanted.shape == "wsd":
        parts["schedule.decay"] = wanted.decay
    unknown = [
        problem
        for field, amount in parts.items()
        if amount.unit != "steps"
        for problem in given.amount_problems(field, amount, sequences)
    ]
    yield from unknown
    if not unknown:
        form = shape(inputs, sequences)
        if form.warmup + form.decay > sequences:
            taken = f"{form.warmup + form.decay:g}"
            yield f"schedule: warmup and decay take {taken} of {sequences} sequences: shorten them"
    is_seesaw = given.ramp is not None and given.ramp.cut > 0
    if is_seesaw and (wanted.shape == "constant" or inputs.rule != "sqrt" or given.recipe.batch.lr == "held"):
        yield (
            "batch.ramp: seesaw replaces part of the decay of the rate by a larger batch: it needs a decaying "
            "schedule.shape, scaling.rule=sqrt and batch.lr=follow"
        )


def ramp_problems(inputs: PhaseInputs, sequences: int) -> Iterator[str]:
    """The problems with a ramp in a run of `sequences` sequences, one line each. Valid only if `shape_problems` yields
    nothing."""
    given, ramp = inputs.given, inputs.given.ramp
    if ramp is None:
        return
    amounts = [at for at, _ in ramp.points] + ([ramp.span] if ramp.span is not None else [])
    unknown = [line for amount in amounts for line in given.amount_problems("batch.ramp", amount, sequences)]
    yield from unknown
    if unknown:
        return
    if ramp.span is not None and given.sequences(ramp.span, sequences) > sequences:
        yield f"batch.ramp: '{given.recipe.batch.ramp}' is longer than the run, {sequences} sequences"
    named = [given.sequences(at, sequences) for at, _ in ramp.points] if ramp.kind == "critical" else []
    clocks = named or [at for at, _ in thresholds(inputs, sequences)]
    if any(later <= earlier for earlier, later in pairwise(clocks)):
        yield f"batch.ramp: thresholds must rise, but are at {', '.join(f'{at:g}' for at in clocks)} sequences"


def thresholds(inputs: PhaseInputs, sequences: int) -> Thresholds:
    """The thresholds of the ramp: (clock in sequences, batch from there on). Batches that are computed, not named, are
    rounded to the granule."""
    given, ramp, ends = inputs.given, inputs.given.ramp, inputs.batches
    if ramp is None:
        return [(0.0, ends.last)]
    if ramp.kind == "staged":
        return [(given.sequences(at, sequences), int(batch)) for at, batch in ramp.points]
    if ramp.kind == "noise":  # how it grows is decided during the run
        return [(0.0, ends.first)]
    if ramp.kind == "critical":
        points = [(given.sequences(at, sequences), batch) for at, batch in ramp.points]
        return schedule.below_critical(ladder(given, ends.first, ends.last), points)
    if ramp.kind == "seesaw":
        exact = schedule.seesaw(ends.first, ends.last, ramp.cut, shape(inputs, sequences))
    else:
        assert ramp.span is not None
        span = given.sequences(ramp.span, sequences)
        exact = (
            schedule.linear(ends.first, ends.last, span, inputs.granule)
            if ramp.kind == "linear"
            else schedule.doubling(ends.first, ends.last, span)
        )
    rounded: Thresholds = []
    for at, batch in exact:
        size = max(inputs.granule, round(batch / inputs.granule) * inputs.granule)
        if not rounded or rounded[-1][1] != size:
            rounded.append((at, size))
    return rounded


def phases(wanted: Sequence[tuple[float, int]], sequences: int) -> tuple[Phase, ...]:
    """The phases as they are trained. Each takes full steps until its end is reached; the last step may exceed it."""
    result: list[Phase] = []
    clock = 0
    ends = [at for at, _ in wanted[1:]] + [float(sequences)]
    for (_, batch), end in zip(wanted, ends, strict=True):
        steps = max(0, math.ceil((min(end, sequences) - clock) / batch))
        if steps:
            result.append(Phase(clock, batch, steps))
            clock += steps * batch
    return tuple(result)


def reachable(inputs: PhaseInputs, sequences: int) -> tuple[Phase, ...]:
    """Phases of 0 steps at the end of the run, for the batches that a ramp may reach by decisions during the run."""
    if not follows_noise(inputs.given):
        return ()
    sizes = ladder(inputs.given, inputs.batches.first, inputs.batches.last)
    return tuple(Phase(sequences, size, 0) for size in sizes[1:])


def mean_batch(walked: Sequence[Phase]) -> float:
    """The batch of the run averaged over its sequences, ΣB²·steps ÷ ΣB·steps, in sequences."""
    consumed = sum(phase.batch * phase.steps for phase in walked)
    return sum(phase.batch**2 * phase.steps for phase in walked) / consumed


def epoch_problems(inputs: PhaseInputs) -> Iterator[str]:
    """The problem with data that have fewer rows than one batch."""
    rows, size = inputs.given.facts.rows, inputs.batches.last
    if rows is not None and size > rows:
        yield (
            f"data: the corpus has {rows} training rows, fewer than one batch of {size}: "
            "use a larger corpus, a smaller batch.size or a shorter data.sequence_length"
        )


def epoch_warnings(inputs: PhaseInputs, sequences: int) -> Iterator[str]:
    """A warning if rows are trained on more than once."""
    rows = inputs.given.facts.rows
    if rows is not None and sequences > rows:
        yield f"the run takes {sequences / rows:.1f} epochs of its {rows:,} rows: watch for overfitting"
