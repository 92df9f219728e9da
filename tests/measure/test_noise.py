"""The collector of the noise scale in a run on one process."""

import math

import pytest
import torch
from conftest import TINY

from hfbsz.measure.dual_norms import DualNorm
from hfbsz.measure.noise import NoiseCollector
from hfbsz.recipe.load import load
from hfbsz.records.metrics import NOISE_LEAST
from hfbsz.train.loop import Collector, train
from hfbsz.train.setup import setup

WORDS = [TINY, "batch.micro_max=2", "measure.noise.every=1step", "precision=fp64", "duration=6steps"]


def collected(ragged, *words, resumed=False):
    """The records of six steps, with the squared norms of the first two gradients taken apart by a second collector."""
    run = setup(load([*WORDS, f"data.files={ragged}", *words]).recipe)
    states = []

    class Resuming(NoiseCollector):
        def after_window(self):
            values = super().after_window()
            states.append(self.to_dict())
            if resumed:
                self.__init__(run.plan, run.model, 1, states[-1], run.optimizer.parts)
            return values

    noise = Resuming(run.plan, run.model, 1, optimizers=run.optimizer.parts)
    gradients = Gradients(run.model)
    collectors = [noise, gradients]
    steps = list(
        train(run.plan, run.model, run.optimizer, run.task, run.windows(), run.accelerator, collectors=collectors)
    )
    return run, [step.collected for step in steps], states, gradients.windows


class Gradients(Collector):
    """The gradients of the first two micro-batches of every step and of the whole step, from what accumulates."""

    def __init__(self, model):
        self.weights = list(model.parameters())
        self.windows = []

    def due(self, at):
        return True

    def before_window(self, model, planned, at):
        self.sums = [[torch.zeros_like(weight) for weight in self.weights]]

    def after_micro(self, index, batch):
        self.sums.append([torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in self.weights])

    def after_window(self):
        self.windows.append(self.sums)
        return {}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_scale_in_the_optimizers_norm_is_that_of_the_gradients(ragged, optimizer):
    run, values, _, windows = collected(ragged, f"optim.name={optimizer}")
    norm, weights = DualNorm(run.optimizer.parts), list(run.model.parameters())

    def square(gradients):
        return float(sum(norm.part(*pair) for pair in zip(weights, gradients, strict=True))) ** 2

    noise = signal = 0.0
    for step, sums in zip(values, windows, strict=True):
        assert len(sums) == 5  # 8 rows in micro-batches of 2
        one, other = ([b - a for a, b in zip(*pair, strict=True)] for pair in ((sums[0], sums[1]), (sums[1], sums[2])))
        rows_apart = [4 * (a - b) for a, b in zip(one, other, strict=True)]  # of means over 2 rows, not shares of 8
        squares = square(rows_apart)  # N² · (1/2 + 1/2)
        noise = squares + (1 - 1 / NOISE_LEAST) * noise
        signal = square(sums[-1]) - squares / 8 + (1 - 1 / NOISE_LEAST) * signal
        if noise > 0 and signal > 0:
            assert step["noise/dual_scale"] == pytest.approx(noise / signal, rel=1e-6)
    assert math.isfinite(values[-1]["noise/dual_scale_error"])


def test_a_resumed_measurement_is_the_unbroken_one(ragged):
    unbroken, resumed = (collected(ragged, resumed=resumed) for resumed in (False, True))
    states = [[{**state, "last": state["last"][:3]} for state in one[2]] for one in (unbroken, resumed)]  # no seconds
    assert unbroken[1] == resumed[1] and states[0] == states[1]
    assert states[0][-1]["dual"]["weight"] > 0


@pytest.mark.parametrize(
    ("words", "measured"),
    [([], True), (["optim.name=sgd"], False), (["batch.micro_max=8"], False), (["measure.noise.dual=false"], False)],
)
def test_where_it_is_measured(ragged, words, measured):
    _, values, _, _ = collected(ragged, *words)
    assert ("noise/dual_scale" in values[-1]) == measured
