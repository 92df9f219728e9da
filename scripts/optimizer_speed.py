"""The steps of every optimizer that `scripts/bench.py optimizers` times."""

import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import get_args

import torch

from hfbsz.recipe.fields import Optim
from hfbsz.recipe.load import load
from hfbsz.train.distributed import set_threads
from hfbsz.train.setup import Setup, setup

Timed = Callable[[], float]  # makes a step; returns steps per second


def timed_steps(words: list[str]) -> tuple[Mapping[str, Timed], float]:
    """A step of each optimizer by name, clipping included, on the gradients of the recipe's model; and the seconds of
    the forward and backward passes of a training step."""
    names = get_args(Optim.model_fields["name"].annotation)
    bundles = {name: setup(load([*words, f"optim.name={name}"]).recipe) for name in names}
    set_threads(bundles["adamw"].plan.recipe)
    logged = [step for step in islice(bundles["adamw"].steps(), 20) if step.logged][-1]
    training = logged.step_seconds - logged.parts["optimizer"]
    return {name: _step(bundle) for name, bundle in bundles.items()}, training


def _step(bundle: Setup) -> Timed:
    weights = [weight for weight in bundle.model.parameters() if weight.requires_grad]
    draw = torch.Generator().manual_seed(0)
    gradients = [1e-3 * torch.randn(weight.shape, generator=draw).to(weight) for weight in weights]
    device, finite = bundle.accelerator.device, torch.zeros((), device=bundle.accelerator.device)

    def block() -> float:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        bundle.optimizer.set(bundle.plan.step(0))
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(weights, bundle.plan.recipe.optim.clip or float("inf"))
        bundle.optimizer.step(finite)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1 / (time.perf_counter() - started)

    return block
