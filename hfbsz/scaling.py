"""How the learning rate, β2 and weight decay follow κ, the batch relative to the one they were tuned at.

κ = global batch ÷ reference batch. The direction (a larger batch takes a larger rate) is sure below the critical
batch; the exponent is not, and past the critical batch the best rate is flat or falls.
"""

from dataclasses import dataclass

BETA2_FLOOR = 0.9


@dataclass(frozen=True)
class Rule:
    """A rule for the learning rate: `exponent` of κ, and where it is from."""

    exponent: float
    formula: str
    source: str


RULES = {
    "none": Rule(0.0, "η", "control: the rate does not follow the batch"),
    "linear": Rule(1.0, "η·κ", "Goyal et al. 2017 (SGD with momentum, with warmup)"),
    "sqrt": Rule(0.5, "η·√κ", "Malladi et al. 2022 (Adam family)"),
}
BETA2_SOURCE = "β2^κ keeps the half-life in tokens (Marek et al. 2025)"
WEIGHT_DECAY_SOURCE = "λ·κ/m(κ) keeps the timescale B/(ηλ) (Wang & Aitchison 2024)"


def rate_multiplier(rule: str, ratio: float) -> float:
    """m(κ), by which the reference learning rate is multiplied."""
    return ratio ** RULES[rule].exponent


def weight_decay_at(weight_decay: float, ratio: float, multiplier: float) -> float:
    """λ' = λ·κ/m(κ): the AdamW timescale τ = B/(ηλ) in sequences stays (Wang & Aitchison 2024).

    The schedule does not enter: torch's AdamW multiplies λ by the scheduled rate itself.
    """
    return weight_decay * ratio / multiplier


def beta2_half_life(beta2: float, ratio: float, beta1: float) -> tuple[float, bool]:
    """β2' = β2^κ, so that the half-life B·T·ln ½/ln β2 in tokens stays (Marek et al. 2025), and whether it was clamped.

    Never below max(0.9, 1.05·β1²): Adam needs β1² < β2.
    """
    scaled, lowest = beta2**ratio, max(BETA2_FLOOR, 1.05 * beta1**2)
    return (lowest, True) if scaled < lowest else (scaled, False)
