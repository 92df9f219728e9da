"""Squared gradient norms of micro-batches and of single sequences, read by hooks during an ordinary step.

Nothing is computed twice and no gradient is copied: a hook on a weight sees the gradient of one micro-batch before it
is added to the others, and a hook on a normalization layer sees what its weights' gradients are made from.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from hfbsz.train.fsdp import is_sharded


class MicroBatchNorms:
    """The squared norm of each micro-batch's gradient, over all weights that are trained.

    Under DDP a hook sees the gradient before ranks average it. Under FSDP2 it sees that of the unsharded weights, so
    that micro-batches are those of one rank there too, and nothing is communicated.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._weights: list[torch.Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._squares: list[torch.Tensor] = []

    def open(self) -> None:
        """Begin to listen."""
        if self._weights is None:
            self._weights = list(_leaves(self._model))
        self._squares = []
        self._handles = [weight.register_hook(self._see) for weight in self._weights]

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _see(self, gradient: torch.Tensor) -> None:
        self._squares.append(square(gradient))

    def take(self) -> torch.Tensor:
        """The squared norm of the gradient since the last call: that of one backward pass, a scalar on the device."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum() if squares else torch.tensor(torch.nan, device=self._device)


class SequenceNorms:
    """The squared norms of the gradients of single sequences, over the weights of the normalization layers.

    A sequence's gradient of a layer's scale is Σ_t dy_t ⊙ x̂_t, of its bias Σ_t dy_t, with dy the gradient of the
    layer's output and x̂ its normalized input (Gray et al. 2024, arXiv 2411.00999). Exact for these weights, at the cost
    of normalizing their inputs once more. Left out are layers with further inputs, and those whose input does not have
    a row for each sequence.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = dict(_norm_layers(model))
        self._sums: dict[str, list[torch.Tensor]] = {}  # of a layer: [rows, size] for its scale and for its bias
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Begin to listen."""
        self._sums = {}
        self._handles = [
            module.register_forward_hook(self._listener(name), with_kwargs=True) for name, module in self.layers.items()
        ]

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _listener(self, name: str) -> Any:
        def after_forward(module: Any, inputs: Sequence[Any], named: Mapping[str, Any], output: torch.Tensor) -> None:
            given = [*inputs, *named.values()]
            if len(given) == 1 and isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, module, given[0], gradient))

        return after_forward

    @torch.no_grad()
    def _add(self, name: str, module: nn.Module, states: torch.Tensor, gradient: torch.Tensor) -> None:
        gradient = _at_least_float32(gradient)
        parts = []
        if module.weight.requires_grad:
            parts.append(_by_row(gradient * _derivative(module, states)))
        if (bias := getattr(module, "bias", None)) is not None and bias.requires_grad:
            parts.append(_by_row(gradient))
        before = self._sums.get(name)  # of a layer that the model applies more than once
        self._sums[name] = parts if before is None else [old + new for old, new in zip(before, parts, strict=True)]

    def take(self, rows: int) -> dict[str, torch.Tensor]:
        """By layer, the squared norms of the gradients of the `rows` sequences of one backward pass: [rows]."""
        sums, self._sums = self._sums, {}
        return {
            name: torch.stack([part.square().sum(-1) for part in parts]).sum(0)
            for name, parts in sums.items()
            if all(part.shape[0] == rows and part.ndim == 2 for part in parts)
        }


def _by_row(values: torch.Tensor) -> torch.Tensor:
    """Sum over all but the first and the last dimension: [rows, size]."""
    return values.sum(tuple(range(1, values.ndim - 1))) if values.ndim > 2 else values


def square(tensor: torch.Tensor) -> torch.Tensor:
    """The squared ℓ2 norm of a tensor (float64 where it is float64, else float32), a scalar on its device."""
    return torch.linalg.vector_norm(_at_least_float32(tensor.detach())).square()


def squares_of_gradients(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The squared norm of the `.grad` of each weight, 0 where there is none: [weights]. All ranks call it: under FSDP2
    they add their shards."""
    gradients = [weight.new_zeros(()) if weight.grad is None else weight.grad for weight in weights]
    squares = torch.stack([square(value.to_local() if _is_sharded(value) else value) for value in gradients])
    if any(map(_is_sharded, weights)):
        dist.all_reduce(squares)
    return squares


def _leaves(model: nn.Module) -> Iterator[torch.Tensor]:
    """The weights that autograd sees in a forward pass and that are trained: under FSDP2 the unsharded ones, which stay
    the same tensors (their memory comes and goes). All ranks call it."""
    if not is_sharded(model):
        yield from (weight for weight in model.parameters() if weight.requires_grad)
        return
    unit: Any
    for unit in filter(is_sharded, model.modules()):
        unit.unshard()  # its own weights: those of the units inside stay sharded
        yield from (weight for weight in unit.parameters() if weight.requires_grad and not _is_sharded(weight))
        unit.reshard()


def _is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    return isinstance(tensor, DTensor)


def _norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The normalization layers with a trained scale (LayerNorm, RMSNorm and the like), by name."""
    module: Any
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        is_norm = type(module).__name__.lower().rstrip("0123456789").endswith(("norm", "layernorm"))
        if is_norm and isinstance(weight, nn.Parameter) and weight.ndim == 1 and weight.requires_grad:
            yield name.removeprefix("module."), module


def _derivative(module: Any, states: torch.Tensor) -> torch.Tensor:
    """∂output ÷ ∂scale of a normalization layer, in float32 (float64): its output is affine in its scale, so this is
    its output at scale 1 less that at scale 0, whether it multiplies by w or by 1 + w."""
    states = _at_least_float32(states)
    zeros = {name: states.new_zeros(weight.shape) for name, weight in module.named_parameters(recurse=False)}
    at_zero = torch.func.functional_call(module, zeros, (states,))
    at_one = torch.func.functional_call(module, zeros | {"weight": torch.ones_like(zeros["weight"])}, (states,))
    return at_one - at_zero


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
