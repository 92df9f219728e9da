"""Statistics of differences that are paired by seed: tests, intervals, effect sizes, power, and many of them at once.

The t-test decides. It assumes that differences over seeds are normal, and that buys a verdict from few seeds: the exact
sign-flip test assumes only that they are symmetric, but n seeds give it no p below 2/2ⁿ (3: 0.25, 5: 0.0625, 6: 0.031).
Both are given, so that a reader sees what the assumption bought.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05  # two-sided, and after Holm the rate of one or more false finds in a family
POWER = 0.8
FEWEST_SEEDS = 3  # with two, one unlucky pair is half of the data and t needs 12.7 standard errors
SIGN_FLIP_SEEDS = 16  # 2¹⁵ sums; above, the t-test needs no second opinion
_CONSTANT = 1e-9  # relative spread below which differences are called constant: rounding of float64

NAN = math.nan


Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Contrast:
    """The test of one number per seed against a threshold. What n does not allow is NaN."""

    differences: tuple[float, ...]
    threshold: float
    mean: float
    sd: float  # n − 1 in the denominator
    low: float  # 95 % confidence interval of the mean
    high: float
    p: float  # two-sided t-test of mean = threshold
    sign_flip_p: float  # the same by exact sign flips
    effect: float  # mean ÷ sd, corrected for few seeds

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def finite(self) -> bool:
        """Whether no run behind it diverged or fell short of its target."""
        return all(map(math.isfinite, self.differences))


def contrast(differences: Sequence[float] | Array, threshold: float = 0.0, exact: bool = False) -> Contrast:
    """Mean, spread and tests of differences paired by seed.

    The paired t-test and its interval: Student 1908. Effect: Cohen's d_z (Cohen 1988) times Hedges' correction
    (Hedges 1981). `exact`: a quantity without noise, such as a count of bytes: differences that do not vary are then
    certain (p = 0); otherwise they leave the test undefined, since too coarse a scale or a seed without effect
    gives the same picture.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return Contrast(tuple(values.tolist()), threshold, NAN, NAN, NAN, NAN, NAN, NAN, NAN)
    mean = float(values.mean())
    if n == 1:
        return Contrast(tuple(values.tolist()), threshold, mean, NAN, NAN, NAN, NAN, NAN, NAN)
    sd = _spread(values)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * sd / math.sqrt(n)
    p = 2 * float(stats.t.sf(abs(_statistic(values, threshold, exact)), n - 1))
    effect = mean / sd * hedges_correction(n - 1) if sd > 0 else NAN
    flips = sign_flip(values - threshold)
    return Contrast(tuple(values.tolist()), threshold, mean, sd, mean - half, mean + half, p, flips, effect)


def above(differences: Sequence[float] | Array, threshold: float, exact: bool = False) -> float:
    """p of the one-sided t-test of mean ≤ threshold: small where the mean lies above. NaN for one seed."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return NAN
    return float(stats.t.sf(_statistic(values, threshold, exact), len(values) - 1))


def equivalence(differences: Sequence[float], margin: float, exact: bool = False) -> float:
    """p of two one-sided t-tests (Schuirmann 1987): small where the mean is sure to lie within ±margin.

    It is below 0.05 just where the 90 % confidence interval lies within ±margin.
    """
    upward = above(differences, -margin, exact)
    downward = above([-value for value in differences], -margin, exact)
    return max(upward, downward) if math.isfinite(upward) else NAN


def sign_flip(differences: Sequence[float] | Array) -> float:
    """Exact two-sided p by all 2ⁿ flips of sign (Fisher 1935, Pitman 1937); NaN above 16 seeds."""
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if not 1 <= n <= SIGN_FLIP_SEEDS or not np.isfinite(values).all():
        return NAN
    codes = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)  # the last sign stays: flipping all changes no |sum|
    sums = np.abs((1 - 2 * (codes & 1)) @ values)
    return float(np.mean(sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()))


def hedges_correction(freedom: int) -> float:
    """J(m) = Γ(m/2) ÷ (√(m/2)·Γ((m−1)/2)), which takes the bias out of d (Hedges 1981); NaN below 2 degrees."""
    if freedom < 2:
        return NAN
    return math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: the rate of one or more false finds among all stays below α (Holm 1979).

    NaN is no test: it stays NaN and the others do not pay for it.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [NAN] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = highest
    return adjusted


def power(effect: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """The chance that the two-sided paired t-test at `alpha` finds a true mean difference `effect` (Student 1908).

    The noncentral t integrated over the sample's spread, to 1e-3: scipy's own is NaN for large effects.
    """
    if n < 2:
        return 0.0
    shares = (np.arange(512) + 0.5) / 512
    spread = np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(effect) / sd * math.sqrt(n)
    return float(np.mean(stats.norm.sf(critical * spread - shift) + stats.norm.cdf(-critical * spread - shift)))


def seeds_needed(effect: float, sd: float, alpha: float = ALPHA, wanted: float = POWER) -> int | None:
    """The fewest seeds that find `effect` with the wanted power; None above 10,000."""
    z = (stats.norm.isf(alpha / 2) + stats.norm.ppf(wanted)) * sd  # a z-test needs (z ÷ effect)² seeds, t more
    if z > 100 * abs(effect):
        return None
    n = max(FEWEST_SEEDS, math.floor((z / effect) ** 2))
    while power(effect, sd, n, alpha) < wanted:
        n += 1
    return n


def _statistic(values: Array, threshold: float, exact: bool) -> float:
    """Student's t; where nothing varies, ±∞ or 0 for an exact quantity and NaN for any other."""
    distance, sd = float(values.mean()) - threshold, _spread(values)
    if sd > 0:
        return distance * math.sqrt(len(values)) / sd
    if not exact:
        return NAN
    return math.copysign(math.inf, distance) if distance else 0.0


def _spread(values: Array) -> float:
    """Standard deviation, 0 where what is left is rounding."""
    sd = float(values.std(ddof=1))
    return 0.0 if sd <= _CONSTANT * float(np.abs(values).max()) else sd
