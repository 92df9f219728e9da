"""The optimizer Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), batched over matrices.

The update of a matrix is its momentum, orthogonalized by five steps of a Newton-Schulz iteration, X ← aX + (bA + cA²)X
with A = XXᵀ, which brings all singular values near 1. `torch.optim.Muon` iterates one matrix at a time, and always in
bfloat16, which a CPU without bfloat16 units emulates at a twentieth of its speed in float32. Here all matrices of one
shape are iterated together, in a precision that the device computes fast, and ranks share the matrices between them.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hfbsz.train.fsdp import local
from hfbsz.train.muon_ranks import on_ranks, on_ranks_by_rows

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: chosen for a fast start rather than convergence to 1
_STEPS = 5
_MIN_NORM = 1e-7  # lower bound on the Frobenius norm that a matrix is divided by
MATCHED_RMS = 0.2  # of AdamW's updates, so that its learning rate and weight decay carry over (Liu et al. 2025)


class Muon(torch.optim.Optimizer):
    """Muon for matrices, with Nesterov momentum and decoupled weight decay.

    Updates are scaled by lr · 0.2 · √max(rows, columns), which gives them about the RMS of AdamW's (Liu et al. 2025,
    arXiv 2502.16982). The iteration runs in bfloat16 on GPUs, in float32 on CPUs, and in float64 for float64 weights.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        """`params`: matrices, or parameter groups of matrices. Raises ValueError for tensors of another dimension."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ValueError(f"Muon updates matrices, not tensors of shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient. `closure` is not supported and ignored."""
        for group in self.param_groups:
            by_shape: dict[tuple[Any, ...], list[torch.Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[*weight.shape, weight.dtype, weight.device].append(weight)
            for weights in by_shape.values():
                self._step(weights, group)

    def _step(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update matrices of the same shape, dtype and device."""
        momentum, shape, sharded = group["momentum"], weights[0].shape, isinstance(weights[0], DTensor)
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
        averages = [local(self.state[weight]["momentum_buffer"]) for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = torch.stack(torch._foreach_lerp(gradients, averages, momentum))
        updates = on_ranks_by_rows(updates, shape[0], orthogonalize) if sharded else on_ranks(updates, orthogonalize)
        rate = group["lr"] * MATCHED_RMS * math.sqrt(max(shape))
        own = [local(weight) for weight in weights]
        torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(own, list(updates.to(own[0].dtype)), alpha=-rate)


def orthogonalize(matrices: torch.Tensor, coefficients: Sequence[float] = _COEFFICIENTS) -> torch.Tensor:
    """The orthogonal factor UVᵀ of each matrix USVᵀ, approximately: singular values are between about 0.7 and 1.2.

    `matrices`: [count, rows, columns], as is the result; `coefficients`: (a, b, c) of the iteration.
    """
    a, b, c = coefficients
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).to(_precision(matrices))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_MIN_NORM)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _precision(matrices: torch.Tensor) -> torch.dtype:
    """The fastest dtype for the iteration on the device of the matrices, at sufficient precision."""
    if matrices.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if matrices.device.type == "cuda" else torch.float32
