"""Squared gradient norms of micro-batches and of single sequences, measured by hooks during an ordinary step.

No backward pass is repeated: the hook of a weight receives the gradient of one micro-batch before it is accumulated,
and the hooks of a normalization layer receive its input and the gradient of its output. Only the difference between two
micro-batches needs a copy of a gradient.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from hfbsz.measure.dual_norms import DualNorm
from hfbsz.train.fsdp import is_sharded


class MicroBatchNorms:
    """The squared norm of the gradient of each micro-batch, over all trainable weights; on demand, the dual norm of the
    difference between the gradients of the first two, for which a copy of the first is held until the second.

    Under DDP a hook receives the gradient before it is averaged over ranks. Under FSDP2 it receives the gradient of the
    unsharded weight, so that a micro-batch is that of one rank there too. Nothing is communicated.
    """

    def __init__(self, model: nn.Module, dual_norm: DualNorm | None = None) -> None:
        self._model, self._dual_norm = model, dual_norm
        self._device = next(model.parameters()).device
        self._weights: list[torch.Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._squares: list[torch.Tensor] = []
        self._first: dict[int, torch.Tensor] = {}  # gradients of the first backward pass, by id() of their weight
        self._differences: list[torch.Tensor] = []
        self._passes = 0
        self._with_difference = False

    def open(self, with_difference: bool = False) -> None:
        """Register the hooks; `with_difference`: also for `take_difference`."""
        if self._weights is None:
            self._weights = list(_leaves(self._model))
        self._squares, self._first, self._differences, self._passes = [], {}, [], 0
        self._with_difference = with_difference and self._dual_norm is not None
        self._handles = [weight.register_hook(partial(self._record, weight)) for weight in self._weights]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._first = [], {}

    def _record(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        self._squares.append(square(gradient))
        if not self._with_difference or self._dual_norm is None:
            return
        if self._passes == 0:
            self._first[id(weight)] = gradient.detach().clone()
        elif self._passes == 1:
            first = self._first.pop(id(weight), None)
            unknown = gradient.new_tensor(torch.nan)
            self._differences.append(unknown if first is None else self._dual_norm.part(weight, gradient - first))

    def take(self) -> torch.Tensor:
        """The squared norm of the gradient of one backward pass, called after each: a scalar on the device, NaN if no
        weight received a gradient."""
        squares, self._squares = self._squares, []
        self._passes += 1
        return self._sum(squares)

    def take_difference(self) -> torch.Tensor:
        """The squared dual norm of the difference between the gradients of the first two backward passes, called after
        them: a scalar on the device, NaN if a weight received a gradient in one of them only."""
        differences, self._differences = self._differences, []
        return self._sum(differences if not self._first else []).square()

    def _sum(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(parts)).sum() if parts else torch.tensor(torch.nan, device=self._device)


class SequenceNorms:
    """The squared norms of the gradients of single sequences, over the weights of the normalization layers.

    The gradient of one sequence is Σ_t dy_t ⊙ x̂_t for the scale of a layer and Σ_t dy_t for its bias, with dy the
    gradient of the layer's output and x̂ its normalized input (Gray et al. 2024, arXiv 2411.00999). It is exact for
    these weights and costs one further normalization of the input. Layers with further inputs are skipped, and layers
    whose input does not have one row per sequence.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = dict(_norm_layers(model))
        self._sums: dict[str, list[torch.Tensor]] = {}  # by layer: gradients of scale and bias, [rows, size] each
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Register the hooks."""
        self._sums = {}
        self._handles = [
            module.register_forward_hook(self._forward_hook(name), with_kwargs=True)
            for name, module in self.layers.items()
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _forward_hook(self, name: str) -> Any:
        def after_forward(module: Any, inputs: Sequence[Any], named: Mapping[str, Any], output: torch.Tensor) -> None:
            arguments = [*inputs, *named.values()]
            if len(arguments) == 1 and isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, module, arguments[0], gradient))

        return after_forward

    @torch.no_grad()
    def _add(self, name: str, module: nn.Module, states: torch.Tensor, gradient: torch.Tensor) -> None:
        gradient = _at_least_float32(gradient)
        parts = []
        if module.weight.requires_grad:
            parts.append(_by_row(gradient * _derivative(module, states)))
        if (bias := getattr(module, "bias", None)) is not None and bias.requires_grad:
            parts.append(_by_row(gradient))
        before = self._sums.get(name)  # from another call of the same layer in this forward pass
        self._sums[name] = parts if before is None else [old + new for old, new in zip(before, parts, strict=True)]

    def take(self, rows: int, sequences: int = 1) -> dict[str, torch.Tensor]:
        """The squared norms of the gradients of the `rows` rows of one backward pass, called after each: shape [rows],
        by layer. A row is one sequence, or as many that follow each other. Layers without one row per sequence are left
        out."""
        sums, self._sums = self._sums, {}
        return {
            name: torch.stack([part.unflatten(0, (-1, sequences)).sum(1).square().sum(-1) for part in parts]).sum(0)
            for name, parts in sums.items()
            if all(part.shape[0] == rows * sequences and part.ndim == 2 for part in parts)
        }


def _by_row(values: torch.Tensor) -> torch.Tensor:
    """The sum over all dimensions but the first and the last: [rows, size]."""
    return values.sum(tuple(range(1, values.ndim - 1))) if values.ndim > 2 else values


def square(tensor: torch.Tensor) -> torch.Tensor:
    """The squared ℓ2 norm of a tensor: a scalar on its device, float64 for a float64 tensor, else float32."""
    return torch.linalg.vector_norm(_at_least_float32(tensor.detach())).square()


def squares_of_gradients(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The squared norm of the gradient (`.grad`) of each weight, 0 without one: shape [weights]. All ranks call it:
    under FSDP2 the values of the shards are summed over ranks."""
    gradients = [weight.new_zeros(()) if weight.grad is None else weight.grad for weight in weights]
    squares = torch.stack([square(value.to_local() if _is_sharded(value) else value) for value in gradients])
    if any(map(_is_sharded, weights)):
        dist.all_reduce(squares)
    return squares


def dual_square(weights: Sequence[torch.Tensor], norm: DualNorm) -> float:
    """The squared dual norm of the gradients (`.grad`) of weights that are not sharded; NaN without gradients."""
    parts = [norm.part(weight, weight.grad) for weight in weights if weight.grad is not None]
    return float(torch.stack(parts).sum().double().square()) if parts else math.nan


def _leaves(model: nn.Module) -> Iterator[torch.Tensor]:
    """The trainable weights that a forward pass uses. Under FSDP2 they are the unsharded weights: the same tensors at
    every step, whose memory is freed in between. All ranks call it."""
    if not is_sharded(model):
        yield from (weight for weight in model.parameters() if weight.requires_grad)
        return
    unit: Any
    for unit in filter(is_sharded, model.modules()):
        unit.unshard()  # only its own weights: those of nested units stay sharded
        yield from (weight for weight in unit.parameters() if weight.requires_grad and not _is_sharded(weight))
        unit.reshard()


def _is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    return isinstance(tensor, DTensor)


def _norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the normalization layers with a trainable scale, such as LayerNorm and RMSNorm."""
    module: Any
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        is_norm = type(module).__name__.lower().rstrip("0123456789").endswith(("norm", "layernorm"))
        if is_norm and isinstance(weight, nn.Parameter) and weight.ndim == 1 and weight.requires_grad:
            yield name.removeprefix("module."), module


def _derivative(module: Any, states: torch.Tensor) -> torch.Tensor:
    """∂output ÷ ∂scale of a normalization layer, in float32, or float64 for float64 states. The output is affine in the
    scale, so this is the output at scale 1 minus that at scale 0, whether the layer multiplies by w or by 1 + w."""
    states = _at_least_float32(states)
    zeros = {name: states.new_zeros(weight.shape) for name, weight in module.named_parameters(recurse=False)}
    at_zero = torch.func.functional_call(module, zeros, (states,))
    at_one = torch.func.functional_call(module, zeros | {"weight": torch.ones_like(zeros["weight"])}, (states,))
    return at_one - at_zero


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
