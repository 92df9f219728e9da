"""The cross-entropy of a linear head, in chunks of tokens: the logits of a micro-batch never exist in full.

The gradient is computed together with the loss, chunk by chunk, while the logits of a chunk are in the cache: they are
written once and overwritten in place (as in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989). At 50,257 entries of the
vocabulary, logits and their gradients are most of the memory of a small model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hfbsz.data import IGNORED
from hfbsz.errors import UserError

_ENTRIES = {"cpu": 2**20, "cuda": 2**27}  # logits of a chunk, by type of device
_ROWS = {"cpu": (256, 1024), "cuda": (1024, 65536)}  # bounds on the tokens of a chunk
_TOLERANCE = 1e-4  # of the check that a head is linear, relative to the largest logit


def chunk_of(vocabulary: int, device: torch.device) -> int:
    """The tokens of a chunk, for logits that fit into the caches of the device."""
    kind = device.type if device.type in _ENTRIES else "cuda"
    low, high = _ROWS[kind]
    return min(high, max(low, _ENTRIES[kind] // vocabulary))


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    lower: torch.dtype | None = None,
) -> torch.Tensor:
    """ΣNLL in nats over the labels that are not −100: a scalar, in float32 (float64 for float64 weights).

    `hidden`: [..., width]; `weight`: [vocabulary, width]; `bias`: [vocabulary]; `labels`: int64, the shape of `hidden`
    without its last dimension; `lower`: the precision of the products, as under autocast (None: that of the weight).
    There is no second derivative.
    """
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, bias, labels.flatten(), lower)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        lower: torch.dtype | None,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(lower or weight.dtype)
            total = hidden.new_zeros((), dtype=torch.promote_types(weight.dtype, torch.float32))
            ctx.hidden = torch.empty_like(hidden) if needs_hidden else None
            ctx.weight = torch.zeros_like(weight) if needs_weight else None
            ctx.bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
            chunk = chunk_of(len(weight), hidden.device)
            for start in range(0, len(hidden), chunk):
                part, targets = hidden[start : start + chunk].to(used.dtype), labels[start : start + chunk]
                logits = F.linear(part, used).to(total.dtype)
                if bias is not None:
                    logits += bias
                total += _loss_and_gradient(logits, targets)
                gradient = logits.to(used.dtype)
                if ctx.hidden is not None:
                    ctx.hidden[start : start + chunk] = gradient @ used
                if ctx.weight is not None and gradient.dtype == ctx.weight.dtype:
                    ctx.weight.addmm_(gradient.T, part)
                elif ctx.weight is not None:
                    ctx.weight += gradient.T @ part
                if ctx.bias is not None:
                    ctx.bias += logits.sum(dim=0)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradients = (ctx.hidden, ctx.weight, ctx.bias)
        ctx.hidden = ctx.weight = ctx.bias = None
        return *(None if gradient is None else gradient.mul_(scale) for gradient in gradients), None, None


def _loss_and_gradient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The summed loss of a chunk; its gradient, softmax − one-hot, replaces the logits [tokens, vocabulary]."""
    is_target = labels != IGNORED
    places = labels.clamp(min=0)[:, None]
    chosen = logits.gather(1, places)[:, 0]
    largest = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    losses = (total.log() + largest)[:, 0] - chosen
    logits.mul_(is_target[:, None] / total)
    logits.scatter_add_(1, places, -is_target[:, None].to(logits.dtype))
    return losses.masked_fill(~is_target, 0).sum()


class FusedHead:
    """The output head of a causal language model, which `hidden` bypasses."""

    def __init__(self, model: nn.Module) -> None:
        """`model`: not wrapped or sharded. Raises UserError for a model whose logits are not its head's, such as one
        that scales or caps them."""
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(head, nn.Linear):
            raise UserError(f"model.fused_loss: {type(model).__name__} has no linear head: model.fused_loss=false")
        self.head, self._bypassed, self._forward = head, False, head.forward
        self._lower: torch.dtype | None = None  # of autocast inside the model's forward pass, where the head would run
        head.forward = self._apply  # type: ignore[method-assign, assignment]
        self._check(model)

    def _apply(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self._bypassed:
            result: torch.Tensor = self._forward(hidden)
            return result
        kind = hidden.device.type
        self._lower = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return hidden

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Inside, the model returns the input of its head in place of logits."""
        self._bypassed = True
        try:
            yield
        finally:
            self._bypassed = False

    def loss_sum(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """ΣNLL in nats of the head on its inputs [rows, tokens, width]."""
        return linear_cross_entropy(hidden, self.head.weight, self.head.bias, labels, self._lower)

    @torch.no_grad()
    def _check(self, model: nn.Module) -> None:
        training, device = model.training, self.head.weight.device
        tokens = torch.arange(8, device=device)[None] % self.head.weight.shape[0]
        model.eval()
        try:
            logits = model(input_ids=tokens, use_cache=False).logits
            with self.bypassed():
                hidden = model(input_ids=tokens, use_cache=False).logits
        finally:
            model.train(training)
        expected = F.linear(hidden, self.head.weight, self.head.bias)
        if not torch.allclose(logits, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
            raise UserError(
                f"model.fused_loss: {type(model).__name__} changes the logits of its head: model.fused_loss=false"
            )
