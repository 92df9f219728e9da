"""The gradient noise scale: the batch above which averaging more gradients brings diminishing returns.

With g the gradient of the mean loss over B sequences, G its expectation and Σ the covariance of the gradient of one
sequence, E|g|² = |G|² + tr Σ ÷ B. Two batch sizes give both terms, and the noise scale is their ratio tr Σ ÷ |G|²: the
batch at which noise and signal are equal (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

It applies to plain SGD, and to the current point of the run. It is a proxy of the critical batch, not a measurement:
under Adam the critical batch can be orders of magnitude larger (Merrill et al. 2025, arXiv 2505.23971).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

_MIN_MEASUREMENTS = 3  # for a standard error


class Measurement(NamedTuple):
    """Squared gradient norms of the same weights at two batch sizes.

    The small batches may be parts of the large batch: the estimates are linear in the norms, so they stay unbiased.
    """

    small: float  # mean of |g|² over the small batches
    large: float  # |g|² of the large batch
    inverse_small: float  # mean of 1 ÷ sequences over the small batches
    inverse_large: float  # 1 ÷ sequences of the large batch

    @property
    def noise(self) -> float:
        """An unbiased estimate of tr Σ, the gradient variance of a single sequence."""
        return (self.small - self.large) / (self.inverse_small - self.inverse_large)

    @property
    def signal(self) -> float:
        """An unbiased estimate of |G|²; it can be negative."""
        return self.large - self.noise * self.inverse_large

    @property
    def is_usable(self) -> bool:
        """Whether the values are finite and the batch sizes differ."""
        return all(map(math.isfinite, self)) and self.inverse_small > self.inverse_large


class DualMeasurement(NamedTuple):
    """Noise and signal in a norm other than ℓ2, such as ℓ1 or the nuclear norm of matrices.

    The scale N² ÷ ‖G‖² is the batch at which noise and signal are equal in that norm, with N the norm of the noise of a
    single sequence: 2 ÷ π times that of Naganuma et al. 2026 (arXiv 2602.03001) in ℓ1, who take N as Σ σᵢ with the
    standard deviation σᵢ of each entry. N is measured without the signal, as the norm of the difference between the
    gradients of two batches of B sequences · √(B ÷ 2). The signal is what N² ÷ B leaves of r², with r the norm of the
    gradient of B sequences. Unlike in ℓ2, that is exact only for batches far above the scale: at the scale and below,
    the scale comes out 0.7 to 2.1 times as large in ℓ1, and up to 10 times too small for gradients of low rank in the
    nuclear norm (tests/measure/test_dual_norms.py).
    """

    noise: float  # N²
    large: float  # r² of the large batch
    inverse_large: float  # 1 ÷ sequences of the large batch

    @property
    def signal(self) -> float:
        """An estimate of ‖G‖²; it can be negative."""
        return self.large - self.noise * self.inverse_large

    @property
    def is_usable(self) -> bool:
        """Whether the values are finite."""
        return all(map(math.isfinite, self))


class NoiseScale:
    """A running estimate of the noise scale: the ratio of two exponential moving averages over measurements.

    Numerator and denominator are averaged separately, because the mean of ratios is biased (the signal of a single
    measurement can be near zero).
    """

    _NAMES = ("weight", "weight2", "noise", "signal", "noise2", "signal2", "product")

    def __init__(self, memory: float = math.inf, saved: Mapping[str, float] | None = None) -> None:
        """`memory`: number of measurements after which the weight of one is down to 37 % (1 ÷ e); `saved`: the result
        of `to_dict` when a run resumes."""
        self.decay = 1 - 1 / memory
        self.sums = {name: float((saved or {}).get(name, 0.0)) for name in self._NAMES}

    def to_dict(self) -> dict[str, float]:
        """The state as plain data, for a checkpoint."""
        return dict(self.sums)

    def add(self, measurement: Measurement | DualMeasurement) -> None:
        """Add a measurement; it is ignored if it is not usable."""
        if not measurement.is_usable:
            return
        noise, signal = measurement.noise, measurement.signal
        new = (1.0, 1.0, noise, signal, noise**2, signal**2, noise * signal)
        for name, value in zip(self._NAMES, new, strict=True):
            decay = self.decay**2 if name == "weight2" else self.decay
            self.sums[name] = decay * self.sums[name] + value

    @property
    def noise(self) -> float | None:
        """The average of tr Σ; None before the first measurement."""
        return self._mean("noise")

    @property
    def signal(self) -> float | None:
        """The average of |G|²; None before the first measurement."""
        return self._mean("signal")

    @property
    def scale(self) -> float | None:
        """The noise scale in sequences; None if the averages do not determine it, because one is not positive."""
        noise, signal = self.noise, self.signal
        return noise / signal if noise is not None and signal is not None and noise > 0 and signal > 0 else None

    @property
    def error(self) -> float | None:
        """The standard error of `scale` in sequences, from the variance of the measurements (delta method for a ratio
        of means); a change of the noise scale over the measurements adds to it. None with fewer than three
        measurements."""
        scale, signal, count = self.scale, self.signal, self.count
        if scale is None or signal is None or count < _MIN_MEASUREMENTS:
            return None
        variance = self._covariance("noise2", "noise", "noise")
        variance += scale**2 * self._covariance("signal2", "signal", "signal")
        variance -= 2 * scale * self._covariance("product", "noise", "signal")
        return math.sqrt(max(0.0, variance) / (count - 1)) / signal

    @property
    def count(self) -> float:
        """The effective number of measurements, (Σw)² ÷ Σw²."""
        return self.sums["weight"] ** 2 / self.sums["weight2"] if self.sums["weight2"] else 0.0

    def _mean(self, name: str) -> float | None:
        return self.sums[name] / self.sums["weight"] if self.sums["weight"] else None

    def _covariance(self, product: str, first: str, second: str) -> float:
        """The weighted covariance of two quantities over the measurements."""
        weight = self.sums["weight"]
        return self.sums[product] / weight - self.sums[first] * self.sums[second] / weight**2
