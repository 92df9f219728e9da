"""The average of the weights."""

import json

import pytest
import torch
from conftest import TINY, records
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hfbsz.train.average import WeightAverage


def averaged(age, values, steps):
    """The average after steps of these sizes, where the weight has the next of the values after each."""
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    average, clock = WeightAverage([weight], age), 0
    for value, step in zip(values, steps, strict=True):
        weight.data.fill_(value)
        average.update(clock, clock := clock + step)
    return float(average.means[0])


@pytest.mark.parametrize("age", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("steps", [5_000, 20_000])
def test_the_mean_age_is_the_same_fraction_at_any_time(age, steps):
    """A weight that is the clock itself has the average clock − age · clock."""
    mean = averaged(age, range(1, steps + 1), [1] * steps)
    assert 1 - mean / steps == pytest.approx(age, abs=2e-3)


def test_half_is_the_plain_mean():
    assert averaged(0.5, [3.0, 5.0, 10.0], [8, 8, 8]) == pytest.approx(6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.sampled_from([0.05, 0.2, 0.5]))
def test_a_large_step_counts_as_its_sequences(steps, age):
    """A step of n sequences weighs as n steps of one after which the weight is the same."""
    values = [float(number % 5) for number in range(len(steps))]
    single = [value for value, step in zip(values, steps, strict=True) for _ in range(step)]
    assert averaged(age, values, steps) == pytest.approx(averaged(age, single, [1] * len(single)))


@pytest.fixture(scope="module")
def words(ragged):
    return [TINY, f"data.files={ragged}", "optim.average=0.2", "eval.every=5steps", "threads=1"]


@pytest.fixture(scope="module")
def run(hfbsz, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "run"
    ended = hfbsz("pretrain.py", *words, "checkpoint.every=20steps", "checkpoint.keep=9", f"output_dir={folder}")
    assert ended.code == 0 and "mean age of 0.2" in ended.out, ended.err
    return folder


def test_the_average_is_evaluated_and_saved_and_the_weights_train_on(run, hfbsz, words, tmp_path):
    plain = tmp_path / "plain"
    assert hfbsz("pretrain.py", *words, "optim.average=null", f"output_dir={plain}").code == 0
    losses = [[record["train/loss"] for record in records(folder, "step")] for folder in (run, plain)]
    assert losses[0] == losses[1]
    evaluations = [[record["eval/loss"] for record in records(folder, "eval")] for folder in (run, plain)]
    assert evaluations[0][0] == evaluations[1][0]  # before the first step
    assert all(one != other for one, other in zip(*evaluations, strict=True) if one != evaluations[0][0])
    saved = load_file(run / "model.safetensors")
    means = load_file(run / "checkpoint-50" / "optimizer.safetensors")
    trained = load_file(run / "checkpoint-50" / "model.safetensors")
    for name, weight in saved.items():
        torch.testing.assert_close(weight, means[f"average/{name}"], rtol=0, atol=0)
        assert not torch.equal(weight, trained[name])


def test_a_resumed_run_is_the_unbroken_one(run, hfbsz, words, tmp_path):
    part = tmp_path / "part"
    resume = f"resume={run}/checkpoint-20"
    assert hfbsz("pretrain.py", *words, resume, f"output_dir={part}").code == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (run, part))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    last = [records(folder, "final")[0]["full/loss"] for folder in (run, part)]
    assert last[0] == last[1]


def test_schedule_free_has_its_own_average(hfbsz, words, tmp_path):
    ended = hfbsz("pretrain.py", *words, "optim.name=schedule_free", f"output_dir={tmp_path}/run")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "optim.average=null" in ended.err


@pytest.mark.parametrize("reached", [True, False])
def test_a_run_ends_at_its_target_loss(hfbsz, words, tmp_path, reached):
    folder = tmp_path / "run"
    target = 5.5 if reached else 0.5
    command = [*words, "optim.average=null", "log.every=1step", f"eval.target={target}", f"output_dir={folder}"]
    assert hfbsz("pretrain.py", *command).code == 0
    status, evaluations = json.loads((folder / "status.json").read_text()), records(folder, "eval")
    assert status["state"] == "finished" and status["cause"] == ("target" if reached else "budget")
    above = [record["eval/loss"] > target for record in evaluations]
    assert above == [True] * (len(above) - 1) + [not reached]
    assert records(folder, "step")[-1]["train/global_step"] == evaluations[-1]["train/global_step"] == status["step"]
    assert (status["step"] < 50) == reached
    again = hfbsz("pretrain.py", *command)
    assert again.code == 0 and "finished already" in again.out
