"""The search for a tuned number: values a factor of two apart, and further ones while the best lies at an end."""

import math
from collections.abc import Mapping

FACTOR = 2.0  # between values: Adam's loss is flat within it (LOG.md has the curves)
_FURTHER = 3  # values beyond the first ones, at most


def first_values(middle: float, count: int) -> list[float]:
    """`count` values around `middle`, which is one of them."""
    return [_round(middle * FACTOR ** (number - count // 2)) for number in range(count)]


def next_value(losses: Mapping[float, float | None], count: int) -> float | None:
    """The value beyond the end at which the best lies; None where it lies inside, or after three such values.

    `losses`: nats/target of what was tried; None: failed, which says nothing of the value; infinite or NaN: diverged.
    """
    best = best_value(losses)
    if best is None or is_inside(losses) or len(losses) >= count + _FURTHER:
        return None
    return _round(best / FACTOR if best == min(losses) else best * FACTOR)


def best_value(losses: Mapping[float, float | None]) -> float | None:
    """The value of the lowest loss; None where no run was finite."""
    finite = {value: loss for value, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(finite, key=lambda value: finite[value], default=None)


def is_inside(losses: Mapping[float, float | None]) -> bool:
    """Whether the best has a worse neighbour on either side: only then the number counts as tuned."""
    best, known = best_value(losses), [value for value, loss in losses.items() if loss is not None]
    return best is not None and min(known) < best < max(known)


def _round(value: float) -> float:
    """Three digits: values are words of a command."""
    return float(f"{value:.3g}")
