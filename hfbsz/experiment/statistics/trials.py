"""Finished runs as the statistics see them: arms, their trials over seeds, and arms compared seed by seed."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hfbsz.experiment.statistics.paired import FEWEST_SEEDS, NAN, Contrast, contrast, holm


@dataclass(frozen=True)
class Arm:
    """What sets runs apart from each other, the seed aside."""

    batch: int  # the largest global batch, sequences
    learning_rate: float  # the peak, at that batch
    micro_batch: int | None  # sequences of one forward pass on one device; None: as many as fill so many tokens
    accumulation: int | None = 1  # passes per optimizer step, at the largest batch
    rule: str = "none"  # by which the rate followed the batch from its reference; none: it did not
    tuned: bool = False  # whether the rate is the best of several tried on this very arm
    searched: bool = False  # whether it is the best of several that lies at their end: neither tuned nor the rule's
    start: int | None = None  # the first global batch of a ramp, sequences; None: the batch is fixed
    ramp: str = ""  # its shape
    decays: bool = True  # whether the schedule lowers the rate
    variant: str = ""  # what else sets it apart, in words

    @property
    def grows(self) -> bool:
        return self.start is not None

    @property
    def name(self) -> str:
        if not self.grows:
            return f"{self.batch} sequences"
        return f"{self.start} → {self.batch} sequences" + (f" ({self.ramp})" if self.ramp else "")


@dataclass(frozen=True)
class Trial:
    """One finished run of an arm. None: not measured; infinite or NaN: diverged, or the target was not reached."""

    arm: Arm
    seed: int
    best_loss: float | None = None  # validation, nats/target
    final_loss: float | None = None  # validation, of the model that the run keeps, nats/target
    gap: float | None = None  # validation − training loss, both in evaluation mode, nats/target
    shifted_loss: float | None = None  # on text of another kind, nats/target
    accuracy: float | None = None  # share
    steps_to_target: float | None = None  # optimizer steps to a loss that all trials share
    seconds_to_target: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None
    optimizer_steps: float | None = None
    setting: str = ""  # what all trials must share: model, data, tokens, optimizer, hardware, target

    @property
    def shift_rise(self) -> float | None:
        """How much higher the loss is on shifted data than on validation, nats/target."""
        if self.shifted_loss is None or self.final_loss is None:
            return None
        return self.shifted_loss - self.final_loss


@dataclass(frozen=True)
class Measure:
    """How a number of a trial is compared: `relative` ones by the logarithm of their ratio."""

    words: str
    unit: str
    relative: bool = False
    exact: bool = False  # without noise: the same for every seed

    def difference(self, left: float, right: float) -> float:
        """left − right, or ln(left ÷ right)."""
        if not self.relative:
            return left - right
        return math.log(left / right) if left > 0 and right > 0 and math.isfinite(left / right) else NAN

    def show(self, difference: float) -> str:
        """A difference as a number: in percent where relative, else in the unit."""
        return f"{100 * math.expm1(difference):+.1f}" if self.relative else f"{difference:+.3f}"

    @property
    def unit_of_difference(self) -> str:
        return "%" if self.relative else self.unit


MEASURES = {
    "best_loss": Measure("best validation loss", "nats/target"),
    "final_loss": Measure("final validation loss", "nats/target"),
    "gap": Measure("gap between validation and training loss", "nats/target"),
    "shifted_loss": Measure("loss on shifted data", "nats/target"),
    "shift_rise": Measure("rise of the loss from validation to shifted data", "nats/target"),
    "accuracy": Measure("accuracy", ""),
    "steps_to_target": Measure("optimizer steps to the target loss", "steps", relative=True),
    "seconds_to_target": Measure("seconds to the target loss", "s", relative=True),
    "tokens_per_second": Measure("tokens/s", "tokens/s", relative=True),
    "peak_memory_bytes": Measure("peak memory", "B", relative=True, exact=True),
    "optimizer_steps": Measure("optimizer steps", "steps", relative=True, exact=True),
}

Runs = Mapping[Arm, Mapping[int, Trial]]  # trials by arm and seed


def by_arm(trials: Iterable[Trial]) -> dict[Arm, dict[int, Trial]]:
    """Trials by arm and seed. Raises ValueError where settings differ or a seed of an arm comes twice."""
    runs: dict[Arm, dict[int, Trial]] = {}
    settings = set()
    for trial in trials:
        settings.add(trial.setting)
        if runs.setdefault(trial.arm, {}).setdefault(trial.seed, trial) is not trial:
            raise ValueError(f"seed {trial.seed} of {trial.arm} is given twice")
    if len(settings) > 1:
        raise ValueError(f"trials of {len(settings)} settings cannot be compared: {', '.join(sorted(settings))}")
    return runs


def numbers(runs: Runs, arm: Arm, measure: str) -> dict[int, float]:
    """The arm's measured numbers by seed."""
    found = {seed: getattr(trial, measure) for seed, trial in sorted(runs.get(arm, {}).items())}
    return {seed: value for seed, value in found.items() if value is not None}


def per_seed(
    runs: Runs, arms: Sequence[Arm], measure: str, combine: Callable[..., float]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The seeds that all of the arms share, and `combine` of the arms' numbers for each of these."""
    found = [numbers(runs, arm, measure) for arm in arms]
    seeds = sorted(set.intersection(*map(set, found))) if found else []
    return tuple(seeds), tuple(combine(*(values[seed] for values in found)) for seed in seeds)


@dataclass(frozen=True)
class Summary:
    """One arm over its seeds."""

    arm: Arm
    measure: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float  # n − 1 in the denominator; NaN for one seed

    @property
    def n(self) -> int:
        return len(self.values)


def summarise(trials: Iterable[Trial], measure: str = "final_loss") -> list[Summary]:
    """Mean, standard deviation and every seed of each arm in which the measure was taken."""
    runs = by_arm(trials)
    summaries = []
    for arm in runs:
        found = numbers(runs, arm, measure)
        values = tuple(found.values())
        finite = bool(values) and all(map(math.isfinite, values))
        mean = float(np.mean(values)) if finite else NAN
        sd = float(np.std(values, ddof=1)) if finite and len(values) > 1 else NAN
        if values:
            summaries.append(Summary(arm, measure, tuple(found), values, mean, sd))
    return summaries


@dataclass(frozen=True)
class Comparison:
    """Two arms compared seed by seed: `left` − `right`, as `Measure.difference` has it."""

    left: Arm
    right: Arm
    measure: str
    seeds: tuple[int, ...]
    contrast: Contrast
    p_holm: float  # of the t-test, adjusted over the family; NaN below 3 seeds


def compare(trials: Iterable[Trial], measure: str = "final_loss", baseline: Arm | None = None) -> list[Comparison]:
    """Every arm against the baseline, or every two arms, paired by seed; Holm's correction runs over all of them."""
    runs = by_arm(trials)
    arms = [arm for arm in runs if numbers(runs, arm, measure)]
    pairs = [(arm, baseline) for arm in arms if arm != baseline] if baseline else itertools.combinations(arms, 2)
    kind, found = MEASURES[measure], []
    for left, right in pairs:
        seeds, differences = per_seed(runs, (left, right), measure, kind.difference)
        found.append(Comparison(left, right, measure, seeds, contrast(differences, exact=kind.exact), NAN))
    adjusted = holm([one.contrast.p if one.contrast.n >= FEWEST_SEEDS else NAN for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True)]
