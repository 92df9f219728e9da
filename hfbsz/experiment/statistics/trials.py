"""The data of the statistics: arms, trials (one per run), measures, and comparisons of arms paired by seed."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hfbsz.display import with_minus
from hfbsz.experiment.statistics.paired import MIN_SEEDS, NAN, Contrast, contrast, holm


@dataclass(frozen=True)
class Arm:
    """The configuration that the runs of an arm share: everything that is compared except the seed."""

    batch: int  # the largest global batch, sequences
    learning_rate: float  # the peak learning rate, at that batch
    micro_batch: int | None  # sequences per forward pass and device; None: varies, filled up to a number of tokens
    accumulation: int | None = 1  # forward passes per optimizer step, at the largest batch
    rule: str = "none"  # how the rate scales with the batch from its reference batch; none: not at all
    tuned: bool = False  # the rate is the best of several values tried for this arm
    searched: bool = False  # the rate is the best tried but at the end of the range: neither tuned nor from the rule
    start: int | None = None  # the first global batch of a ramp, sequences; None: the batch is fixed
    ramp: str = ""  # shape of the ramp
    decays: bool = True  # the schedule decays the rate
    variant: str = ""  # other differences, in words

    @property
    def grows(self) -> bool:
        """Whether the batch grows during the run."""
        return self.start is not None

    @property
    def name(self) -> str:
        """The batch in words: `64 sequences`, `8 → 64 sequences (doubling:75%)`."""
        if not self.grows:
            return f"{self.batch} sequences"
        return f"{self.start} → {self.batch} sequences" + (f" ({self.ramp})" if self.ramp else "")


@dataclass(frozen=True)
class Trial:
    """The measurements of one finished run. None: not measured; infinite or NaN: diverged, or target not reached."""

    arm: Arm
    seed: int
    best_loss: float | None = None  # lowest validation loss, nats/target
    final_loss: float | None = None  # validation loss of the saved model, nats/target
    gap: float | None = None  # validation − training loss, both in evaluation mode, nats/target
    shifted_loss: float | None = None  # loss on data of another distribution, nats/target
    accuracy: float | None = None  # share of rows, 0 to 1
    steps_to_target: float | None = None  # optimizer steps to a target loss that all trials share
    seconds_to_target: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None
    optimizer_steps: float | None = None
    eigenvalue: float | None = None  # the largest one of the Hessian, at the end
    adaptive_sam: float | None = None  # rise in the worst case of an adaptive ball, nats/target, at the end
    critical_sharpness: float | None = None  # 2 ÷ critical learning rate, at the end
    setting: tuple[tuple[str, str], ...] = ()  # (name, value), equal for all trials that can be compared

    @property
    def shift_rise(self) -> float | None:
        """Loss on shifted data − validation loss, nats/target; None if either was not measured."""
        if self.shifted_loss is None or self.final_loss is None:
            return None
        return self.shifted_loss - self.final_loss


@dataclass(frozen=True)
class Measure:
    """How a number of a trial is compared: `relative` measures by the logarithm of the ratio."""

    words: str
    unit: str
    relative: bool = False
    exact: bool = False  # without noise: the same for every seed

    def difference(self, left: float, right: float) -> float:
        """left − right, or ln(left ÷ right) if relative; NaN if the ratio is not positive and finite."""
        if not self.relative:
            return left - right
        return math.log(left / right) if left > 0 and right > 0 and math.isfinite(left / right) else NAN

    def in_unit(self, difference: float) -> float:
        """A difference in `unit_of_difference`."""
        return 100 * math.expm1(difference) if self.relative else difference

    def show(self, difference: float) -> str:
        """A difference as text without unit: in percent if relative, else in `unit`."""
        return with_minus(f"{self.in_unit(difference):+{'.1f' if self.relative else '.3f'}}")

    @property
    def unit_of_difference(self) -> str:
        """`%` if relative, else `unit`."""
        return "%" if self.relative else self.unit


_SHORT = 30  # characters of a value in a message
MEASURES = {
    "best_loss": Measure("best validation loss", "nats/target"),
    "final_loss": Measure("final validation loss", "nats/target"),
    "gap": Measure("gap between validation and training loss", "nats/target"),
    "shifted_loss": Measure("loss on shifted data", "nats/target"),
    "shift_rise": Measure("increase of the loss from validation to shifted data", "nats/target"),
    "accuracy": Measure("accuracy", ""),
    "steps_to_target": Measure("optimizer steps to the target loss", "steps", relative=True),
    "seconds_to_target": Measure("seconds to the target loss", "s", relative=True),
    "tokens_per_second": Measure("tokens/s", "tokens/s", relative=True),
    "peak_memory_bytes": Measure("peak memory", "B", relative=True, exact=True),
    "optimizer_steps": Measure("optimizer steps", "steps", relative=True, exact=True),
    "eigenvalue": Measure("largest eigenvalue of the Hessian", "", relative=True),
    "adaptive_sam": Measure("adaptive SAM", "nats/target", relative=True),
    "critical_sharpness": Measure("critical sharpness", "1/learning rate", relative=True),
}

Runs = Mapping[Arm, Mapping[int, Trial]]  # arm → seed → trial


def by_arm(trials: Iterable[Trial]) -> dict[Arm, dict[int, Trial]]:
    """Trials by arm and seed. Raises ValueError if settings differ or a seed of an arm occurs twice."""
    runs: dict[Arm, dict[int, Trial]] = {}
    settings = set()
    for trial in trials:
        settings.add(trial.setting)
        if runs.setdefault(trial.arm, {}).setdefault(trial.seed, trial) is not trial:
            raise ValueError(f"seed {trial.seed} of {trial.arm} is given twice")
    if len(settings) > 1:
        raise ValueError(f"runs that differ in {_differences(settings)} are not compared")
    return runs


def _differences(settings: Iterable[tuple[tuple[str, str], ...]]) -> str:
    """What settings differ in, with the values where they are short."""
    pairs = sorted({pair for setting in settings for pair in setting})
    values = {name: [value for other, value in pairs if other == name] for name, _ in pairs}
    different = {name: found for name, found in values.items() if len(found) > 1}
    return ", ".join(
        name + (f" ({' and '.join(found)})" if max(map(len, found)) <= _SHORT else "")
        for name, found in (different or values).items()
    )


def values_by_seed(runs: Runs, arm: Arm, measure: str) -> dict[int, float]:
    """The arm's values of a measure by seed, in ascending order of seed, without those that were not measured."""
    values = {seed: getattr(trial, measure) for seed, trial in sorted(runs.get(arm, {}).items())}
    return {seed: value for seed, value in values.items() if value is not None}


def per_seed(
    runs: Runs, arms: Sequence[Arm], measure: str, combine: Callable[..., float]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The seeds shared by all arms, and for each of them `combine(value of arm 1, value of arm 2, …)`."""
    arm_values = [values_by_seed(runs, arm, measure) for arm in arms]
    seeds = sorted(set.intersection(*map(set, arm_values))) if arm_values else []
    return tuple(seeds), tuple(combine(*(values[seed] for values in arm_values)) for seed in seeds)


@dataclass(frozen=True)
class Summary:
    """A measure of one arm over its seeds."""

    arm: Arm
    measure: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float  # NaN if any value is not finite
    sd: float  # n − 1 in the denominator; NaN for one seed

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)


def summarize(trials: Iterable[Trial], measure: str = "final_loss") -> list[Summary]:
    """Mean, standard deviation and values of each arm that has the measure. Raises ValueError as `by_arm` does."""
    runs = by_arm(trials)
    summaries = []
    for arm in runs:
        seed_values = values_by_seed(runs, arm, measure)
        values = tuple(seed_values.values())
        finite = bool(values) and all(map(math.isfinite, values))
        mean = float(np.mean(values)) if finite else NAN
        sd = float(np.std(values, ddof=1)) if finite and len(values) > 1 else NAN
        if values:
            summaries.append(Summary(arm, measure, tuple(seed_values), values, mean, sd))
    return summaries


@dataclass(frozen=True)
class Comparison:
    """Two arms compared seed by seed: `left` − `right`, as defined by `Measure.difference`."""

    left: Arm
    right: Arm
    measure: str
    seeds: tuple[int, ...]
    contrast: Contrast
    p_holm: float  # of the t-test, adjusted over the family; NaN below 3 seeds


def compare(trials: Iterable[Trial], measure: str = "final_loss", baseline: Arm | None = None) -> list[Comparison]:
    """Every arm against the baseline, or all pairs of arms, paired by seed; Holm's correction covers all of them.

    Raises ValueError as `by_arm` does.
    """
    runs = by_arm(trials)
    arms = [arm for arm in runs if values_by_seed(runs, arm, measure)]
    pairs = [(arm, baseline) for arm in arms if arm != baseline] if baseline else itertools.combinations(arms, 2)
    kind, comparisons = MEASURES[measure], []
    for left, right in pairs:
        seeds, differences = per_seed(runs, (left, right), measure, kind.difference)
        comparisons.append(Comparison(left, right, measure, seeds, contrast(differences, exact=kind.exact), NAN))
    adjusted = holm([pair.contrast.p if pair.contrast.n >= MIN_SEEDS else NAN for pair in comparisons])
    return [replace(pair, p_holm=p) for pair, p in zip(comparisons, adjusted, strict=True)]
