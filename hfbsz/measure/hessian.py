"""Curvature of the loss at given weights: Hessian-vector products, the largest eigenvalues and the trace.

Losses are means over the targets of fixed rows in evaluation mode, so results do not depend on how the rows are split
into micro-batches. Attention runs in the form that has second derivatives.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfbsz.data.batches import Batch

Tensors = Sequence[torch.Tensor]
LossSum = Callable[[Any, Batch], torch.Tensor]  # ΣNLL of a micro-batch over its targets, in nats: a scalar
_TOLERANCE = 1e-3  # of eigenvalues, relative
_SPACE = 12  # Lanczos vectors, at least
_PROBES = 8  # of the trace, at least, for an error bar


class NotFinite(ArithmeticError):
    """A loss, or a derivative of it, is not finite."""


class Objective:
    """The mean loss of fixed rows, in nats/target, as a function of the trained weights of a model.

    The model is in evaluation mode and its weights are as they were whenever a method returns.
    """

    def __init__(self, model: nn.Module, loss_sum: LossSum, batches: Sequence[Batch], world_size: int = 1) -> None:
        """`loss_sum`: with second derivatives (no fused loss); `batches`: on the device of the model, those of this
        rank where several (`world_size`) with equal weights share the rows and call every method together. Raises
        ValueError for batches without targets."""
        self.model, self._loss_sum, self._batches = model.eval(), loss_sum, batches
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._shared = world_size > 1
        counted = torch.tensor(sum(batch.targets for batch in batches), device=self.weights[0].device)
        self.targets = int(self._added_up([counted])[0])
        if not self.targets:
            raise ValueError("rows without targets have no loss")

    def _added_up(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors, each the sum over all ranks."""
        for tensor in tensors if self._shared else ():
            dist.all_reduce(tensor)
        return tensors

    @property
    def size(self) -> int:
        """The number of trained weights."""
        return sum(weight.numel() for weight in self.weights)

    @torch.no_grad()
    def loss(self) -> float:
        """The loss at the current weights."""
        sums = [self._loss_sum(self.model, batch).double() for batch in self._batches]
        return float(self._added_up([torch.stack(sums).sum()])[0]) / self.targets

    def gradient(self) -> list[torch.Tensor]:
        """The gradient of the loss, in the shapes of `weights`."""
        total = [torch.zeros_like(weight) for weight in self.weights]
        for batch in self._batches:
            loss = self._loss_sum(self.model, batch) / self.targets
            for one, part in zip(total, _gradient(loss, self.weights), strict=True):
                one += part
        return self._added_up(total)

    def product(self, vector: Tensors) -> list[torch.Tensor]:
        """The Hessian of the loss times a vector, both in the shapes of `weights`."""
        total = [torch.zeros_like(weight) for weight in self.weights]
        with sdpa_kernel(SDPBackend.MATH):  # the only one with a second derivative
            for batch in self._batches:
                loss = self._loss_sum(self.model, batch) / self.targets
                first = torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)
                slope = torch.stack(
                    [(one * part).sum() for one, part in zip(first, vector, strict=True) if one is not None]
                ).sum()
                for one, part in zip(total, _gradient(slope, self.weights), strict=True):
                    one += part
        return self._added_up(total)

    @contextmanager
    def moved(self, vector: Tensors, scale: float = 1.0) -> Iterator[None]:
        """Context in which `scale` · `vector` is added to the weights."""
        kept = [weight.detach().clone() for weight in self.weights]
        try:
            with torch.no_grad():
                for weight, part in zip(self.weights, vector, strict=True):
                    weight.add_(part, alpha=scale)
            yield
        finally:
            with torch.no_grad():
                for weight, before in zip(self.weights, kept, strict=True):
                    weight.copy_(before)

    def loss_at(self, vector: Tensors, scale: float = 1.0) -> float:
        """The loss where `scale` · `vector` is added to the weights."""
        with self.moved(vector, scale):
            return self.loss()

    def flat(self, vector: Tensors) -> np.ndarray[Any, Any]:
        """A vector in the shapes of `weights` as one array."""
        return torch.cat([part.detach().flatten() for part in vector]).cpu().numpy()

    def shaped(self, array: np.ndarray[Any, Any]) -> list[torch.Tensor]:
        """The inverse of `flat`."""
        parts = torch.from_numpy(np.ascontiguousarray(array)).split([weight.numel() for weight in self.weights])
        return [part.view_as(weight).to(weight) for part, weight in zip(parts, self.weights, strict=True)]


def _gradient(value: torch.Tensor, weights: Tensors) -> list[torch.Tensor]:
    """The gradient of a scalar, 0 for weights that it does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    parts = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(weight) if part is None else part for part, weight in zip(parts, weights, strict=True)]


def largest_eigenvalues(
    objective: Objective, count: int = 1, seed: int = 0, show: Callable[[int], None] = lambda products: None
) -> list[float]:
    """The `count` largest eigenvalues of the Hessian, the largest first, by the Lanczos method (ARPACK), to a relative
    tolerance of 1e-3. `show(products)` reports progress. Raises NotFinite for a loss that is not finite."""
    products = 0

    def product(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal products
        products += 1
        show(products)
        result = objective.flat(objective.product(objective.shaped(array.ravel().astype(np.float32))))
        if not np.isfinite(result).all():
            raise NotFinite("the loss has no finite curvature at these weights")
        return result

    size = objective.size
    start = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    if size <= max(count + 1, 2):  # too small for Lanczos
        columns = np.stack([product(column) for column in np.eye(size, dtype=np.float32)])
        return [float(value) for value in np.linalg.eigvalsh((columns + columns.T) / 2)[::-1][:count]]
    operator = LinearOperator((size, size), matvec=product, dtype=np.float32)
    space = min(size, max(_SPACE, 4 * count))
    values = eigsh(operator, k=count, which="LA", tol=_TOLERANCE, ncv=space, v0=start, return_eigenvectors=False)
    return sorted(map(float, values), reverse=True)


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its standard error."""

    value: float
    error: float
    samples: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent samples, at least two."""
    array = np.asarray(values, dtype=float)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))), len(array))


def trace(
    objective: Objective,
    seconds: float,
    seed: int = 0,
    show: Callable[[int], None] = lambda probes: None,
    probes: int = _PROBES,
) -> Estimate:
    """The trace of the Hessian by Hutchinson's estimator, the mean of vᵀHv over random signs v (Hutchinson 1990): at
    least `probes`, and more until `seconds` have passed, which narrow the error. `show(probes)` reports progress."""
    generator, values, end = torch.Generator().manual_seed(seed), list[float](), time.monotonic() + seconds
    while len(values) < probes or time.monotonic() < end:
        vector = [
            torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1 for weight in objective.weights
        ]
        parts = zip(vector, objective.product(vector), strict=True)
        values.append(math.fsum(float((one * other).sum(dtype=torch.float64)) for one, other in parts))
        show(len(values))
    return estimate(values)
