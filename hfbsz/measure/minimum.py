"""All measures of the minimum that a run reached, as one record."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hfbsz.measure.hessian import Estimate, Objective, largest_eigenvalues, trace
from hfbsz.measure.landscape import Points, along_random
from hfbsz.measure.sharpness import ADAPTIVE_RADII, NOISES, RADII, adaptive_sam, keskar, sam, under_noise

CONTESTED = (
    "Whether flat minima generalize better is contested. For it: Keskar et al. 2017, Smith et al. 2020. Against it: "
    "Dinh et al. 2017 (plain sharpness changes with a rescaling that changes no output), Shallue et al. 2019 and "
    "Geiping et al. 2022 (tuned large batches generalize as well), Andriushchenko et al. 2023 (sharpness correlates "
    "poorly with generalization). A diagnostic, not a criterion."
)
_EIGENVALUES, _RESAMPLES = 3, 2000
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Minimum:
    """What was measured at the weights of a run; losses in nats/target, on the same fixed rows for every run."""

    loss: float  # of the training rows
    validation_loss: float
    eigenvalues: tuple[float, ...]  # of the Hessian, the largest first
    trace: Estimate
    sam: Mapping[str, float]  # rise of the loss by radius
    adaptive_sam: Mapping[str, float]
    keskar: float  # φ, %
    noise: Mapping[str, Estimate]  # rise of the loss by relative size
    landscape: Points
    seconds: float  # that it took

    @property
    def gap(self) -> float:
        """Generalization gap: validation loss − training loss."""
        return self.validation_loss - self.loss

    def to_dict(self) -> dict[str, Any]:
        """The measures as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Minimum":
        """The inverse of `to_dict`. Raises KeyError or TypeError for other data."""
        fields = dict(data)
        fields["trace"] = Estimate(**fields["trace"])
        fields["noise"] = {size: Estimate(**one) for size, one in fields["noise"].items()}
        fields["eigenvalues"] = tuple(fields["eigenvalues"])
        fields["landscape"] = [(float(at), float(loss)) for at, loss in fields["landscape"]]
        return cls(**fields)


def measure(
    training: Objective, validation: Objective, seconds: float, seed: int = 0, show: Show = lambda *_: None
) -> Minimum:
    """Measure the sharpness of the training loss. `seconds`: for the trace, whose error it narrows."""
    started = time.monotonic()
    eigenvalues = largest_eigenvalues(training, _EIGENVALUES, seed, lambda done: show("eigenvalues", done, 3 * 12))
    traced = trace(training, seconds, seed, lambda done: show("trace", done, max(8, done)))
    rises: dict[str, dict[str, float]] = {"sam": {}, "adaptive": {}}
    total = len(RADII) + len(ADAPTIVE_RADII)
    for radius in RADII:
        rises["sam"][f"{radius:g}"] = sam(training, radius)
        show("worst cases", len(rises["sam"]), total)
    for radius in ADAPTIVE_RADII:
        rises["adaptive"][f"{radius:g}"] = adaptive_sam(training, radius)
        show("worst cases", len(RADII) + len(rises["adaptive"]), total)
    noise = {f"{size:g}": under_noise(training, size, seed=seed) for size in NOISES}
    line = along_random(training, seed, show=lambda done, total: show("landscape", done, total))
    return Minimum(
        loss=training.loss(),
        validation_loss=validation.loss(),
        eigenvalues=tuple(eigenvalues),
        trace=traced,
        sam=rises["sam"],
        adaptive_sam=rises["adaptive"],
        keskar=keskar(training),
        noise=noise,
        landscape=line,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of `count` pairs with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    count: int


def rank_correlation(one: Sequence[float], other: Sequence[float], seed: int = 0) -> RankCorrelation | None:
    """The rank correlation of pairs; None for fewer than four, or where one side does not vary."""
    x, y = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if len(x) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    generator, values = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        picked = generator.integers(0, len(x), len(x))
        if len(set(x[picked])) > 1 and len(set(y[picked])) > 1:
            values.append(float(spearmanr(x[picked], y[picked]).statistic))
    low, high = np.quantile(values, [0.025, 0.975]) if values else (math.nan, math.nan)
    return RankCorrelation(float(spearmanr(x, y).statistic), float(low), float(high), len(x))
