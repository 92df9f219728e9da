"""The length of a run, the shape of its learning rate, and its phases: stretches at one global batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfbsz.plan import schedule
from hfbsz.plan.batch import Batches
from hfbsz.plan.given import Given
from hfbsz.plan.plan import Phase
from hfbsz.recipe.amounts import Amount

Thresholds = list[tuple[float, int]]  # (clock in sequences, batch from there on)


@dataclass(frozen=True)
class Ground:
    """What the phases of any length of run follow from."""

    given: Given
    batches: Batches
    granule: int  # sequences: every batch is a multiple of micro-batch × processes
    warmup_factor: float  # of a warmup that is not given in steps
    rule: str  # by which the rate follows the batch


def total(ground: Ground) -> int:
    """The budget in sequences; without `duration_problems`. Of steps under a ramp: the smallest budget that takes so
    many (bisection: more sequences never take fewer steps)."""
    duration = ground.given.recipe.duration
    if duration.unit != "steps":
        return math.ceil(ground.given.sequences(duration))
    steps = math.ceil(duration.value)
    low, high = 0, steps * max(ground.batches.first, ground.batches.last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _takes(ground, middle, steps) else (middle, high)
    return high


def _takes(ground: Ground, sequences: int, steps: int) -> bool:
    """Whether a run of so many sequences is long enough for its parts and takes at least so many steps."""
    if any(shape_problems(ground, sequences)) or any(ramp_problems(ground, sequences)):
        return False
    return sum(phase.steps for phase in phases(thresholds(ground, sequences), sequences)) >= steps


def duration_problems(ground: Ground) -> Iterator[str]:
    """Why a duration is not a length."""
    duration = ground.given.recipe.duration
    if duration.unit == "%":
        yield f"duration: '{duration}' is not a length: write tokens, sequences, steps or epochs"
    elif duration.unit == "steps":
        if duration.value == 0:
            yield f"duration: '{duration}' is less than one sequence"
    else:
        yield from (problems := list(ground.given.amount_problems("duration", duration)))
        if not problems and ground.given.sequences(duration) < 1:
            yield f"duration: '{duration}' is less than one sequence"


def shape(ground: Ground, sequences: int) -> schedule.Shape:
    """The learning rate over a run of so many sequences, relative to its peak; without `shape_problems`."""
    wanted, ramp = ground.given.recipe.schedule, ground.given.ramp
    warmup = _clock(ground, wanted.warmup, ground.batches.first, sequences)
    if wanted.warmup.unit != "steps":
        warmup *= ground.warmup_factor
    decay = _clock(ground, wanted.decay, ground.batches.last, sequences) if wanted.shape == "wsd" else 0.0
    return schedule.Shape(wanted.shape, sequences, warmup, wanted.floor, decay, ramp.cut if ramp else 0.0)


def _clock(ground: Ground, amount: Amount, batch: int, sequences: int) -> float:
    """An amount in sequences; steps are counted at `batch`."""
    return amount.value * batch if amount.unit == "steps" else ground.given.sequences(amount, sequences)


def shape_problems(ground: Ground, sequences: int) -> Iterator[str]:
    """Why warmup, decay and ramp do not fit a run of so many sequences."""
    given, wanted = ground.given, ground.given.recipe.schedule
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
        form = shape(ground, sequences)
        if form.warmup + form.decay > sequences:
            taken = f"{form.warmup + form.decay:g}"
            yield f"schedule: warmup and decay take {taken} of {sequences} sequences: shorten them"
    is_seesaw = given.ramp is not None and given.ramp.cut > 0
    if is_seesaw and (wanted.shape == "constant" or ground.rule != "sqrt" or given.recipe.batch.lr == "held"):
        yield (
            "batch.ramp: seesaw trades the decay of the rate for a larger batch: it needs a decaying "
            "schedule.shape, scaling.rule=sqrt and batch.lr=follow"
        )


def ramp_problems(ground: Ground, sequences: int) -> Iterator[str]:
    """Why a ramp does not fit a run of so many sequences; asked where `shape_problems` are none."""
    given, ramp = ground.given, ground.given.ramp
    if ramp is None:
        return
    amounts = [at for at, _ in ramp.points] + ([ramp.span] if ramp.span is not None else [])
    unknown = [line for amount in amounts for line in given.amount_problems("batch.ramp", amount, sequences)]
    yield from unknown
    if unknown:
        return
    if ramp.span is not None and given.sequences(ramp.span, sequences) > sequences:
        yield f"batch.ramp: '{given.recipe.batch.ramp}' is longer than the run, {sequences} sequences"
    clocks = [at for at, _ in thresholds(ground, sequences)]
    if any(later <= earlier for earlier, later in pairwise(clocks)):
        yield f"batch.ramp: thresholds must rise, these are at {', '.join(f'{at:g}' for at in clocks)} sequences"


def thresholds(ground: Ground, sequences: int) -> Thresholds:
    """From which clock on which batch is wanted; batches that a ramp works out are rounded to the granule."""
    given, ramp, ends = ground.given, ground.given.ramp, ground.batches
    if ramp is None:
        return [(0.0, ends.last)]
    if ramp.kind == "staged":
        return [(given.sequences(at, sequences), int(batch)) for at, batch in ramp.points]
    if ramp.kind == "seesaw":
        exact = schedule.seesaw(ends.first, ends.last, ramp.cut, shape(ground, sequences))
    else:
        assert ramp.span is not None
        span = given.sequences(ramp.span, sequences)
        exact = (
            schedule.linear(ends.first, ends.last, span, ground.granule)
            if ramp.kind == "linear"
            else schedule.doubling(ends.first, ends.last, span)
        )
    rounded: Thresholds = []
    for at, batch in exact:
        size = max(ground.granule, round(batch / ground.granule) * ground.granule)
        if not rounded or rounded[-1][1] != size:
            rounded.append((at, size))
    return rounded


def phases(wanted: Sequence[tuple[float, int]], sequences: int) -> tuple[Phase, ...]:
    """The phases as they are trained: each takes whole steps until its end is reached or passed."""
    result: list[Phase] = []
    clock = 0
    ends = [at for at, _ in wanted[1:]] + [float(sequences)]
    for (_, batch), end in zip(wanted, ends, strict=True):
        steps = max(0, math.ceil((min(end, sequences) - clock) / batch))
        if steps:
            result.append(Phase(clock, batch, steps))
            clock += steps * batch
    return tuple(result)


def mean_batch(walked: Sequence[Phase]) -> float:
    """ΣB²·steps ÷ ΣB·steps: the batch that a token of the run meets on average, in sequences."""
    consumed = sum(phase.batch * phase.steps for phase in walked)
    return sum(phase.batch**2 * phase.steps for phase in walked) / consumed


def epoch_problems(ground: Ground) -> Iterator[str]:
    """Whether the data have fewer rows than one batch."""
    rows, size = ground.given.facts.rows, ground.batches.last
    if rows is not None and size > rows:
        yield (
            f"data: the corpus has {rows} training rows, fewer than one batch of {size}: "
            "take a larger corpus, a smaller batch.size or a shorter data.sequence_length"
        )


def epoch_warnings(ground: Ground, sequences: int) -> Iterator[str]:
    """Whether rows are seen more than once."""
    rows = ground.given.facts.rows
    if rows is not None and sequences > rows:
        yield f"the run passes {sequences / rows:.1f} times over its {rows} rows: watch for overfitting"
