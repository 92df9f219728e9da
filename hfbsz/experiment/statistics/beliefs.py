"""Common beliefs about batch sizes, and which numbers of which arms would decide each.

A belief becomes claims: one number per seed, positive where the belief is right. What is compared must differ in the
batch alone, so across batches only arms with a rate tuned at each batch count (Shallue et al. 2019).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from hfbsz.experiment.statistics.paired import FEWEST_SEEDS
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Runs, numbers, per_seed


@dataclass(frozen=True)
class Smallest:
    """The smallest effects of interest: what is surely smaller counts as none."""

    loss: float = 0.02  # nats/target
    ratio: float = 0.05  # of tokens/s and memory, a share
    scaling: float = 0.1  # halvings of the steps per doubling of the batch; 1 is perfect scaling


class Kind(Enum):
    """What a claim's number must exceed: 0 or minus its margin."""

    MORE = "more"
    NO_LESS = "no less"


@dataclass(frozen=True)
class Claim:
    """One number per seed, positive where the belief is right."""

    words: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    margin: float
    unit: str
    show: Callable[[float], str]  # the number in its unit
    kind: Kind = Kind.MORE
    exact: bool = False


@dataclass(frozen=True)
class Case:
    """Claims that must all hold. A guard is a further claim without which support, or contradiction, means nothing."""

    claims: tuple[Claim, ...]
    supports_guard: Claim | None = None
    contradicts_guard: Claim | None = None


@dataclass(frozen=True)
class Belief:
    """`cases`: any of them suffices; none: arms are missing, and `needs` says which."""

    statement: str
    source: str
    needs: str
    cases: Callable[[Runs, Smallest], list[Case]]


def _pair(
    runs: Runs, more: Arm, less: Arm, measure: str, margin: float, kind: Kind = Kind.MORE, say: str = ""
) -> Claim:
    """`more` − `less` in a measure, by seed; `say` names the arms where batches do not."""
    chosen = MEASURES[measure]
    seeds, values = per_seed(runs, (more, less), measure, chosen.difference)
    words = f"{chosen.words}, {say or f'{more.name} against {less.name}'}"
    return Claim(words, seeds, values, margin, chosen.unit_of_difference, chosen.show, kind, chosen.exact)


def _ladder(runs: Runs, measures: Sequence[str], wanted: Callable[[Arm], bool], least: int) -> list[Arm]:
    """Fixed batches in ascending order, one arm each (most seeds, then least accumulation), all decaying or none.

    Batches with fewer than three seeds are left out where enough others remain.
    """
    count = {arm: min(len(numbers(runs, arm, measure)) for measure in measures) for arm in runs}
    best: dict[tuple[bool, int], Arm] = {}
    for arm in sorted(runs, key=lambda arm: (-count[arm], arm.accumulation or 1)):
        if not arm.grows and count[arm] and wanted(arm):
            best.setdefault((arm.decays, arm.batch), arm)
    ladders = []
    for decays in (True, False):
        ladder = [arm for (key, _), arm in sorted(best.items()) if key == decays]
        firm = [arm for arm in ladder if count[arm] >= FEWEST_SEEDS]
        ladders.append(firm if len(firm) >= least else ladder)
    longest = max(ladders, key=lambda ladder: (sum(count[arm] >= FEWEST_SEEDS for arm in ladder), len(ladder)))
    return longest if len(longest) >= least else []


def _slope(ladder: Sequence[Arm], first: int) -> Callable[..., float]:
    """The change of a measure's log2 per doubling of the batch, between two neighbours of a ladder."""
    octaves = math.log2(ladder[first + 1].batch / ladder[first].batch)

    def slope(*values: float) -> float:
        low, high = values[first], values[first + 1]
        return math.log2(high / low) / octaves if 0 < low < math.inf and 0 < high < math.inf else math.nan

    return slope


def _throughput(runs: Runs, smallest: Smallest) -> list[Case]:
    ladder = _ladder(runs, ["tokens_per_second"], lambda arm: arm.accumulation == 1, 3)
    if not ladder:
        return []
    rise, last = _slope(ladder, 0), _slope(ladder, len(ladder) - 2)

    def claim(words: str, combine: Callable[..., float]) -> Claim:
        seeds, values = per_seed(runs, ladder, "tokens_per_second", combine)
        return Claim(words, seeds, values, math.log2(1 + smallest.ratio), "%", lambda x: f"{100 * (2**x - 1):+.1f}")

    first, later = _ends(ladder)
    words = f"tokens/s per doubling from {first}"
    falls = claim(f"{words} against {later}", lambda *values: rise(*values) - last(*values))
    return [Case((claim(words, rise), falls))]


def _diminishing(runs: Runs, smallest: Smallest) -> list[Case]:
    ladder = _ladder(runs, ["steps_to_target"], lambda arm: arm.tuned, 3)
    if not ladder:
        return []
    rise, last = _slope(ladder, 0), _slope(ladder, len(ladder) - 2)
    seeds, values = per_seed(runs, ladder, "steps_to_target", lambda *steps: last(*steps) - rise(*steps))
    first, later = _ends(ladder)
    words = f"steps to the target loss saved per doubling from {first} against {later}"
    return [Case((Claim(words, seeds, values, smallest.scaling, "halvings", lambda x: f"{x:+.2f}"),))]


def _ends(ladder: Sequence[Arm]) -> tuple[str, str]:
    """The first and the last two batches of a ladder in words."""
    a, b, y, z = (arm.batch for arm in (*ladder[:2], *ladder[-2:]))
    return f"{a} to {b} sequences", f"{y} to {z}"


def _generalises(measure: str, guard: str) -> Callable[[Runs, Smallest], list[Case]]:
    """Largest against smallest tuned batch. A model that fits less has less to lose: the arm that comes out better must
    not have the worse `guard`."""

    def cases(runs: Runs, smallest: Smallest) -> list[Case]:
        ladder = _ladder(runs, [measure, guard], lambda arm: arm.tuned, 2)
        if not ladder:
            return []
        small, large = ladder[0], ladder[-1]
        small_as_good = _pair(runs, large, small, guard, smallest.loss, Kind.NO_LESS)
        large_as_good = _pair(runs, small, large, guard, smallest.loss, Kind.NO_LESS)
        return [Case((_pair(runs, large, small, measure, smallest.loss),), small_as_good, large_as_good)]

    return cases


def _rate_follows(runs: Runs, smallest: Smallest) -> list[Case]:
    """Arms alike but for the rule, untuned at this batch: a tuned rate has nothing left to follow."""
    found: dict[int, list[Case]] = {}
    for held in (arm for arm in runs if arm.rule == "none" and not arm.tuned and not arm.grows):
        for arm in runs:
            same = replace(arm, rule="none", learning_rate=held.learning_rate) == held
            if same and arm.rule != "none" and not arm.searched and arm.learning_rate != held.learning_rate:
                say = f"rule none against {arm.rule} at {arm.batch} sequences"
                claim = _pair(runs, held, arm, "final_loss", smallest.loss, say=say)
                if claim.seeds:
                    found.setdefault(arm.batch, []).append(Case((claim,)))
    return found[max(found)] if found else []


_COSTS = ("peak_memory_bytes", "tokens_per_second")


def _accumulation(runs: Runs, smallest: Smallest) -> list[Case]:
    """The widest spread of accumulation at one batch, all else alike."""
    pairs = [
        (many.accumulation / few.accumulation, few.batch, few, many)
        for few in runs
        for many in runs
        if many.accumulation
        and few.accumulation
        and many.accumulation > few.accumulation
        and replace(many, accumulation=few.accumulation, micro_batch=few.micro_batch) == few
        and all(numbers(runs, arm, measure) for arm in (few, many) for measure in _COSTS)
    ]
    if not pairs:
        return []
    *_, few, many = max(pairs, key=lambda pair: pair[:2])
    say = f"{few.accumulation} against {many.accumulation} passes of a step of {few.batch} sequences"
    return [Case(tuple(_pair(runs, few, many, measure, math.log1p(smallest.ratio), say=say) for measure in _COSTS))]


def _against_growth(runs: Runs, measures: Sequence[str], wanted: Callable[[Arm, Arm], bool]) -> list[tuple[Arm, Arm]]:
    """Tuned fixed arms with the tuned growing arms that they are to be compared with."""
    tuned = [arm for arm in runs if arm.tuned and all(numbers(runs, arm, measure) for measure in measures)]
    pairs = [(fixed, grows) for grows in tuned if grows.grows for fixed in tuned if not fixed.grows]
    return [pair for pair in pairs if wanted(*pair)]


def _replaces_decay(runs: Runs, smallest: Smallest) -> list[Case]:
    def wanted(fixed: Arm, grows: Arm) -> bool:
        return fixed.decays and not grows.decays and fixed.batch == grows.start

    pairs = _against_growth(runs, ["final_loss", "optimizer_steps"], wanted)
    return [
        Case(
            (
                _pair(runs, fixed, grows, "final_loss", smallest.loss, Kind.NO_LESS),
                _pair(runs, fixed, grows, "optimizer_steps", math.log1p(smallest.ratio)),
            )
        )
        for fixed, grows in pairs
    ]


def _start_small(runs: Runs, smallest: Smallest) -> list[Case]:
    def wanted(fixed: Arm, grows: Arm) -> bool:
        return fixed.decays == grows.decays and fixed.batch == grows.batch

    pairs = _against_growth(runs, ["final_loss"], wanted)
    return [Case((_pair(runs, fixed, grows, "final_loss", smallest.loss),)) for fixed, grows in pairs]


BELIEFS: Mapping[str, Belief] = {
    "throughput": Belief(
        "throughput rises with the batch up to a knee",
        "Williams et al. 2009 (roofline)",
        "three fixed batches without accumulation, the largest past the knee, with tokens/s",
        _throughput,
    ),
    "diminishing": Belief(
        "a larger batch saves ever fewer steps",
        "Shallue et al. 2019; McCandlish et al. 2018",
        "three fixed batches, the rate tuned at each, with the steps to one target loss",
        _diminishing,
    ),
    "gap": Belief(
        "small batches generalise better, by a smaller gap",
        "Keskar et al. 2017; against it Shallue et al. 2019, Geiping et al. 2022",
        "two fixed batches, the rate tuned at each, with the gap and the final validation loss, trained to like losses",
        _generalises("gap", "final_loss"),
    ),
    "shift": Belief(
        "small batches survive shifted data better",
        "Keskar et al. 2017 (flat minima); contested as above",
        "two fixed batches, the rate tuned at each, with the loss on shifted data and the final validation loss",
        _generalises("shift_rise", "shifted_loss"),
    ),
    "rate": Belief(
        "the learning rate must follow the batch",
        "Goyal et al. 2017 (linear); Malladi et al. 2022 (sqrt)",
        "one batch other than the reference, its rate not tuned there: an arm with a rule and one with rule none",
        _rate_follows,
    ),
    "accumulation": Belief(
        "accumulation trades time for memory",
        "arithmetic of micro-batch × accumulation",
        "one batch in two splits into micro-batch × accumulation, with tokens/s and peak memory",
        _accumulation,
    ),
    "growth": Belief(
        "growing the batch in place of decaying the rate saves steps at no worse loss",
        "Smith et al. 2018",
        "a ramp at a constant rate and its first batch fixed with a decaying rate, both tuned, with optimizer steps",
        _replaces_decay,
    ),
    "start": Belief(
        "a batch that starts small and grows ends better than its largest from the first step",
        "McCandlish et al. 2018 (the noise scale grows over a run); Smith et al. 2018",
        "a ramp and its largest batch fixed, both decaying or neither, both tuned",
        _start_small,
    ),
}
