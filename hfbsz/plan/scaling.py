"""Scaling of the optimizer's settings with κ, the batch relative to the batch at which they were tuned.

κ = global batch ÷ reference batch. Below the critical batch it is well established that a larger batch needs a larger
rate, but not by which exponent; above the critical batch the best rate stays level or falls.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

BETA2_FLOOR = 0.9


@dataclass(frozen=True)
class Rule:
    """A rule for the learning rate: m(κ, p, n) multiplies the reference rate.

    p is the rule's exponent, n the noise scale ÷ the reference batch; most rules use neither.
    """

    multiplier: Callable[[float, float, float], float]
    formula: str
    source: str
    needs_noise: bool = False


def _noise(ratio: float, exponent: float, noise: float) -> float:
    return ((1 + noise) / (1 + noise / ratio)) ** exponent


def _surge(ratio: float, exponent: float, noise: float) -> float:
    def rate(batch: float) -> float:  # relative to its peak, which is at batch = noise scale
        return 2 / (math.sqrt(noise / batch) + math.sqrt(batch / noise))

    return rate(ratio) / rate(1)


RULES = {
    "none": Rule(lambda k, p, n: 1.0, "η", "control: the rate does not follow the batch"),
    "linear": Rule(lambda k, p, n: k, "η·κ", "Goyal et al. 2017 (SGD with momentum, with warmup)"),
    "sqrt": Rule(lambda k, p, n: math.sqrt(k), "η·√κ", "Malladi et al. 2022 (Adam family)"),
    "power": Rule(
        lambda k, p, n: k**p, "η·κ^p", "tuned exponents of Li et al. 2025: median 0.31, 0.13 to 0.58 by size"
    ),
    "sde": Rule(lambda k, p, n: math.sqrt(k), "η·√κ, 1−β → κ(1−β), ε → ε/√κ", "Malladi et al. 2022 (Adam; ε recalled)"),
    "noise": Rule(_noise, "η·((1+B_n/B_ref)/(1+B_n/B))^p", "McCandlish et al. 2018 (p=1 SGD, ½ to 1 Adam)", True),
    "surge": Rule(_surge, "η ∝ 1/(√(B_n/B)+√(B/B_n)), falls beyond B_n", "Li et al. 2024 (Adam family)", True),
}
POWER_EXPONENT = 0.31
BETA2_SOURCE = "β2^κ keeps the half-life in tokens (Marek et al. 2025)"
SDE_SOURCE = "1−κ(1−β) (Malladi et al. 2022)"
WEIGHT_DECAY_SOURCE = "λ·κ/m(κ) keeps the timescale B/(ηλ) (Wang & Aitchison 2024)"
AVERAGE_SOURCE = "a power function average (Karras et al. 2024)"
WARMUP_SOURCE = "as many steps as at the reference (You et al. 2019)"


@dataclass(frozen=True)
class OptimizerRule:
    """The learning-rate rule of an optimizer if the recipe names none."""

    rule: str
    source: str
    settled: bool = True  # False: no rule is established for this optimizer, `rule` is an assumption
    has_betas: bool = True


OPTIMIZERS = {
    "adamw": OptimizerRule("sqrt", "Malladi et al. 2022"),
    "lamb": OptimizerRule("sqrt", "You et al. 2020"),
    "sgd": OptimizerRule("linear", "Goyal et al. 2017", has_betas=False),
    "muon": OptimizerRule("sqrt", "assumed: no rule is established for Muon (LOG.md: 0.46 by a sweep)", settled=False),
    "adafactor": OptimizerRule("sqrt", "assumed: no rule is established for Adafactor", settled=False, has_betas=False),
    "schedule_free": OptimizerRule("sqrt", "assumed: no rule is established for schedule-free AdamW", settled=False),
}


@dataclass(frozen=True)
class RateRule:
    """A rule with its numbers: `exponent` p, and `noise`, the noise scale ÷ the reference batch."""

    name: str
    exponent: float = 1.0
    noise: float = 1.0

    def multiplier(self, ratio: float) -> float:
        """m(κ), by which the reference learning rate is multiplied."""
        return RULES[self.name].multiplier(ratio, self.exponent, self.noise)


def weight_decay_at(weight_decay: float, ratio: float, multiplier: float) -> float:
    """λ' = λ·κ/m(κ): keeps the AdamW timescale τ = B/(ηλ) in sequences constant (Wang & Aitchison 2024).

    The schedule is not included, because torch's optimizers multiply λ by the scheduled learning rate.
    """
    return weight_decay * ratio / multiplier


def beta2_half_life(beta2: float, ratio: float, beta1: float) -> tuple[float, bool]:
    """β2' = β2^κ, and whether it was clamped. Keeps the half-life B·T·ln ½/ln β2 in tokens (Marek et al. 2025).

    Never below max(0.9, 1.05·β1²): Adam needs β1² < β2.
    """
    scaled, lowest = beta2**ratio, max(BETA2_FLOOR, 1.05 * beta1**2)
    return (lowest, True) if scaled < lowest else (scaled, False)


def sde(betas: tuple[float, float], eps: float, ratio: float) -> tuple[tuple[float, float], float]:
    """β_i' = 1−κ(1−β_i) and ε' = ε/√κ: with η·√κ they keep the stochastic differential equation (Malladi et al. 2022).

    Scaling by κ and then by 1/κ returns the original values. Raises ValueError where κ(1−β) reaches 1.
    """
    for beta in betas:
        if ratio * (1 - beta) > 1 - 1e-9:
            raise ValueError(f"κ(1−β) = {ratio * (1 - beta):.3g} is not below 1 for β = {beta:g} at κ = {ratio:.4g}")
    first, second = (1 - ratio * (1 - beta) for beta in betas)
    return (first, second), eps / math.sqrt(ratio)
