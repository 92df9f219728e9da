"""The batches of a recipe in sequences, and the micro-batch that divides them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hfbsz.plan import laws
from hfbsz.plan.given import Given, batch_unit_problems
from hfbsz.recipe.amounts import Amount, counted
from hfbsz.recipe.law_name import LawName

ASSUMED_MICRO = 8  # sequences: in a plan with batch.micro_max=auto, before the probe
FOLLOWING = ("noise", "critical")  # ramps that follow a measurement


@dataclass(frozen=True)
class Batches:
    """The global batches that a recipe names, in sequences."""

    first: int
    last: int  # the final batch of a ramp; of a staged ramp, the largest
    named: tuple[int, ...]  # all batches that the recipe names, ascending


def batches(given: Given) -> Batches:
    """The batches that a recipe names. Valid only if `batch_problems` yields nothing."""
    batch, ramp = given.recipe.batch, given.ramp
    if in_ramp := _named_by_ramp(given):
        first, last = in_ramp[0], in_ramp[-1] if ramp and ramp.ends else max(in_ramp)
    else:
        last = _size(given) or 1
        first = _in_sequences(given, batch.start) or last
    return Batches(first, last, tuple(sorted({first, last, *in_ramp, *ladder(given, first, last)})))


def follows_noise(given: Given) -> bool:
    """Whether the batch follows the noise scale that the run measures."""
    return given.ramp is not None and given.ramp.kind == "noise"


def noise_ramp_problems(given: Given) -> Iterator[str]:
    """What a ramp that follows the noise scale needs and lacks, one line each."""
    recipe = given.recipe
    if not follows_noise(given):
        return
    ramp, start = recipe.batch.ramp, _in_sequences(given, recipe.batch.start)
    if recipe.measure.noise.method not in ("auto", "two_batch") or recipe.measure.noise.every.value == 0:
        yield f"measure.noise: the ramp '{ramp}' needs it: set measure.noise.method=auto, measure.noise.every=10steps"
    if recipe.batch.micro_tokens is not None:
        yield f"batch.micro_tokens: the ramp '{ramp}' needs micro-batches of one size: set batch.micro_max instead"
    if recipe.duration.unit == "steps":
        yield (
            f"duration: the steps of a run whose ramp is '{ramp}' are not known before it: write sequences, tokens or "
            "epochs"
        )
    if given.world_size == 1 and start == 1:
        yield f"batch.start: the ramp '{ramp}' needs two micro-batches in a step: set batch.start=2seq or more"
    if recipe.scaling.beta2 != "keep" or recipe.scaling.rule == "sde":
        field = "scaling.rule=sde" if recipe.scaling.rule == "sde" else f"scaling.beta2={recipe.scaling.beta2}"
        yield f"batch.ramp: '{ramp}' leaves the mean batch of the run unknown, on which {field} depends: use another"


def ladder(given: Given, first: int, last: int) -> list[int]:
    """The batches that a ramp which follows a measurement can take: doublings from the first up to the last; empty for
    other ramps."""
    if given.ramp is None or given.ramp.kind not in FOLLOWING:
        return []
    doublings = [first]
    while doublings[-1] * 2 < last:
        doublings.append(doublings[-1] * 2)
    return [*doublings, last] if last > first else doublings


def batch_problems(given: Given) -> Iterator[str]:
    """The problems with `batch.size`, `batch.start` and `batch.ramp`, one line each."""
    batch, ramp = given.recipe.batch, given.ramp
    yield from _size_problems(given)
    yield from _amount_problems(given, "batch.start", batch.start)
    start, in_ramp = _in_sequences(given, batch.start), _named_by_ramp(given)
    if any(size < 1 for size in in_ramp):
        yield f"batch.ramp: '{batch.ramp}' names a batch below 1 sequence"
    if in_ramp:
        yield from _conflicts_with_ramp(given, in_ramp)
    elif batch.size is None:
        yield "batch.size: not set: write the sequences or tokens of an optimizer step, such as 64seq"
    if ramp is not None and batch.start is None and not in_ramp:
        yield f"batch.start: not set: the ramp '{batch.ramp}' needs a first batch, such as 8seq"
    size = _size(given)
    if start is not None and ramp is None and start != size:
        yield "batch.start: a first batch needs a ramp to batch.size: set batch.ramp=doubling:75%"
    kind = ramp.kind if ramp is not None else ""
    if start is not None and size is not None and start > size and kind in ("doubling", "seesaw", *FOLLOWING):
        yield f"batch.start: {start} is above batch.size, {size}: a {kind} ramp only grows: set a smaller batch.start"


def _named_by_ramp(given: Given) -> list[int]:
    """The batches of a staged ramp, or the first and last batch of a linear one that names them."""
    ramp = given.ramp
    if ramp is None:
        return []
    return [int(size) for size in ramp.ends or [size for _, size in ramp.points if ramp.kind == "staged"]]


def _conflicts_with_ramp(given: Given, in_ramp: list[int]) -> Iterator[str]:
    """Values of `batch.size` and `batch.start` that differ from the batches that the ramp names."""
    batch = given.recipe.batch
    size = _size(given)
    if size is not None and size != max(in_ramp):
        yield f"batch.size: {size} is not the largest batch of the ramp, {max(in_ramp)}: leave it out"
    start = _in_sequences(given, batch.start)
    if start is not None and start != in_ramp[0]:
        yield f"batch.start: {start} is not the first batch of the ramp, {in_ramp[0]}: leave it out"


def _size(given: Given) -> int | None:
    """`batch.size` in sequences; None if it is not set or has problems."""
    size = given.recipe.batch.size
    if not isinstance(size, LawName):
        return _in_sequences(given, size)
    return None if any(_size_problems(given)) else laws.batch_of(given, size)


def _size_problems(given: Given) -> Iterator[str]:
    size = given.recipe.batch.size
    if isinstance(size, LawName):
        return laws.problems(given, "batch.size", size, laws.law_of(size).batch_needs_size)
    return _amount_problems(given, "batch.size", size)


def _in_sequences(given: Given, amount: Amount | None) -> int | None:
    """A batch in sequences; None if it is not set or has problems."""
    if amount is None or any(_amount_problems(given, "", amount)):
        return None
    return round(given.sequences(amount))


def _amount_problems(given: Given, field: str, amount: Amount | None) -> Iterator[str]:
    if amount is None:
        return
    if amount.unit not in ("sequences", "tokens"):
        yield from batch_unit_problems(field, amount, "64seq or 8192tok")
        return
    size, tokens = given.sequences(amount), given.tokens_per_row
    if given.facts.tokens_per_row is not None and not given.recipe.data.pack:
        size = round(size)  # rows of different lengths: the batch is the nearest number of rows of mean length
    if size < 1 or size != int(size):
        nearest = dict.fromkeys((max(1, math.floor(size)), math.ceil(size) or 1))
        either = " or ".join(f"{count * tokens:g} tokens ({counted(count, 'sequence')})" for count in nearest)
        yield f"{field}: '{amount}' is {size:g} sequences, not a whole number above 0: use {either}"


def division_problems(named: tuple[int, ...], world_size: int) -> Iterator[str]:
    """The batches that do not divide over the processes, one line each with the nearest batches that do."""
    for size in named:
        if size % world_size:
            low = size // world_size * world_size
            nearest = " or ".join(str(value) for value in (low, low + world_size) if value)
            yield f"batch: {size} sequences do not divide over {world_size} processes: take {nearest} sequences"


def micro_max(given: Given) -> int:
    """The most sequences of a micro-batch: given, or found by a probe; before the probe, a number is assumed."""
    value = given.recipe.batch.micro_max
    return value if value != "auto" else given.facts.micro_max or ASSUMED_MICRO


def micro_batch(given: Given, named: tuple[int, ...]) -> int | None:
    """The largest micro-batch, at most `batch.micro_max`, that divides each process's share of every named batch.

    It stays the same during a ramp, so that compiled code is reused and only the accumulation changes. None if
    micro-batches are filled up to `batch.micro_tokens`.
    """
    if given.recipe.batch.micro_tokens is not None:
        return None
    shared = math.gcd(*(size // given.world_size for size in named))
    limit = min(micro_max(given), shared)
    if follows_noise(given) and given.world_size == 1:
        limit = min(limit, named[0] // 2)  # the noise scale is measured between micro-batches
    return max(size for size in range(1, limit + 1) if shared % size == 0)


def micro_batch_warnings(given: Given, named: tuple[int, ...], micro: int | None) -> Iterator[str]:
    """A warning if the micro-batch is less than half of `batch.micro_max`, with batches that allow a larger one."""
    limit = micro_max(given)
    if micro is not None and micro < limit / 2 and min(named) > micro * given.world_size:
        step = limit * given.world_size
        better = ", ".join(f"{size}→{max(step, round(size / step) * step)}" for size in named)
        yield (
            f"micro-batch {micro} is below half of batch.micro_max, {limit}, because it must divide the share of "
            f"a process in every batch; batches that allow {limit}: {better} sequences"
        )
