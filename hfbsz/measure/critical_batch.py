"""The critical batch from a sweep over batches: the fit S(B) = a + b ÷ B of the steps S to a target loss.

a is the minimum number of steps (in the limit of a large batch), b the minimum number of sequences (in the limit of a
small batch). The literature defines the critical batch in more than one way, and the results differ by a factor of
three to four on the same data. This module gives two of them:

- balance, b ÷ a: the batch that needs twice the minimum steps and twice the minimum sequences (McCandlish et al. 2018,
  arXiv 1812.06162, eq. 2.11).
- overhead, b ÷ (5a) + 1.2·B₀: the batch that needs 20 % more steps than perfect scaling from the batch B₀ (Zhang et
  al. 2024, arXiv 2410.21676, with B₀ = 256 sequences).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import t as student

from hfbsz.errors import UserError

OVERHEAD = 0.2  # share of further steps, as in Zhang et al.
MIN_BATCHES = 3  # different batches for a fit of two parameters
_LEVEL = 0.95  # confidence level of intervals and bands
_SEARCH_FACTOR = 1e9  # ends of intervals are searched up to this factor outside the batches; beyond: 0 or infinity


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval; `low` is 0 or `high` infinite if the data do not bound it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CriticalBatch:
    """The least-squares fit of log S(B) with S(B) = a + b ÷ B; B in sequences, S in steps."""

    least_steps: float  # a
    least_sequences: float  # b
    covariance: tuple[tuple[float, float], tuple[float, float]]  # of log a and log b
    residual_std: float  # standard deviation of the residuals of log S
    degrees_of_freedom: int  # points − 2
    batches: tuple[float, ...]
    steps: tuple[float, ...]

    def steps_at(self, batch: float) -> float:
        """The fitted steps to the target loss at a batch in sequences."""
        return self.least_steps + self.least_sequences / batch

    def band_at(self, batch: float) -> Interval:
        """The fitted steps at a batch in sequences, with their 95 % confidence interval."""
        steps = self.steps_at(batch)
        share = self.least_steps / steps  # ∂ log S ÷ ∂ log a
        half_width = self._half_width((share, 1 - share))
        return Interval(steps, steps * math.exp(-half_width), steps * math.exp(half_width))

    def slope_at(self, batch: float) -> float:
        """d log S ÷ d log B at a batch in sequences: −1 under perfect scaling, 0 if a larger batch saves no steps."""
        return -1 / (1 + self.least_steps * batch / self.least_sequences)

    @property
    def balance(self) -> Interval:
        """b ÷ a (McCandlish et al. 2018), in sequences.

        The confidence interval is that of the profile likelihood: all ratios whose sum of squared residuals exceeds
        the minimum by at most the fraction t² ÷ degrees of freedom. The upper end is infinite if perfect scaling is in
        the interval, and the lower end 0 if a constant number of steps is.
        """
        batches, logs = np.array(self.batches), np.log(self.steps)
        ratio, quantile = self.least_sequences / self.least_steps, _quantile(self.degrees_of_freedom)
        limit = self.residual_std**2 * self.degrees_of_freedom * (1 + quantile**2 / self.degrees_of_freedom)

        def above(log_ratio: float) -> float:
            return _residual_sum(math.exp(log_ratio), batches, logs) - limit

        ends = (math.log(batches.min() / _SEARCH_FACTOR), math.log(batches.max() * _SEARCH_FACTOR))
        low, high = (
            math.exp(brentq(above, *sorted((math.log(ratio), end)))) if above(end) > 0 else bound
            for end, bound in zip(ends, (0.0, math.inf), strict=True)
        )
        return Interval(ratio, low, high)

    def overhead(self, first: float) -> Interval:
        """The batch B* that needs 20 % more steps than perfect scaling from the batch B₀ = `first` (Zhang et al. 2024),
        from (a + b ÷ B*)·B* = 1.2·(a + b ÷ B₀)·B₀; all in sequences."""
        balance = self.balance
        value, low, high = (
            OVERHEAD * end + (1 + OVERHEAD) * first for end in (balance.value, balance.low, balance.high)
        )
        return Interval(value, low, high)

    @property
    def is_bounded(self) -> bool:
        """Whether the data bound the critical batch (balance) from above."""
        return math.isfinite(self.balance.high)

    def _half_width(self, gradient: tuple[float, float]) -> float:
        """Half the width of the 95 % confidence interval of a linear combination of log a and log b."""
        weights = np.array(gradient)
        variance = float(weights @ np.array(self.covariance) @ weights)
        return _quantile(self.degrees_of_freedom) * math.sqrt(max(0.0, variance))


def fit(batches: Sequence[float], steps: Sequence[float]) -> CriticalBatch:
    """Fit S(B) = a + b ÷ B to the steps until a target loss (one per batch) and their batches in sequences.

    Raises UserError for fewer than three different batches, and for values that are not positive and finite.
    """
    b, s = np.array(batches, dtype=float), np.array(steps, dtype=float)
    if len(b) != len(s) or not (np.isfinite(b).all() and np.isfinite(s).all() and (b > 0).all() and (s > 0).all()):
        raise UserError(
            "critical batch: batches and steps must be positive numbers, with one number of steps for each batch"
        )
    if len(set(b.tolist())) < MIN_BATCHES:
        raise UserError(
            f"critical batch: {len(set(b.tolist()))} different batches do not determine S = a + b ÷ B: use at least "
            f"{MIN_BATCHES}, with the largest well above the expected critical batch"
        )

    # for a given ratio r = b ÷ a the best log a is the mean of log S − log(1 + r ÷ B): only r has to be searched
    logs = np.log(s)
    ends = (math.log(b.min()) - 12, math.log(b.max()) + 12)
    grid = np.linspace(*ends, 400)
    sums = [_residual_sum(math.exp(x), b, logs) for x in grid]
    best = min(max(int(np.argmin(sums)), 1), len(grid) - 2)
    minimum = minimize_scalar(
        lambda x: _residual_sum(math.exp(x), b, logs),
        bounds=(grid[best - 1], grid[best + 1]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    ratio, degrees_of_freedom = math.exp(minimum.x), len(b) - 2
    least = math.exp(float(np.mean(logs - np.log1p(ratio / b))))
    share = 1 / (1 + ratio / b)  # ∂ log S ÷ ∂ log a
    jacobian = np.stack([share, 1 - share], axis=1)
    variance = float(minimum.fun) / degrees_of_freedom
    covariance = variance * np.linalg.pinv(jacobian.T @ jacobian)
    return CriticalBatch(
        least_steps=least,
        least_sequences=least * ratio,
        covariance=((covariance[0, 0], covariance[0, 1]), (covariance[1, 0], covariance[1, 1])),
        residual_std=math.sqrt(variance),
        degrees_of_freedom=degrees_of_freedom,
        batches=tuple(b.tolist()),
        steps=tuple(s.tolist()),
    )


def _residual_sum(ratio: float, batches: np.ndarray, logs: np.ndarray) -> float:
    """The sum of squared residuals of log S for a ratio b ÷ a, with the best a."""
    residuals = logs - np.log1p(ratio / batches)
    return float(((residuals - residuals.mean()) ** 2).sum())


def _quantile(degrees_of_freedom: int) -> float:
    """The quantile of Student's t for two-sided intervals at the confidence level."""
    return float(student.ppf((1 + _LEVEL) / 2, degrees_of_freedom))
