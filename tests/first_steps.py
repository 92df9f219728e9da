"""One rank of the first three steps, started by a launcher: `first_steps.py OUT MODEL[:PRECISION] … -- WORD …`.

Writes, for each model preset, OUT/MODEL-PRECISION.npz with the whole gradient of the first window by weight (rank 0),
and OUT/MODEL-PRECISION-RANK.json: how the model lies on the ranks, and what a second step whose loss is not a number on
the last rank alone did to this rank's weights.
"""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from hfbsz.measure.critical_sharpness import SharpnessCollector
from hfbsz.measure.noise import NoiseCollector
from hfbsz.recipe.load import load
from hfbsz.train.distributed import make_accelerator
from hfbsz.train.fsdp import fsdp_from_env, full_tensor, is_sharded
from hfbsz.train.loop import Collector, train
from hfbsz.train.setup import setup


class Gradients(Collector):
    """Keeps the whole gradient of the first window, before clipping."""

    first = None

    passes = 0

    def due(self, at):
        return True

    def before_window(self, model, planned, at):
        self.model = model

    def after_micro(self, index, batch):
        self.passes += self.first is None

    def after_window(self):
        if self.first is None:
            named = self.model.named_parameters()
            self.first = {
                name.removeprefix("module."): full_tensor(weight.grad).numpy().copy() for name, weight in named
            }
        return {}


def shares(model):
    """This rank's part of every weight."""
    tensors = (weight.detach() for weight in model.parameters())
    return [(tensor.to_local() if hasattr(tensor, "to_local") else tensor).clone() for tensor in tensors]


def first_steps(out, preset, precision, accelerator, words):
    run = setup(load([f"model={preset}", *words, f"precision={precision}"]).recipe, accelerator)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    plain, poison = run.task.loss_sum, []
    run.task.loss_sum = lambda *given: plain(*given) * (math.nan if poison else 1)
    collector, noise = Gradients(), NoiseCollector(run.plan, run.model, world_size, optimizers=run.optimizer.parts)
    sharpness = SharpnessCollector(run.plan, run.model, run.task, accelerator, {})
    collectors = [collector, noise, sharpness]
    steps = train(run.plan, run.model, run.optimizer, run.task, run.windows(), accelerator, collectors=collectors)
    first = next(steps)
    assert first.skipped == 0
    noise_state, sharpness_state = noise.to_dict(), sharpness.to_dict()
    before, poison[:] = shares(run.model), [True] if rank == world_size - 1 else []
    second, after = next(steps), shares(run.model)
    assert not any(name.startswith("sharpness/critical") for name in second.collected)  # nothing moved
    assert sharpness.to_dict()["factors"] == sharpness_state["factors"]
    poison.clear()
    third = next(steps)
    found = {
        "sharded": is_sharded(run.model),
        "units": sum(isinstance(module, FSDPModule) for module in run.model.modules()),
        "share": sum(map(torch.numel, after)) / sum(weight.numel() for weight in run.model.parameters()),
        "skipped": second.skipped,
        "unchanged": all(map(torch.equal, before, after)),
        "third": [third.skipped, third.loss, third.grad_norm],
        "moved": not any(map(torch.equal, after, shares(run.model))),
        "passes": collector.passes,
        "noise": noise_state,
        "sharpness": {name: value for name, value in first.collected.items() if name.startswith("sharpness/")},
        "finite": all(bool(torch.isfinite(share).all()) for share in shares(run.model)),
    }
    name = f"{Path(preset).stem}-{precision}"
    Path(out, f"{name}-{rank}.json").write_text(json.dumps(found))
    if rank == 0:
        np.savez(Path(out, f"{name}.npz"), **collector.first)


def main(out, *rest):
    presets, words = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    request = {name: value for name, value in os.environ.items() if name == "ACCELERATE_USE_FSDP"}
    fsdp_from_env(os.environ)  # which removes the request, before the accelerator is created
    accelerator = make_accelerator(load(words).recipe)
    for preset in presets:
        name, _, precision = preset.partition(":")
        os.environ.update(request)
        first_steps(out, name, precision or "fp32", accelerator, words)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
