"""Grid search over one number: values a factor of two apart, extended while the best value is at an end."""

import math
from collections.abc import Mapping

FACTOR = 2.0  # between values: Adam's loss is flat within it (LOG.md has the curves)
_MAX_EXTENSIONS = 3  # values added to the first ones, at most


def first_values(middle: float, count: int) -> list[float]:
    """`count` values centered on `middle`, including it, a factor of two apart."""
    return [_round(middle * FACTOR ** (number - count // 2)) for number in range(count)]


def next_value(losses: Mapping[float, float | None], count: int) -> float | None:
    """The next value beyond the end that is best so far; None if the best is inside the range, or after three of them.

    `losses`: nats/target by value; None: the run failed for a reason other than the value; infinite or NaN: diverged.
    """
    best = best_value(losses)
    if best is None or is_inside(losses) or len(losses) >= count + _MAX_EXTENSIONS:
        return None
    lowest = min(value for value, loss in losses.items() if loss is not None)
    beyond = _round(best / FACTOR if best == lowest else best * FACTOR)
    return None if beyond in losses else beyond  # a run there has failed


def best_value(losses: Mapping[float, float | None]) -> float | None:
    """The value with the lowest loss; None if no loss is finite."""
    finite = {value: loss for value, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(finite, key=lambda value: finite[value], default=None)


def is_inside(losses: Mapping[float, float | None]) -> bool:
    """Whether the best value has worse values on both sides; only then the arm counts as tuned."""
    best, tested = best_value(losses), [value for value, loss in losses.items() if loss is not None]
    return best is not None and min(tested) < best < max(tested)


def _round(value: float) -> float:
    """Three significant digits: values appear in commands."""
    return float(f"{value:.3g}")
