"""The critical batch from a sweep: steps to a target loss over the batch, fitted by S(B) = a + b ÷ B.

a is the least number of steps (at an infinite batch), b the least number of sequences (at a tiny batch). What is called
the critical batch has more than one definition, and they differ by a factor of three to four on the same data; so each
has its own name here:

- balance, b ÷ a: the batch that needs twice the least steps and twice the least sequences (McCandlish et al. 2018,
  arXiv 1812.06162, eq. 2.11).
- overhead, b ÷ (5a) + 1.2·B₀: the batch that needs 20 % more steps than perfect scaling from the batch B₀ would (Zhang
  et al. 2024, arXiv 2410.21676, with B₀ = 256 sequences).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import t as student

from hfbsz.errors import UserError

OVERHEAD = 0.2  # of Zhang et al.
LEAST = 3  # batches for a fit of two numbers
_LEVEL = 0.95  # of intervals and bands
_FAR = 1e9  # a ratio b ÷ a this far outside the batches is no longer told from 0 or infinity


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; an end is infinite where the data do not bound it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CriticalBatch:
    """The fit S(B) = a + b ÷ B, in log S by least squares; B in sequences, S in steps."""

    least_steps: float  # a
    least_sequences: float  # b
    covariance: tuple[tuple[float, float], tuple[float, float]]  # of log a and log b
    spread: float  # residual standard deviation of log S
    freedom: int  # points − 2
    batches: tuple[float, ...]
    steps: tuple[float, ...]

    def steps_at(self, batch: float) -> float:
        """The fitted steps to the target at a batch."""
        return self.least_steps + self.least_sequences / batch

    def band_at(self, batch: float) -> Interval:
        """The fitted steps at a batch, with their 95 % interval."""
        steps = self.steps_at(batch)
        share = self.least_steps / steps  # ∂ log S ÷ ∂ log a
        error = self._error((share, 1 - share))
        return Interval(steps, steps * math.exp(-error), steps * math.exp(error))

    def slope_at(self, batch: float) -> float:
        """d log S ÷ d log B: −1 under perfect scaling, 0 where a larger batch saves no steps."""
        return -1 / (1 + self.least_steps * batch / self.least_sequences)

    @property
    def balance(self) -> Interval:
        """b ÷ a (McCandlish et al. 2018), in sequences.

        The interval is that of the profile likelihood: all ratios whose sum of squared residuals exceeds the least by
        no more than t² ÷ freedom of it. Its upper end is infinite where the data are as well described by perfect
        scaling, and its lower end 0 where they are as well described by a constant number of steps.
        """
        batches, logs = np.array(self.batches), np.log(self.steps)
        ratio, quantile = self.least_sequences / self.least_steps, _quantile(self.freedom)
        limit = self.spread**2 * self.freedom * (1 + quantile**2 / self.freedom)

        def above(log_ratio: float) -> float:
            return _squares(math.exp(log_ratio), batches, logs) - limit

        ends = (math.log(batches.min() / _FAR), math.log(batches.max() * _FAR))
        low, high = (
            math.exp(brentq(above, *sorted((math.log(ratio), end)))) if above(end) > 0 else bound
            for end, bound in zip(ends, (0.0, math.inf), strict=True)
        )
        return Interval(ratio, low, high)

    def overhead(self, first: float) -> Interval:
        """The batch with 20 % more steps than perfect scaling from the batch `first` (Zhang et al. 2024), in
        sequences: (a + b ÷ B*)·B* = 1.2·(a + b ÷ B₀)·B₀."""
        balance = self.balance
        value, low, high = (
            OVERHEAD * end + (1 + OVERHEAD) * first for end in (balance.value, balance.low, balance.high)
        )
        return Interval(value, low, high)

    @property
    def is_reached(self) -> bool:
        """Whether the data bound the critical batch from above."""
        return math.isfinite(self.balance.high)

    def _error(self, gradient: tuple[float, float]) -> float:
        """Half the 95 % interval of a combination of log a and log b."""
        weights = np.array(gradient)
        variance = float(weights @ np.array(self.covariance) @ weights)
        return _quantile(self.freedom) * math.sqrt(max(0.0, variance))


def fit(batches: Sequence[float], steps: Sequence[float]) -> CriticalBatch:
    """Fit steps to a target loss over batches. Raises UserError for fewer than three different batches, and for values
    that are not positive."""
    b, s = np.array(batches, dtype=float), np.array(steps, dtype=float)
    if len(b) != len(s) or not (np.isfinite(b).all() and np.isfinite(s).all() and (b > 0).all() and (s > 0).all()):
        raise UserError("critical batch: batches and steps must be positive numbers, a number of steps for each batch")
    if len(set(b.tolist())) < LEAST:
        raise UserError(
            f"critical batch: {len(set(b.tolist()))} different batches do not determine S = a + b ÷ B: take at least "
            f"{LEAST}, with the largest well above the expected critical batch"
        )

    # for a given ratio r = b ÷ a the best log a is the mean of log S − log(1 + r ÷ B): one number is left to find
    logs = np.log(s)
    ends = (math.log(b.min()) - 12, math.log(b.max()) + 12)
    grid = np.linspace(*ends, 400)
    squares = [_squares(math.exp(x), b, logs) for x in grid]
    best = min(max(int(np.argmin(squares)), 1), len(grid) - 2)
    found = minimize_scalar(
        lambda x: _squares(math.exp(x), b, logs),
        bounds=(grid[best - 1], grid[best + 1]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    ratio, freedom = math.exp(found.x), len(b) - 2
    least = math.exp(float(np.mean(logs - np.log1p(ratio / b))))
    share = 1 / (1 + ratio / b)  # ∂ log S ÷ ∂ log a
    jacobian = np.stack([share, 1 - share], axis=1)
    variance = float(found.fun) / freedom
    covariance = variance * np.linalg.pinv(jacobian.T @ jacobian)
    return CriticalBatch(
        least_steps=least,
        least_sequences=least * ratio,
        covariance=((covariance[0, 0], covariance[0, 1]), (covariance[1, 0], covariance[1, 1])),
        spread=math.sqrt(variance),
        freedom=freedom,
        batches=tuple(b.tolist()),
        steps=tuple(s.tolist()),
    )


def _squares(ratio: float, batches: np.ndarray, logs: np.ndarray) -> float:
    """The sum of squared residuals of log S at the ratio b ÷ a, with the best a."""
    residuals = logs - np.log1p(ratio / batches)
    return float(((residuals - residuals.mean()) ** 2).sum())


def _quantile(freedom: int) -> float:
    """Of Student's t, for two-sided intervals."""
    return float(student.ppf((1 + _LEVEL) / 2, freedom))
