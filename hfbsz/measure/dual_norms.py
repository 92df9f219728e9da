"""The norm in which an optimizer measures a gradient: the dual of the norm in which its steps have the same length.

All entries of a step of sign descent, which Adam resembles, have the same size: the dual norm is ℓ1. All singular
values of a step of Muon are the same: the dual norm is the sum of the singular values of the gradient (nuclear norm).
Both are the decrease of the loss, to first order, per unit of the learning rate.
"""

import math
from collections.abc import Iterable

import torch

from hfbsz.train.muon import MATCHED_RMS, Muon


class DualNorm:
    """The dual norm of a gradient over all weights of an optimizer: ℓ1, with Muon the scaled nuclear norm of each of
    its matrices plus the ℓ1 norm of all other weights."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """`optimizers`: those of the run; the weights of a `Muon` are measured in its norm."""
        muons = [optimizer for optimizer in optimizers if isinstance(optimizer, Muon)]
        self._spectral = {id(w) for muon in muons for group in muon.param_groups for w in group["params"]}

    def part(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The share of one weight in the norm: a scalar on the device of its gradient (both of the same shape)."""
        gradient = gradient.detach() if gradient.dtype == torch.float64 else gradient.detach().float()
        if id(weight) not in self._spectral:
            return gradient.abs().sum()
        wide = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.mT
        values = torch.linalg.eigvalsh(wide @ wide.mT)  # squared singular values, far faster than a decomposition
        return MATCHED_RMS * math.sqrt(max(gradient.shape)) * values.clamp(min=0).sqrt().sum()
