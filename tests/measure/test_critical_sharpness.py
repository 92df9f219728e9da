"""The critical learning rate of steps: the line search, and its collector in the loop on one process."""

import math

import pytest
import torch
from conftest import ROOT, TINY
from pairs import preference_words
from test_hessian import quadratic

from hfbsz.errors import UserError
from hfbsz.measure.critical_sharpness import SharpnessCollector, bracket
from hfbsz.measure.hessian import Objective, largest_eigenvalues
from hfbsz.recipe.load import load
from hfbsz.train.loop import Collector, train
from hfbsz.train.setup import setup

WORDS = [TINY, "batch.micro_max=4", "measure.sharpness.every=1step", "precision=fp64", "duration=6steps"]


def parabola(crossing):
    return lambda factor: factor * (factor - crossing)


@pytest.mark.parametrize("crossing", [0.04, 0.3, 0.99, 1.01, 2.5, 7.0, 30.0])
def test_the_bracket_holds_the_crossing(crossing):
    low, high = bracket(parabola(crossing))
    assert low < crossing <= high and high <= 2 * low
    closer = bracket(parabola(crossing), math.sqrt(low * high))
    assert closer[0] < crossing <= closer[1] and closer[1] / closer[0] < 1.1  # a start nearby narrows it


def test_a_bracket_without_a_crossing_is_open():
    assert bracket(lambda factor: -factor) == (1024.0, math.inf)
    assert bracket(lambda factor: factor) == (0.0, 1 / 1024)
    assert bracket(lambda factor: math.nan if factor else 0.0) == (0.0, 1 / 1024)


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_the_critical_rate_of_gradient_descent_is_two_over_the_curvature(rate):
    objective = quadratic(at=0.3)
    gradient = objective.gradient()
    product = objective.product(gradient)
    squares = sum(float(part.square().sum()) for part in gradient)
    curvature = sum(float((one * other).sum()) for one, other in zip(gradient, product, strict=True)) / squares
    low, high = bracket(lambda factor: objective.loss_at(gradient, -rate * factor))
    assert rate * low < 2 / curvature <= rate * high


class Steps(Collector):
    """The weights before and after every update, and the rows of its first micro-batch."""

    def __init__(self, model):
        self.weights, self.seen = list(model.parameters()), []

    def due(self, at):
        return True

    def after_micro(self, index, batch):
        self.batch = batch if index == 0 else self.batch

    def after_window(self):
        self.before = [weight.detach().clone() for weight in self.weights]
        return {}

    def after_update(self):
        self.seen.append((self.batch, self.before, [weight.detach().clone() for weight in self.weights]))
        return {}


def prepared(ragged, *words):
    return setup(load([*WORDS, f"data.files={ragged}", *words]).recipe)


def collector_of(run, saved=None):
    sets = {name: rows for name, rows in run.data.evaluation_sets().items() if name}
    return SharpnessCollector(run.plan, run.model, run.task, run.accelerator, sets, saved)


def steps_of(run, *collectors):
    return list(
        train(run.plan, run.model, run.optimizer, run.task, run.windows(), run.accelerator, collectors=collectors)
    )


def losses(run, batch, before, after, factors):
    """The mean loss of rows where the weights have moved by factors of an update."""
    objective, found = Objective(run.model, run.task.loss_sum, [batch]), []
    for factor in factors:
        with torch.no_grad():
            for weight, one, other in zip(objective.weights, before, after, strict=True):
                weight.copy_(one + factor * (other - one))
        found.append(objective.loss())
    return found


def test_at_the_critical_rate_the_loss_of_the_rows_is_that_before_the_step(ragged):
    run = prepared(ragged)
    around = Steps(run.model)
    steps = steps_of(run, around, collector_of(run))
    measured = [step for step in steps if "sharpness/critical" in step.collected]
    assert len(measured) >= 4
    for step, (batch, before, after) in zip(steps, around.seen, strict=True):
        values = step.collected
        if step not in measured:
            continue
        assert values["sharpness/critical"] == pytest.approx(2 / values["sharpness/critical_rate"])
        factor = values["sharpness/critical_rate"] / step.learning_rate
        assert values["sharpness/rate_ratio"] == pytest.approx(1 / factor)
        base, low, high = losses(run, batch, before, after, (0, factor / 1.5, factor * 1.5))
        assert low < base < high


def test_further_sets_have_a_relative_sharpness(ragged):
    own = prepared(ragged)
    words = [f"eval.sets.other.files={ragged}", "measure.sharpness.sets=[other]"]
    run = prepared(ragged, *words)
    collector = collector_of(run)
    steps, alone = steps_of(run, collector), steps_of(own, collector_of(own))
    found = [step.collected for step in steps if "sharpness/other/critical" in step.collected]
    assert found and set(collector.to_dict()["factors"]) == {"", "other"}
    for step, other in zip(steps, alone, strict=True):
        same = {name: value for name, value in step.collected.items() if not name.startswith("sharpness/other/")}
        assert same == other.collected


@pytest.mark.parametrize("words", [(), ("measure.sharpness.method=hessian",), ("model=tiny_gpt2", "precision=fp32")])
def test_measured_runs_have_the_weights_of_others(ragged, words):
    """Bit for bit, with dropout and without."""
    ends = []
    for measured in (True, False):
        run = prepared(ragged, *words)
        steps = steps_of(run, *([collector_of(run)] if measured else []))
        ends.append(([weight.detach().clone() for weight in run.model.parameters()], [step.loss for step in steps]))
        assert any(step.collected for step in steps) == measured
    assert all(map(torch.equal, ends[0][0], ends[1][0])) and ends[0][1] == ends[1][1]


def test_a_resumed_collector_starts_where_the_other_was(ragged):
    class Resuming(SharpnessCollector):
        def after_update(self):
            values = super().after_update()
            self.__init__(run.plan, run.model, run.task, run.accelerator, {}, self.to_dict())
            return values

    run, other = prepared(ragged), prepared(ragged)
    resumed = steps_of(run, Resuming(run.plan, run.model, run.task, run.accelerator, {}))
    assert [step.collected for step in resumed] == [step.collected for step in steps_of(other, collector_of(other))]


@pytest.mark.parametrize("words", [(), ("model.fused_loss=true",)])
def test_the_curvature_is_that_of_the_weights_before_the_step(ragged, words):
    run = prepared(ragged, "measure.sharpness.method=hessian", *words)
    around = Steps(run.model)
    steps = steps_of(run, around, collector_of(run))
    batch, before, _ = around.seen[-1]
    plain = prepared(ragged, "model.fused_loss=false")
    with torch.no_grad():
        for weight, one in zip(plain.model.parameters(), before, strict=True):
            weight.copy_(one)
    expected = largest_eigenvalues(Objective(plain.model, plain.task.loss_sum, [batch]))[0]
    assert steps[-1].collected["sharpness/eigenvalue"] == pytest.approx(expected, rel=1e-2)
    assert steps[-1].collected["sharpness/adaptive_sam"] > 0


def test_a_row_of_pairs_is_a_pair(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    monkeypatch.chdir(ROOT)
    words = [*preference_words(tmp_path), "measure.sharpness.every=1step", "measure.sharpness.method=hessian"]
    run = setup(load([*words, "measure.sharpness.rows=3"]).recipe)
    batch = run.windows().window(run.plan.step(0))[0]
    part = batch.first(3)
    assert (len(part.labels), len(part.inputs["input_ids"]), len(part.reference), part.targets) == (3, 6, 3, 3)
    steps = steps_of(run, collector_of(run))
    assert all(step.collected["sharpness/eigenvalue"] > 0 for step in steps)
    assert any("sharpness/critical" in step.collected for step in steps)


def test_the_interval_is_kept(ragged):
    run = prepared(ragged, "measure.sharpness.every=50%")
    assert [step.at.step for step in steps_of(run, collector_of(run)) if step.collected] == [3, 6]


def test_a_measurement_without_memory_is_the_last(ragged):
    run, plain = prepared(ragged), prepared(ragged)
    evaluate, calls = run.task.evaluate_batch, []

    def fails(model, batch):
        calls.append(len(batch.labels))
        if len(calls) == 10:
            raise MemoryError
        return evaluate(model, batch)

    run.task.evaluate_batch = fails
    told = []
    collector = SharpnessCollector(run.plan, run.model, run.task, run.accelerator, {}, warn=told.append)
    steps, expected = steps_of(run, collector), steps_of(plain)
    assert len(told) == 1 and "out of memory" in told[0]
    assert len(calls) == 10 and [bool(step.collected) for step in steps[1:]] == [False] * 5
    assert [step.loss for step in steps] == [step.loss for step in expected]
    assert all(map(torch.equal, run.model.parameters(), plain.model.parameters()))


def test_rows_are_those_that_two_percent_of_the_training_pay_for(ragged):
    assert collector_of(prepared(ragged)).rows == 4  # six steps: the least
    long = collector_of(prepared(ragged, "duration=48000seq", "measure.sharpness.every=10%"))
    assert long.rows == int(0.05 * 48000 / (7 * 10)) == 34
    assert collector_of(prepared(ragged, "measure.sharpness.rows=3")).rows == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["measure.sharpness.method=hessian", "model.compile=true"], "needs second derivatives"),
        (["measure.sharpness.sets=[other]"], "no evaluation set 'other' in eval.sets (there are none)"),
        (["measure.sharpness.rows=0"], "measure.sharpness.rows"),
        (["measure.sharpness.method=sharp"], "measure.sharpness.method"),
    ],
)
def test_options_that_do_not_fit_are_refused(ragged, words, text):
    with pytest.raises(UserError) as problem:
        load([*WORDS, f"data.files={ragged}", *words])
    assert any(text in line for line in problem.value.lines)
