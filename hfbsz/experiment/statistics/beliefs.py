"""Common beliefs about batch sizes, and the measurements that test each of them.

A belief is turned into claims: one number per seed, positive if the belief is right. The arms compared must differ in
the batch alone, so comparisons across batches use only arms whose rate is tuned at each batch (Shallue et al. 2019).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from hfbsz.experiment.statistics.paired import MIN_SEEDS
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Runs, per_seed, values_by_seed


@dataclass(frozen=True)
class SmallestEffects:
    """The smallest effects of interest: effects that are significantly smaller count as none."""

    loss: float = 0.02  # nats/target
    ratio: float = 0.05  # of tokens/s and memory, a share
    sharpness: float = 0.1  # a share
    scaling: float = 0.1  # halvings of the steps per doubling of the batch; 1 is perfect scaling


class Kind(Enum):
    """The hypothesis of a claim: its mean exceeds 0 (superiority) or minus its margin (non-inferiority)."""

    SUPERIORITY = "superiority"
    NON_INFERIORITY = "non-inferiority"


@dataclass(frozen=True)
class Claim:
    """One number per seed, positive if the belief is right."""

    words: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    margin: float
    unit: str
    show: Callable[[float], str]  # formats a value in `unit`
    kind: Kind = Kind.SUPERIORITY
    exact: bool = False


@dataclass(frozen=True)
class Case:
    """Claims that must all hold. A guard is a further claim that must hold for support, or contradiction, to count."""

    claims: tuple[Claim, ...]
    supports_guard: Claim | None = None
    contradicts_guard: Claim | None = None


@dataclass(frozen=True)
class Belief:
    """A belief with its source. `cases`: any of them suffices; if empty, arms are missing, which `needs` describes."""

    statement: str
    source: str
    needs: str
    cases: Callable[[Runs, SmallestEffects], list[Case]]


def _pair(
    runs: Runs, more: Arm, less: Arm, measure: str, margin: float, kind: Kind = Kind.SUPERIORITY, names: str = ""
) -> Claim:
    """The claim `more` − `less` in a measure, by seed; `names` names the arms if their batches do not."""
    chosen = MEASURES[measure]
    seeds, values = per_seed(runs, (more, less), measure, chosen.difference)
    words = f"{chosen.words}, {names or f'{more.name} compared with {less.name}'}"
    return Claim(words, seeds, values, margin, chosen.unit_of_difference, chosen.show, kind, chosen.exact)


def _ladder(runs: Runs, measures: Sequence[str], eligible: Callable[[Arm], bool], min_length: int) -> list[Arm]:
    """Arms of fixed batches in ascending order, one per batch (most seeds, then least accumulation), either all with
    decay or all without; empty if there are fewer than `min_length`.

    Batches with fewer than three seeds are left out if enough others remain.
    """
    count = {arm: min(len(values_by_seed(runs, arm, measure)) for measure in measures) for arm in runs}
    best: dict[tuple[bool, int], Arm] = {}
    for arm in sorted(runs, key=lambda arm: (-count[arm], arm.accumulation or 1)):
        if not arm.grows and count[arm] and eligible(arm):
            best.setdefault((arm.decays, arm.batch), arm)
    ladders = []
    for decays in (True, False):
        ladder = [arm for (key, _), arm in sorted(best.items()) if key == decays]
        testable = [arm for arm in ladder if count[arm] >= MIN_SEEDS]
        ladders.append(testable if len(testable) >= min_length else ladder)
    longest = max(ladders, key=lambda ladder: (sum(count[arm] >= MIN_SEEDS for arm in ladder), len(ladder)))
    return longest if len(longest) >= min_length else []


def _slope(ladder: Sequence[Arm], index: int) -> Callable[..., float]:
    """A function of the ladder's values: the change of log2(value) per doubling of the batch after arm `index`."""
    doublings = math.log2(ladder[index + 1].batch / ladder[index].batch)

    def slope(*values: float) -> float:
        low, high = values[index], values[index + 1]
        return math.log2(high / low) / doublings if 0 < low < math.inf and 0 < high < math.inf else math.nan

    return slope


def _throughput(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    ladder = _ladder(runs, ["tokens_per_second"], lambda arm: arm.accumulation == 1, 3)
    if not ladder:
        return []
    initial, last = _slope(ladder, 0), _slope(ladder, len(ladder) - 2)

    def claim(words: str, combine: Callable[..., float]) -> Claim:
        seeds, values = per_seed(runs, ladder, "tokens_per_second", combine)
        return Claim(words, seeds, values, math.log2(1 + smallest.ratio), "%", lambda x: f"{100 * (2**x - 1):+.1f}")

    first, later = _ends(ladder)
    words = f"tokens/s per doubling from {first}"
    levels_off = claim(f"{words} compared with {later}", lambda *values: initial(*values) - last(*values))
    return [Case((claim(words, initial), levels_off))]


def _diminishing(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    ladder = _ladder(runs, ["steps_to_target"], lambda arm: arm.tuned, 3)
    if not ladder:
        return []
    initial, last = _slope(ladder, 0), _slope(ladder, len(ladder) - 2)
    seeds, values = per_seed(runs, ladder, "steps_to_target", lambda *steps: last(*steps) - initial(*steps))
    first, later = _ends(ladder)
    words = f"steps to the target loss saved per doubling from {first} compared with {later}"
    return [Case((Claim(words, seeds, values, smallest.scaling, "halvings", lambda x: f"{x:+.2f}"),))]


def _ends(ladder: Sequence[Arm]) -> tuple[str, str]:
    """The first two and the last two batches of a ladder, in words."""
    a, b, y, z = (arm.batch for arm in (*ladder[:2], *ladder[-2:]))
    return f"{a} to {b} sequences", f"{y} to {z}"


def _generalizes(measure: str, guard: str) -> Callable[[Runs, SmallestEffects], list[Case]]:
    """Largest against smallest tuned batch. A model that fits the data less has a smaller gap anyway, so the better arm
    in `measure` must be non-inferior in `guard`."""

    def cases(runs: Runs, smallest: SmallestEffects) -> list[Case]:
        ladder = _ladder(runs, [measure, guard], lambda arm: arm.tuned, 2)
        if not ladder:
            return []
        small, large = ladder[0], ladder[-1]
        small_not_worse = _pair(runs, large, small, guard, smallest.loss, Kind.NON_INFERIORITY)
        large_not_worse = _pair(runs, small, large, guard, smallest.loss, Kind.NON_INFERIORITY)
        return [Case((_pair(runs, large, small, measure, smallest.loss),), small_not_worse, large_not_worse)]

    return cases


def _flatter(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    """Largest against smallest tuned batch, in a plain and in an adaptive measure: a rescaling of the weights that
    changes no output changes the plain one."""
    measures = ("eigenvalue", "adaptive_sam")
    ladder = _ladder(runs, measures, lambda arm: arm.tuned, 2)
    if not ladder:
        return []
    small, large = ladder[0], ladder[-1]
    return [Case(tuple(_pair(runs, large, small, measure, math.log1p(smallest.sharpness)) for measure in measures))]


def _rate_follows(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    """Arms that differ in the rule alone and whose rate is not tuned at this batch: a tuned rate needs no rule."""
    cases: dict[int, list[Case]] = {}
    for unscaled in (arm for arm in runs if arm.rule == "none" and not arm.tuned and not arm.grows):
        for arm in runs:
            same = replace(arm, rule="none", learning_rate=unscaled.learning_rate) == unscaled
            if same and arm.rule != "none" and not arm.searched and arm.learning_rate != unscaled.learning_rate:
                names = f"rule none compared with {arm.rule} at {arm.batch} sequences"
                claim = _pair(runs, unscaled, arm, "final_loss", smallest.loss, names=names)
                if claim.seeds:
                    cases.setdefault(arm.batch, []).append(Case((claim,)))
    return cases[max(cases)] if cases else []


_COSTS = ("peak_memory_bytes", "tokens_per_second")


def _accumulation(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    """The largest ratio of accumulation at one batch between arms that are otherwise equal."""
    pairs = [
        (many.accumulation / few.accumulation, few.batch, few, many)
        for few in runs
        for many in runs
        if many.accumulation
        and few.accumulation
        and many.accumulation > few.accumulation
        and replace(many, accumulation=few.accumulation, micro_batch=few.micro_batch) == few
        and all(values_by_seed(runs, arm, measure) for arm in (few, many) for measure in _COSTS)
    ]
    if not pairs:
        return []
    *_, few, many = max(pairs, key=lambda pair: pair[:2])
    names = f"{few.accumulation} compared with {many.accumulation} passes per step of {few.batch} sequences"
    return [Case(tuple(_pair(runs, few, many, measure, math.log1p(smallest.ratio), names=names) for measure in _COSTS))]


def _against_growth(runs: Runs, measures: Sequence[str], eligible: Callable[[Arm, Arm], bool]) -> list[tuple[Arm, Arm]]:
    """Pairs (fixed, growing) of tuned arms that have the measures and that are eligible."""
    tuned = [arm for arm in runs if arm.tuned and all(values_by_seed(runs, arm, measure) for measure in measures)]
    pairs = [(fixed, growing) for growing in tuned if growing.grows for fixed in tuned if not fixed.grows]
    return [pair for pair in pairs if eligible(*pair)]


def _replaces_decay(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    def eligible(fixed: Arm, growing: Arm) -> bool:
        return fixed.decays and not growing.decays and fixed.batch == growing.start

    pairs = _against_growth(runs, ["final_loss", "optimizer_steps"], eligible)
    return [
        Case(
            (
                _pair(runs, fixed, growing, "final_loss", smallest.loss, Kind.NON_INFERIORITY),
                _pair(runs, fixed, growing, "optimizer_steps", math.log1p(smallest.ratio)),
            )
        )
        for fixed, growing in pairs
    ]


def _start_small(runs: Runs, smallest: SmallestEffects) -> list[Case]:
    def eligible(fixed: Arm, growing: Arm) -> bool:
        return fixed.decays == growing.decays and fixed.batch == growing.batch

    pairs = _against_growth(runs, ["final_loss"], eligible)
    return [Case((_pair(runs, fixed, growing, "final_loss", smallest.loss),)) for fixed, growing in pairs]


BELIEFS: Mapping[str, Belief] = {
    "throughput": Belief(
        "throughput increases with the batch up to a knee",
        "Williams et al. 2009 (roofline)",
        "three fixed batches without accumulation, the largest past the knee, with tokens/s",
        _throughput,
    ),
    "diminishing": Belief(
        "a larger batch gives diminishing savings in steps",
        "Shallue et al. 2019; McCandlish et al. 2018",
        "three fixed batches, the rate tuned at each, with the steps to a common target loss",
        _diminishing,
    ),
    "gap": Belief(
        "small batches generalize better (smaller gap)",
        "Keskar et al. 2017; disputed by Shallue et al. 2019, Geiping et al. 2022",
        "two fixed batches, the rate tuned at each, with similar final validation losses, and the gap",
        _generalizes("gap", "final_loss"),
    ),
    "shift": Belief(
        "small batches are more robust to distribution shift",
        "Keskar et al. 2017 (flat minima); disputed by Shallue et al. 2019, Geiping et al. 2022",
        "two fixed batches, the rate tuned at each, with the loss on shifted data and the final validation loss",
        _generalizes("shift_rise", "shifted_loss"),
    ),
    "flat": Belief(
        "small batches find flatter minima",
        "Keskar et al. 2017; that flatness is what generalizes is disputed by Dinh et al. 2017, Andriushchenko et al. "
        "2023",
        "two fixed batches, the rate tuned at each, with the largest eigenvalue and adaptive SAM "
        "(measure.sharpness.method=hessian, or hfbsz sharpness on their runs)",
        _flatter,
    ),
    "rate": Belief(
        "the learning rate must be scaled with the batch",
        "Goyal et al. 2017 (linear); Malladi et al. 2022 (sqrt)",
        "one batch other than the reference without a tuned rate: an arm with a scaling rule and one with rule none",
        _rate_follows,
    ),
    "accumulation": Belief(
        "gradient accumulation trades time for memory",
        "arithmetic of micro-batch × accumulation",
        "one batch with two splits into micro-batch × accumulation, with tokens/s and peak memory",
        _accumulation,
    ),
    "growth": Belief(
        "growing the batch instead of decaying the rate saves steps without a higher loss",
        "Smith et al. 2018",
        "a ramp at a constant rate, and its first batch fixed with a decaying rate, both tuned, with optimizer steps",
        _replaces_decay,
    ),
    "start": Belief(
        "a batch that starts small and grows reaches a lower loss than its largest batch used from the first step",
        "McCandlish et al. 2018 (the noise scale grows over a run); Smith et al. 2018",
        "a ramp, and its largest batch fixed, both with decay or both without, both tuned",
        _start_small,
    ),
}
