"""The loop in this process: gradients, decisions, collectors, faults."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hfbsz.data.rows import sample
from hfbsz.errors import TrainingError
from hfbsz.recipe.load import load
from hfbsz.train.checkpoint import collect, read, restore, save
from hfbsz.train.evaluate import evaluate
from hfbsz.train.loop import Collector, seed_of, train, within
from hfbsz.train.progress import Progress
from hfbsz.train.setup import setup
from hfbsz.train.tasks.language_modeling import IGNORED


class Bench:
    """A run's parts without its folder and reports."""

    def __init__(self, ragged, *words):
        self.recipe = load(["recipe=tests/tiny.yaml", f"data.files={ragged}", *words]).recipe
        parts = setup(self.recipe, Accelerator(cpu=True))
        self.data, self.plan, self.accelerator = parts.data, parts.plan, parts.accelerator
        self.model, self.optimizer, self.task, self.windows = parts.model, parts.optimizer, parts.task, parts.windows()

    def steps(self, **given):
        return train(self.plan, self.model, self.optimizer, self.task, self.windows, self.accelerator, **given)


class Gradients(Collector):
    """Keeps the whole gradient of each measured step, before clipping."""

    def due(self, at):
        return True

    def before_window(self, model, planned, at):
        self.model, self.passes = model, 0

    def after_micro(self, index, batch):
        self.passes += 1

    def after_window(self):
        self.whole = torch.cat([weight.grad.flatten().double() for weight in self.model.parameters()])
        return {"test/passes": self.passes}


@pytest.fixture(autouse=True)
def _here(monkeypatch, cache):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))


def first_gradient(ragged, *words, passes):
    bench, collector = Bench(ragged, *words), Gradients()
    step = next(bench.steps(collectors=[collector]))
    assert step.collected == {"test/passes": passes} and step.accumulation == passes
    return collector.whole, step


def test_a_gradient_is_the_same_in_every_split_and_is_that_of_the_mean(ragged):
    """Whole gradient, float32, ragged rows: 1e-6 relative L2; and equal to one plain backward of the mean."""
    whole, step = first_gradient(ragged, "batch.micro_max=8", passes=1)
    splits = [(f"batch.micro_max={micro}", 8 // micro) for micro in (4, 2, 1)]
    splits += [(f"batch.micro_tokens={most}", passes) for most, passes in ((1, 8), (130, 4), (200, 3), (10_000, 1))]
    for word, passes in splits:
        gradient, _ = first_gradient(ragged, word, passes=passes)
        assert torch.linalg.norm(gradient - whole) < 1e-6 * torch.linalg.norm(whole)
    bench = Bench(ragged)
    (batch,) = bench.windows.window(bench.plan.step(0))
    logits = bench.model(**batch.inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    loss.backward()
    plain = torch.cat([weight.grad.flatten().double() for weight in bench.model.parameters()])
    assert torch.linalg.norm(plain - whole) < 1e-6 * torch.linalg.norm(whole)
    assert step.loss == pytest.approx(loss.item(), rel=1e-6)
    assert step.grad_norm == pytest.approx(torch.linalg.norm(whole).item(), rel=1e-5)


def test_collectors_are_called_on_logged_steps_alone(ragged):
    class Counting(Gradients):
        calls = 0

        def after_window(self):
            Counting.calls += 1
            return {}

    logged = [step.logged for step in Bench(ragged, "log.every=7steps").steps(collectors=[Counting()])]
    assert Counting.calls == sum(logged) == 50 // 7 + 1


def test_unlogged_steps_carry_no_numbers_and_the_loss_is_the_mean_since_the_last(ragged):
    every = list(Bench(ragged, "log.every=1steps").steps())
    fifth = list(Bench(ragged, "log.every=5steps").steps())
    assert [step.loss is None for step in fifth[:5]] == [True] * 4 + [False]
    mean = sum(step.loss * step.targets for step in every[:5]) / sum(step.targets for step in every[:5])
    assert fifth[4].loss == pytest.approx(mean, rel=1e-6)
    assert fifth[-1].grad_norm == pytest.approx(every[-1].grad_norm, rel=1e-4)
    assert every[-1].at.tokens == sum(step.step_tokens for step in every) == sum(step.targets for step in every)


def test_padding_is_its_share_since_the_last_record(ragged):
    """Of ragged rows alone; by length it is a fraction."""
    ways = ["log.every=1steps"], ["log.every=5steps"], ["log.every=5steps", "batch.by_length=true"]
    every, fifth, sorted_ = (list(Bench(ragged, "duration=10steps", *words).steps()) for words in ways)
    positions = [step.step_tokens / (1 - step.padding) for step in every]
    assert fifth[9].padding == pytest.approx(1 - sum(s.step_tokens for s in every[5:10]) / sum(positions[5:10]))
    assert fifth[8].padding is None and fifth[9].reading(10, 0).values["batch/padding"] == fifth[9].padding
    shares = [sum(step.padding for step in steps if step.logged) for steps in (fifth, sorted_)]
    assert shares[1] < 0.4 * shares[0]
    packed = next(Bench(ragged, "data.pack=true").steps())
    assert packed.padding is None and "batch/padding" not in packed.reading(10, 0).values


def test_filled_micro_batches_are_told_as_they_were(ragged):
    bench = Bench(ragged, "batch.micro_tokens=200", "duration=10steps")
    for step in bench.steps():
        batches = bench.windows.window(bench.plan.step(step.at.sequences - 8))
        assert (step.accumulation, step.micro_batch) == (len(batches), max(len(batch.labels) for batch in batches))


def test_rows_by_length_resume_from_a_checkpoint_bit_for_bit(ragged, tmp_path):
    """Stopped inside a block and between two records, with dropout: weights and records bit-identical."""
    words = ["model=tiny_gpt2", "model.shape.resid_pdrop=0.1", "log.every=3steps", "duration=24steps"]
    words += ["batch.by_length=true", "batch.micro_tokens=200"]
    unbroken, begun, resumed = (Bench(ragged, *words) for _ in range(3))
    unbroken_steps = list(unbroken.steps())
    progress = Progress(begun.accelerator.device)
    before = list(begun.steps(progress=progress, stop=lambda: progress.at.step == 19))
    state = {"progress": progress.to_dict([float(progress.loss)])}
    checkpoint = read(save(tmp_path, 19, collect(begun.model, begun.optimizer), state))
    restore(checkpoint, resumed.model, resumed.optimizer)
    progress = Progress(begun.accelerator.device, checkpoint.state["progress"])
    after = list(resumed.steps(progress=progress))
    assert all(map(torch.equal, unbroken.model.parameters(), resumed.model.parameters()))

    def untimed(steps):
        return [
            replace(
                step,
                at=step.at._replace(seconds=0.0, device_seconds=0.0),
                step_seconds=None,
                parts={},
                tokens_per_second=None,
            )
            for step in steps
        ]

    assert untimed(unbroken_steps) == untimed(before + after)


def test_decisions_change_the_batch_between_two_steps(ragged):
    bench = Bench(ragged)
    progress = Progress(bench.accelerator.device)
    batches = []
    for step in bench.steps(progress=progress):
        batches.append(step.global_batch)
        if step.at.sequences == 80:
            progress.decisions.append((80, 16))
    assert batches[9:12] == [8, 16, 16] and sum(batches) >= bench.plan.total


def test_a_stop_ends_after_the_step(ragged):
    bench = Bench(ragged)
    seen = []
    for step in bench.steps(stop=lambda: len(seen) == 3):
        seen.append(step)
    assert [step.at.step for step in seen] == [1, 2, 3]


def poisoned(bench, bad):
    """The loss of these steps is not a number."""
    plain, clocks = bench.task.loss_sum, []
    window = bench.windows.window

    def remember(planned):
        clocks.append(planned.clock // 8)
        return window(planned)

    bench.windows.window = remember
    bench.task.loss_sum = lambda model, batch: plain(model, batch) * (math.nan if clocks[-1] in bad else 1)


def test_a_non_finite_step_changes_no_weight_and_is_counted(ragged):
    bench = Bench(ragged)
    poisoned(bench, {3})
    before, seen = None, []
    for step in bench.steps():
        weights = torch.cat([weight.detach().flatten().clone() for weight in bench.model.parameters()])
        if step.at.step == 4:
            assert torch.equal(weights, before)
            moments = bench.optimizer.parts[0].state[next(bench.model.parameters())]
            assert moments["step"].item() == 3 and torch.isfinite(moments["exp_avg"]).all()
        before = weights
        seen.append(step)
    assert [step.skipped for step in seen][2:6] == [0, 1, 1, 1] and seen[3].at.sequences == 32
    assert math.isnan(seen[3].loss) and math.isfinite(seen[-1].loss)


def test_steps_failing_in_a_row_end_the_run_with_their_rows(ragged):
    bench = Bench(ragged, "optim.nonfinite_limit=3")
    poisoned(bench, {5, 7, 8, 9, 10})
    with pytest.raises(TrainingError) as caught:
        list(bench.steps())
    rows = bench.windows.row_numbers(56, 80).tolist()
    assert "3 steps in a row" in str(caught.value) and ", ".join(map(str, rows[:5])) in str(caught.value)


def test_a_streak_between_two_records_is_not_missed(ragged):
    bench = Bench(ragged, "optim.nonfinite_limit=3", "log.every=20steps")
    poisoned(bench, {8, 9, 10})
    with pytest.raises(TrainingError, match="clock 64 to 88"):
        list(bench.steps())


def test_a_window_without_targets_is_refused(ragged):
    bench = Bench(ragged)
    plain = bench.task.collate
    bench.windows.collate = lambda rows: plain([None] * len(rows))
    with pytest.raises(TrainingError, match="holds no targets"):
        next(bench.steps())


def test_an_evaluation_does_not_depend_on_its_batch(ragged):
    bench = Bench(ragged)
    rows = bench.data.validation
    sums = [evaluate(bench.model, bench.task, rows, range(len(rows)), micro, bench.accelerator) for micro in (1, 4, 16)]
    assert all((one.targets == sums[0].targets).all() for one in sums) and len({one.text_bytes for one in sums}) == 1
    assert all(np.allclose(one.nll, sums[0].nll, rtol=1e-6, atol=0) for one in sums)
    back = evaluate(bench.model, bench.task, rows, range(len(rows))[::-1], 4, bench.accelerator)
    assert len(set(rows.lengths)) > 5 and np.allclose(back.nll[::-1], sums[0].nll, rtol=1e-6, atol=0)
    halves = [range(10), range(10, len(rows))]
    first, second = (evaluate(bench.model, bench.task, rows, half, 4, bench.accelerator) for half in halves)
    assert (first + second).loss == pytest.approx(sums[0].loss, rel=1e-6)
    assert list(sample(10, 4)) == [0, 2, 5, 7] and len(sample(3, 10)) == 3


def test_every_micro_batch_has_a_seed_of_its_own():
    seeds = {
        seed_of(seed, clock, rank, micro) for seed in (0, 1) for clock in (0, 8) for rank in (0, 1) for micro in (0, 1)
    }
    assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)


def test_weight_decay_skips_norms_and_biases_as_the_trainer_does(ragged):
    from transformers import Trainer

    bench = Bench(ragged, "model=tiny_gpt2")
    own = {name for name, _ in bench.model.named_parameters()}  # a tied head is named once
    names = own & set(Trainer.get_decay_parameter_names(None, bench.model))
    decayed = {id(weight) for weight in bench.optimizer.param_groups[0]["params"]}
    assert {name for name, weight in bench.model.named_parameters() if id(weight) in decayed} == names
    next(bench.steps())
    planned = bench.plan.step(0)
    assert [g["weight_decay"] for g in bench.optimizer.param_groups] == [planned.weight_decay, 0.0]
    assert {g["lr"] for g in bench.optimizer.param_groups} == {planned.learning_rate}


def test_a_step_that_runs_out_of_memory_is_repeated_with_half_the_micro_batch(ragged):
    """Records and weights are those of a run with the smaller micro-batch from the start, and the measurement of the
    step is dropped."""
    words = ["precision=fp64", "duration=6steps", "batch.micro_max=8", "log.every=1steps"]
    bench, reference = Bench(ragged, *words), Bench(ragged, *words, "batch.micro_max=2")
    loss_sum, calls, cancelled = bench.task.loss_sum, [], []

    def loss(model, batch):
        calls.append(len(batch.labels))
        if len(batch.labels) > 2 and len(calls) > 1:
            raise MemoryError
        return loss_sum(model, batch)

    bench.task.loss_sum = loss

    class Cancelled(Gradients):
        def cancel(self):
            cancelled.append(len(calls))

    steps, expected = list(bench.steps(collectors=[Cancelled()])), list(reference.steps())
    assert calls[:4] == [8, 8, 4, 2] and set(calls[4:]) == {2}
    assert cancelled == [2] and steps[1].collected == {} and steps[2].collected == {"test/passes": 4}
    assert [(step.micro_batch, step.accumulation) for step in steps] == [(8, 1)] + [(2, 4)] * 5
    for step, other in zip(steps, expected, strict=True):
        assert step.loss == pytest.approx(other.loss, rel=1e-12)
        assert step.grad_norm == pytest.approx(other.grad_norm, rel=1e-9)
        assert (step.at.sequences, step.targets, step.learning_rate) == (
            other.at.sequences,
            other.targets,
            other.learning_rate,
        )


def test_memory_that_a_single_row_exceeds_ends_the_run(ragged):
    bench = Bench(ragged, "batch.micro_max=2")

    def loss(model, batch):
        raise MemoryError

    bench.task.loss_sum = loss
    with pytest.raises(MemoryError):
        next(bench.steps())


def test_smaller_micro_batches_divide_the_planned_ones(ragged):
    planned = Bench(ragged, "batch.size=12seq", "batch.micro_max=6").plan.step(0)
    assert within(planned, None) == planned == within(planned, 6)
    assert [within(planned, limit).micro_batch for limit in (5, 4, 3, 2, 1)] == [3, 3, 3, 2, 1]
    assert all((step := within(planned, limit)).micro_batch * step.accumulation == 12 for limit in (5, 4, 3, 2, 1))


def test_the_parts_of_a_step_are_timed(ragged):
    """Every part is found, and together they are most of the time of a step."""
    steps = list(Bench(ragged, "log.every=4steps", "measure.noise.every=4steps").steps())
    logged = [step for step in steps if step.logged]
    assert len(logged) > 1
    for step in logged:
        assert set(step.parts) >= {"data", "forward", "backward", "optimizer"}
        assert 0.5 * step.step_seconds < sum(step.parts.values()) < step.step_seconds
    assert all(not step.parts for step in steps if not step.logged)
