"""The cross-entropy of a linear head, in chunks of tokens: the logits of a micro-batch never exist in full.

The gradient is computed together with the loss, chunk by chunk, while the logits of a chunk are in the cache: they are
written once and overwritten in place (as in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989). At 50,257 entries of the
vocabulary, logits and their gradients are most of the memory of a small model.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hfbsz.data import IGNORED
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model

_ENTRIES = {"cpu": 2**20, "cuda": 2**28}  # logits of a chunk, by type of device
_ROWS = {"cpu": (256, 1024), "cuda": (1024, 65536)}  # bounds on the tokens of a chunk
_TOLERANCE = 1e-4  # of the check that a head is linear, relative to the largest logit


def chunk_of(vocabulary: int, device: torch.device) -> int:
    """The tokens of a chunk: on a CPU as many as its caches hold the logits of; on a GPU a power of two, so that the
    chunks of a micro-batch are of one shape."""
    kind = device.type if device.type in _ENTRIES else "cuda"
    low, high = _ROWS[kind]
    size = min(high, max(low, _ENTRIES[kind] // vocabulary))
    return size if kind == "cpu" else 2 ** (size.bit_length() - 1)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    lower: torch.dtype | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """ΣNLL in nats over the labels that are not −100: a scalar, in float32 (float64 for float64 weights).

    `hidden`: [..., width]; `weight`: [vocabulary, width]; `bias`: [vocabulary]; `labels`: int64, the shape of `hidden`
    without its last dimension; `lower`: the precision of the products, as under autocast (None: that of the weight);
    `compiled`: with one kernel for the operations on logits. There is no second derivative. On a CPU, tokens without a
    label take no time.
    """
    loss: torch.Tensor = _LinearCrossEntropy.apply(
        hidden.flatten(0, -2), weight, bias, labels.flatten(), lower, compiled
    )
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
        compiled: bool,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(lower or weight.dtype)
            total = hidden.new_zeros((), dtype=torch.promote_types(weight.dtype, torch.float32))
            ctx.hidden = torch.zeros_like(hidden) if needs_hidden else None
            ctx.weight = torch.zeros_like(weight, dtype=total.dtype) if needs_weight else None
            ctx.bias = torch.zeros_like(bias, dtype=total.dtype) if needs_bias and bias is not None else None
            ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype if bias is not None else None
            size = chunk_of(len(weight), hidden.device)
            for rows in _chunks(labels, size):
                part, targets = hidden[rows].to(used.dtype), labels[rows]
                loss_and_gradient = _compiled(len(targets) != size) if compiled else _in_place
                loss, gradient = loss_and_gradient(F.linear(part, used), bias, targets, total.dtype)
                total += loss
                if ctx.hidden is not None:
                    ctx.hidden[rows] = (gradient @ used).to(hidden.dtype)
                if ctx.weight is not None and gradient.dtype == ctx.weight.dtype:
                    ctx.weight.addmm_(gradient.T, part)
                elif ctx.weight is not None:
                    ctx.weight += gradient.T @ part
                if ctx.bias is not None:
                    ctx.bias += gradient.sum(dim=0, dtype=total.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradients = (ctx.hidden, ctx.weight, ctx.bias)
        if all(one is None for one in gradients):
            raise RuntimeError("the gradients of a loss in chunks are consumed by its first backward pass")
        ctx.hidden = ctx.weight = ctx.bias = None
        scaled = (
            None if one is None else one.mul_(scale).to(dtype) for one, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


@torch.no_grad()
def token_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    lower: torch.dtype | None,
) -> torch.Tensor:
    """The loss of each token in nats, and 1 where its label is the likeliest token: [2, …] with the shape of `labels`,
    0 without a label. Arguments: those of `linear_cross_entropy`. It has no derivative."""
    given, flat = hidden.flatten(0, -2), labels.flatten()
    used = weight.to(lower or weight.dtype)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    result = torch.zeros((2, len(flat)), dtype=dtype, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(flat, chunk_of(len(weight), hidden.device)):
            logits = F.linear(given[rows].to(used.dtype), used).to(dtype)
            if bias is not None:
                logits += bias
            targets = flat[rows]
            result[0, rows] = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
            result[1, rows] = (logits.argmax(dim=1) == targets).to(dtype)
    return result.view(2, *labels.shape)


def each_token_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    lower: torch.dtype | None,
) -> torch.Tensor:
    """The loss of each token in nats, in the shape of `labels`, 0 without a label. Arguments: those of
    `linear_cross_entropy`. The backward pass computes the logits of a chunk again, since the share of a token in the
    gradient is not known before."""
    given, flat = hidden.flatten(0, -2), labels.flatten()
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def losses(
        part: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(lower or weight.dtype)
            logits = F.linear(part.to(used.dtype), used).to(dtype)
            logits = logits if bias is None else logits + bias
            return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")

    chunks = _chunks(flat, chunk_of(len(weight), hidden.device))
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    found = torch.cat([checkpoint(losses, given[rows], weight, bias, flat[rows], **options) for rows in chunks])
    if len(found) < len(flat):  # those of tokens with a label
        places = torch.cat([rows for rows in chunks if isinstance(rows, torch.Tensor)])
        found = found.new_zeros(len(flat)).index_copy(0, places, found)
    return found.view(labels.shape)


def _chunks(labels: torch.Tensor, size: int) -> Sequence[slice | torch.Tensor]:
    """The tokens of each chunk: all of them; on a CPU, where counting them needs no wait, those that have a label."""
    if labels.device.type == "cpu" and (labels == IGNORED).any():
        return (labels != IGNORED).nonzero()[:, 0].split(size)
    return [slice(start, start + size) for start in range(0, len(labels), size)]


def _in_place(
    logits: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a chunk, computed in `dtype`, and its gradient by the logits, softmax − one-hot, [tokens,
    vocabulary] in the dtype of the logits, which are overwritten."""
    exact = logits.to(dtype)
    if bias is not None:
        exact += bias
    is_target = labels != IGNORED
    places = labels.clamp(min=0)[:, None]
    chosen = exact.gather(1, places)[:, 0]
    largest = exact.amax(dim=1, keepdim=True)
    total = exact.sub_(largest).exp_().sum(dim=1, keepdim=True)
    losses = (total.log() + largest)[:, 0] - chosen
    exact.mul_(is_target[:, None] / total)
    exact.scatter_add_(1, places, -is_target[:, None].to(dtype))
    return losses.masked_fill(~is_target, 0).sum(), exact.to(logits.dtype)


def _elementwise(
    logits: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without indexing and writing in place, so that a compiler reads the logits twice and writes them once,
    in their own dtype."""
    exact = logits.to(dtype) if bias is None else logits.to(dtype) + bias
    is_target = labels != IGNORED
    is_label = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    normalizer = exact.logsumexp(dim=1)
    losses = (normalizer - exact.masked_fill(~is_label, 0).sum(dim=1)).masked_fill(~is_target, 0)
    gradient = ((exact - normalizer[:, None]).exp() - is_label.to(dtype)) * is_target[:, None]
    return losses.sum(), gradient.to(logits.dtype)


@cache
def _compiled(dynamic: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """For whole chunks, or `dynamic`: one compilation for chunks of any other size."""
    compiled: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch.compile(_elementwise, dynamic=dynamic)
    return compiled


class FusedHead:
    """The output head of a causal language model, which on demand returns the loss in place of the logits.

    The loss is computed inside the model's forward pass, as DDP, FSDP2 and autocast expect of a layer.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        """`model`: not wrapped or sharded; `compiled`: compile the operations on logits on a GPU (on a CPU, where a
        chunk fits into its caches, nothing is gained). Raises ValueError, with the reason, for a model whose logits are
        not those of a linear head, such as one that scales or caps them."""
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(head, nn.Linear):
            raise ValueError(f"{type(model).__name__} has no linear head")
        self.head, self._forward, self._compiled = head, head.forward, compiled
        self._returns: Literal["logits", "hidden"] | torch.Tensor = "logits"  # or what depends on these labels
        self._loss: Callable[..., torch.Tensor] | None = None  # of the tokens of the labels; None: their sum
        head.forward = self._apply  # type: ignore[method-assign, assignment]
        try:
            self._check(model)
        except Exception:
            del head.forward
            raise

    def loss_sum(self, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """ΣNLL in nats of the model, wrapped or not, over the labels [rows, tokens] that are not −100: a scalar."""
        loss: torch.Tensor = self._output(model, inputs, labels)
        return loss

    def token_losses(self, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """`token_losses` of the model, wrapped or not: [2, rows, tokens]."""
        losses: torch.Tensor = self._output(model, inputs, labels, token_losses)
        return losses

    def each_token_loss(self, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """`each_token_loss` of the model, wrapped or not: [rows, tokens]."""
        losses: torch.Tensor = self._output(model, inputs, labels, each_token_loss)
        return losses

    def _output(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        returns: Any,
        loss: Callable[..., torch.Tensor] | None = None,
    ) -> Any:
        """What the model returns as its logits."""
        self._returns, self._loss = returns, loss
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            self._returns, self._loss = "logits", None

    def _apply(self, hidden: torch.Tensor) -> torch.Tensor:
        if isinstance(self._returns, torch.Tensor):
            kind = hidden.device.type
            lower = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            if self._loss is not None:
                return self._loss(hidden, self.head.weight, self.head.bias, self._returns, lower)
            compiled = self._compiled and kind == "cuda" and torch.is_grad_enabled()
            return linear_cross_entropy(hidden, self.head.weight, self.head.bias, self._returns, lower, compiled)
        return hidden if self._returns == "hidden" else self._forward(hidden)

    @torch.no_grad()
    def _check(self, model: nn.Module) -> None:
        """Raise ValueError unless logits and loss are those of the head alone."""
        training, device = model.training, self.head.weight.device
        tokens = torch.arange(8, device=device)[None] % self.head.weight.shape[0]
        inputs = {"input_ids": tokens}
        model.eval()
        try:
            with torch.compiler.set_stance("force_eager"):  # a few passes are not worth compiling
                logits, hidden, loss = (self._output(model, inputs, each) for each in ("logits", "hidden", tokens))
            expected = F.linear(hidden.to(self.head.weight.dtype), self.head.weight, self.head.bias)
            is_linear = loss.ndim == 0 and bool((logits - expected).abs().max() <= _TOLERANCE * expected.abs().max())
        except (AttributeError, IndexError, RuntimeError, TypeError) as problem:
            raise ValueError(f"{type(model).__name__} reads the output of its head ({problem})") from None
        finally:
            model.train(training)
        if not is_linear:
            raise ValueError(f"{type(model).__name__} changes the logits of its head")


def fused_head(model: nn.Module, spec: Model, notes: list[str]) -> FusedHead | None:
    """The head for `model.fused_loss`; None if it is false, or `auto` and the model does not allow it, with a note.

    Raises UserError if it is true and the model does not allow it.
    """
    if spec.fused_loss is False:
        return None
    try:
        return FusedHead(model, spec.compile)
    except ValueError as reason:
        if spec.fused_loss is True:
            raise UserError(f"model.fused_loss: {reason}: model.fused_loss=false") from None
        notes.append(f"model.fused_loss: off, because {reason}")
        return None
