"""How fast the loss rises around given weights, in several senses; each is a diagnostic, none a criterion.

That flat minima generalize better is contested: plain measures change with a rescaling of weights that changes no
output (Dinh et al. 2017, arXiv 1703.04933), and adaptive ones correlate poorly with generalization too (Andriushchenko
et al. 2023, arXiv 2302.07011).
"""

import math
from collections.abc import Callable, Sequence

import torch

from hfbsz.measure.hessian import Estimate, Objective, Tensors, estimate

RADII = (0.01, 0.02, 0.05, 0.1)  # of SAM; Foret et al. take 0.05
ADAPTIVE_RADII = (0.1, 0.2, 0.5, 1.0)  # of ASAM; Kwon et al. take 0.5 to 2
NOISES = (0.01, 0.03, 0.1, 0.3)  # relative sizes of random noise
_ADDED = 0.01  # to |w| in ASAM
_BOX, _BOX_STEPS = 1e-3, 10  # Keskar's ε, and the steps of the ascent


def sam(objective: Objective, radius: float) -> float:
    """The rise of the loss (nats/target) one step of length `radius` along the gradient away (Foret et al. 2021, arXiv
    2010.01412): the worst case in a ball, to first order."""
    gradient = objective.gradient()
    norm = _norm(gradient)
    return _rise(objective, gradient, radius / norm) if norm else 0.0


def adaptive_sam(objective: Objective, radius: float) -> float:
    """The same in the ball of ASAM (Kwon et al. 2021, arXiv 2102.11600), along T²g ÷ ‖Tg‖ with T = |w| + 0.01: but for
    the 0.01, a rescaling of weights that changes no output changes neither."""
    gradient = objective.gradient()
    scales = [weight.detach().abs() + _ADDED for weight in objective.weights]
    norm = _norm([scale * part for scale, part in zip(scales, gradient, strict=True)])
    direction = [scale * scale * part for scale, part in zip(scales, gradient, strict=True)]
    return _rise(objective, direction, radius / norm) if norm else 0.0


def keskar(objective: Objective) -> float:
    """φ = 100·(max f − f) ÷ (1 + f) over the box |yᵢ| ≤ 1e-3·(|wᵢ| + 1) around the weights (Keskar et al. 2017, arXiv
    1609.04836, eq. 4), f in nats/target. The maximum is that found by ten steps of a projected sign ascent, so φ is a
    lower bound."""
    base = objective.loss()
    box = [_BOX * (weight.detach().abs() + 1) for weight in objective.weights]
    offset, best = [torch.zeros_like(weight) for weight in objective.weights], base
    for _ in range(_BOX_STEPS):
        with objective.moved(offset):
            gradient = objective.gradient()
        offset = [
            torch.clamp(one + 2 * width / _BOX_STEPS * part.sign(), -width, width)
            for one, width, part in zip(offset, box, gradient, strict=True)
        ]
        best = max(best, objective.loss_at(offset))
    return 100 * (best - base) / (1 + base)


def under_noise(
    objective: Objective, size: float, samples: int = 4, seed: int = 0, show: Callable[[int], None] = lambda done: None
) -> Estimate:
    """The rise of the loss (nats/target) under Gaussian noise of a relative size: each row of a weight gets noise whose
    expected norm is `size` times its own. `samples`: at least two."""
    base, generator, rises = objective.loss(), torch.Generator().manual_seed(seed), list[float]()
    for _ in range(samples):
        noise = [random_direction(weight, generator) for weight in objective.weights]
        rises.append(objective.loss_at(noise, size) - base)
        show(len(rises))
    return estimate(rises)


def random_direction(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian direction in the shape of a weight, each of whose rows has the norm of that of the weight, as filters
    in Li et al. 2018 (arXiv 1712.09913); a vector counts as one row."""
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    dims = tuple(range(1, weight.ndim)) if weight.ndim > 1 else tuple(range(weight.ndim))
    own, its = (torch.linalg.vector_norm(one.detach(), dim=dims, keepdim=True) for one in (weight, noise))
    return noise * (own / its.clamp(min=torch.finfo(noise.dtype).tiny))


def _rise(objective: Objective, direction: Tensors, scale: float) -> float:
    return objective.loss_at(direction, scale) - objective.loss()


def _norm(vector: Sequence[torch.Tensor]) -> float:
    return math.sqrt(math.fsum(float(part.double().square().sum()) for part in vector))
