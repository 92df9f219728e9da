"""Statistics of differences paired by seed: tests, intervals, effect sizes, power, and Holm's correction.

Verdicts use the t-test. It assumes normal differences, which allows verdicts from few seeds: the exact sign-flip test
assumes only symmetric differences, but with n seeds its p is at least 2/2ⁿ (3: 0.25, 5: 0.0625, 6: 0.031). Both are
reported, so that the reader can see how much depends on the assumption.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05  # two-sided; after Holm's correction, the family-wise error rate
POWER = 0.8
MIN_SEEDS = 3  # with two, one unlucky pair is half of the data and t needs 12.7 standard errors
MAX_SIGN_FLIP_SEEDS = 16  # 2¹⁵ sums; with more seeds the t-test is robust enough
_CONSTANT = 1e-9  # relative spread below which differences count as constant: float64 rounding

NAN = math.nan


Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Contrast:
    """The test of one number per seed against a threshold. Statistics that need more seeds are NaN."""

    differences: tuple[float, ...]
    threshold: float
    mean: float
    sd: float  # n − 1 in the denominator
    low: float  # 95 % confidence interval of the mean
    high: float
    p: float  # two-sided t-test; null hypothesis: mean = threshold
    sign_flip_p: float  # exact two-sided sign-flip test of the same hypothesis
    effect: float  # mean ÷ sd, with Hedges' correction for few seeds

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.differences)

    @property
    def finite(self) -> bool:
        """Whether all differences are finite: no run diverged or missed its target."""
        return all(map(math.isfinite, self.differences))


def contrast(differences: Sequence[float] | Array, threshold: float = 0.0, exact: bool = False) -> Contrast:
    """Mean, standard deviation and tests of differences paired by seed.

    Paired t-test and interval: Student 1908. Effect size: Cohen's d_z (Cohen 1988) times Hedges' correction (Hedges
    1981). `exact`: the quantity has no noise, such as a count of bytes, so that constant differences are certain
    (p = 0). Otherwise constant differences leave the test undefined (NaN): a coarse scale, or a seed that has no
    effect, would look the same.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return Contrast(tuple(values.tolist()), threshold, NAN, NAN, NAN, NAN, NAN, NAN, NAN)
    mean = float(values.mean())
    if n == 1:
        return Contrast(tuple(values.tolist()), threshold, mean, NAN, NAN, NAN, NAN, NAN, NAN)
    sd = _spread(values)
    half_width = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * sd / math.sqrt(n)
    p = 2 * float(stats.t.sf(abs(_statistic(values, threshold, exact)), n - 1))
    effect = mean / sd * hedges_correction(n - 1) if sd > 0 else NAN
    flips = sign_flip(values - threshold)
    return Contrast(tuple(values.tolist()), threshold, mean, sd, mean - half_width, mean + half_width, p, flips, effect)


def p_above(differences: Sequence[float] | Array, threshold: float, exact: bool = False) -> float:
    """p of the one-sided t-test with null hypothesis mean ≤ threshold; NaN for one seed or non-finite differences."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return NAN
    return float(stats.t.sf(_statistic(values, threshold, exact), len(values) - 1))


def equivalence(differences: Sequence[float], margin: float, exact: bool = False) -> float:
    """p of two one-sided t-tests (Schuirmann 1987) with null hypothesis |mean| ≥ margin.

    It is below 0.05 if and only if the 90 % confidence interval is within ±margin. NaN as in `p_above`.
    """
    lower = p_above(differences, -margin, exact)
    upper = p_above([-value for value in differences], -margin, exact)
    return max(lower, upper) if math.isfinite(lower) else NAN


def sign_flip(differences: Sequence[float] | Array) -> float:
    """Exact two-sided p by all 2ⁿ flips of sign (Fisher 1935, Pitman 1937); NaN above 16 seeds."""
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if not 1 <= n <= MAX_SIGN_FLIP_SEEDS or not np.isfinite(values).all():
        return NAN
    codes = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)  # the last sign is fixed: |sum| ignores a global flip
    sums = np.abs((1 - 2 * (codes & 1)) @ values)
    return float(np.mean(sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()))


def hedges_correction(freedom: int) -> float:
    """J(m) = Γ(m/2) ÷ (√(m/2)·Γ((m−1)/2)), which makes d unbiased (Hedges 1981); NaN below 2 degrees of freedom."""
    if freedom < 2:
        return NAN
    return math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order, which bound the family-wise error rate by α (Holm 1979).

    NaN stands for a claim that was not tested: it stays NaN and does not count in the family.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [NAN] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = highest
    return adjusted


def power(effect: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """The power of the two-sided paired t-test at `alpha` for a true mean difference `effect`; 0 below two seeds.

    Integrates the noncentral t over the sample standard deviation, to 1e-3: scipy's noncentral t is NaN for large
    effects.
    """
    if n < 2:
        return 0.0
    shares = (np.arange(512) + 0.5) / 512
    spread = np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(effect) / sd * math.sqrt(n)
    return float(np.mean(stats.norm.sf(critical * spread - shift) + stats.norm.cdf(-critical * spread - shift)))


def seeds_needed(effect: float, sd: float, alpha: float = ALPHA, target_power: float = POWER) -> int | None:
    """The smallest number of seeds that detects `effect` with the target power; None above 10,000."""
    z = (stats.norm.isf(alpha / 2) + stats.norm.ppf(target_power)) * sd  # a z-test needs (z ÷ effect)² seeds, t more
    if z > 100 * abs(effect):
        return None
    n = max(MIN_SEEDS, math.floor((z / effect) ** 2))
    while power(effect, sd, n, alpha) < target_power:
        n += 1
    return n


def _statistic(values: Array, threshold: float, exact: bool) -> float:
    """Student's t; without variation, ±∞ or 0 for an exact quantity and NaN otherwise."""
    distance, sd = float(values.mean()) - threshold, _spread(values)
    if sd > 0:
        return distance * math.sqrt(len(values)) / sd
    if not exact:
        return NAN
    return math.copysign(math.inf, distance) if distance else 0.0


def _spread(values: Array) -> float:
    """Sample standard deviation; 0 if it is only rounding error."""
    sd = float(values.std(ddof=1))
    return 0.0 if sd <= _CONSTANT * float(np.abs(values).max()) else sd
