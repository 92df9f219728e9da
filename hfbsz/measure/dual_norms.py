"""The norm in which an optimizer measures a gradient: the dual of the norm in which its steps have the same length.

All entries of a step of sign descent, which Adam resembles, have the same size: the dual norm is ℓ1. All singular
values of a step of Muon are about the same: the dual norm is about the sum of the singular values of the gradient
(nuclear norm). Both are the decrease of the loss, to first order, per unit of the learning rate.
"""

import math
from collections.abc import Iterable

import torch

from hfbsz.train.muon import MATCHED_RMS, Muon, orthogonalize


class DualNorm:
    """The dual norm of a gradient over all weights of an optimizer: ℓ1, for the matrices of Muon the inner product of
    the gradient with its orthogonalized form, as Muon computes it, times the scale of its steps: within a fifth of the
    scaled nuclear norm."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """`optimizers`: those of the run; the weights of a `Muon` are measured in its norm."""
        muons = [optimizer for optimizer in optimizers if isinstance(optimizer, Muon)]
        self._spectral = {id(weight) for muon in muons for group in muon.param_groups for weight in group["params"]}

    def part(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The share of one weight in the norm: a scalar on the device of its gradient (both of the same shape), NaN or
        infinite if the gradient is not finite."""
        gradient = gradient.detach() if gradient.dtype == torch.float64 else gradient.detach().float()
        if id(weight) not in self._spectral:
            return gradient.abs().sum()
        step = orthogonalize(gradient[None])[0].to(gradient.dtype)
        return MATCHED_RMS * math.sqrt(max(gradient.shape)) * (gradient * step).sum()
