"""The loss along lines through weight space: along a random direction, and between two sets of weights."""

from collections.abc import Callable, Sequence

import torch

from hfbsz.measure.hessian import Objective, Tensors
from hfbsz.measure.sharpness import random_direction

POSITIONS = tuple(round(-1 + 0.1 * step, 10) for step in range(21))  # along a random direction
BETWEEN = tuple(round(-0.5 + 0.1 * step, 10) for step in range(21))  # 0 is the one, 1 the other set of weights
Points = list[tuple[float, float]]  # (position, loss in nats/target)


def along_random(
    objective: Objective,
    seed: int = 0,
    positions: Sequence[float] = POSITIONS,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Points:
    """The loss along a filter-normalized random direction, without biases and norms (Li et al. 2018, arXiv 1712.09913):
    at position 1, each row of a matrix has moved by its own norm."""
    generator = torch.Generator().manual_seed(seed)
    direction = [
        random_direction(weight, generator) if weight.ndim > 1 else torch.zeros_like(weight)
        for weight in objective.weights
    ]
    return _along(objective, direction, positions, show)


def between(
    objective: Objective,
    other: Tensors,
    positions: Sequence[float] = BETWEEN,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Points:
    """The loss on the line from the weights (position 0) to `other` (1), in the shapes of the weights (Goodfellow et
    al. 2015, arXiv 1412.6544)."""
    direction = [end.to(weight) - weight.detach() for end, weight in zip(other, objective.weights, strict=True)]
    return _along(objective, direction, positions, show)


def _along(
    objective: Objective, direction: Tensors, positions: Sequence[float], show: Callable[[int, int], None]
) -> Points:
    points: Points = []
    for position in positions:
        points.append((position, objective.loss_at(direction, position)))
        show(len(points), len(positions))
    return points
