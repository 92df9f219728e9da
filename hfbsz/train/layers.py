"""The repeated layers of a model: compiled, recomputed and sharded one by one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hfbsz.errors import UserError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers keeps whole (the model's `_no_split_modules`), in order; empty if it names none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_layers(model: nn.Module, compiler: Callable[[Any], Any] = torch.compile) -> None:
    """Compile the forward pass of each layer, in place, so that equal layers share one compilation and hooks on a layer
    (those of FSDP2) stay outside. Raises UserError for a model that names no layers."""
    layers = layers_of(model)
    if not layers:
        raise UserError(f"model.compile: {type(model).__name__} names no layers to compile: model.compile=false")
    for layer in layers:
        layer.forward = compiler(layer.forward)  # type: ignore[method-assign]


def can_recompute(model: nn.Module) -> bool:
    """Whether the model supports activation checkpointing."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Context in which a model that supports it recomputes its activations."""
    recompute_activations(model)
    try:
        yield
    finally:
        (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()


def recompute_activations(model: Any) -> None:
    """Keep only the inputs of layers for the backward pass, which repeats their forward passes: less memory, more time
    (Chen et al. 2016, arXiv 1604.06174). Raises UserError for a model that does not support it."""
    if not can_recompute(model):
        raise UserError(
            f"model.activation_checkpointing: {type(model).__name__} does not support it: "
            "model.activation_checkpointing=false"
        )
    # transformers before 5.23 has the older name only, which later releases deprecate
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
