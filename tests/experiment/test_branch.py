"""The critical batch by branching from a checkpoint."""

import json
import math
import statistics

import pytest
from conftest import ROOT, records

from hfbsz.commands.critical import main
from hfbsz.experiment.branch import point_of, words_of
from hfbsz.measure.branching import TOLERANCE, Bracket, Branch, bracket, tolerance_of

TINY = f"recipe={ROOT}/tests/tiny.yaml"


def branches(*means: float) -> list[Branch]:
    return [Branch(8 * 2**index, (mean,)) for index, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("means", "batch", "above"),
    [
        ((4.0, 4.005, 4.2), 16, 32),
        ((4.0, 4.0, 4.0), 32, None),
        ((4.0, 4.1, 4.2), 8, 16),
        ((4.0, 3.9, 3.95, 3.905), 64, None),  # against the lowest of all smaller ones, not the neighbor
        ((4.0, 3.9, 4.0), 16, 32),
        ((4.0, math.inf, 4.2), 8, 16),
    ],
)
def test_the_largest_batch_that_costs_no_loss(means, batch, above):
    assert bracket(branches(*means), 0.01) == Bracket(batch, above, 0.01)


def test_batches_must_rise():
    with pytest.raises(ValueError, match="rise"):
        bracket([Branch(16, (1.0,)), Branch(8, (1.0,))], 0.01)


def test_the_tolerance_is_that_of_the_seeds():
    assert tolerance_of(branches(4.0, 4.1)) == TOLERANCE
    spread = [Branch(8, (4.0, 4.2)), Branch(16, (4.1, 4.1))]
    assert tolerance_of(spread) == pytest.approx(2 * math.sqrt(2 * statistics.fmean([0.02, 0.0]) / 2))


@pytest.fixture(scope="module")
def run(hfbsz, ragged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("branched") / "run"
    words = [TINY, f"data.files={ragged}", "duration=40steps", "checkpoint.every=10steps", f"output_dir={folder}"]
    ended = hfbsz("pretrain.py", *words, "batch.size=null", "batch.ramp=0:4 50%:8", "checkpoint.keep=9")
    assert ended.code == 0, ended.err
    return folder


def test_branches_start_where_the_run_was_and_train_on_the_same_tokens(run, forked_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    step, clock = next(
        (record["train/global_step"], record["train/sequences"])
        for record in records(run, "step")
        if record["train/global_step"] == 30
    )
    words = ["method=branch", f"checkpoint={run}/checkpoint-{step}", "multiples=1,4", "length=64seq", "seed=0,1"]
    assert main([*words, "launch=python", "threads=1", "log.every=1steps"]) == 0
    shown = capsys.readouterr().out
    folders = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(folders) == 4
    for folder in folders:
        (first, *_), steps = records(folder, "eval"), records(folder, "step")
        plan = json.loads((folder / "plan.json").read_text())
        assert first["train/sequences"] == clock and steps[-1]["train/sequences"] == clock + 64
        assert {record["batch/global"] for record in steps} == {plan["largest_batch"]} <= {8, 32}
        before = next(record for record in records(run, "step") if record["train/global_step"] == step)
        rate = before["train/learning_rate"] * math.sqrt(plan["largest_batch"] / 8)  # the rule of AdamW
        assert all(record["train/learning_rate"] == pytest.approx(rate) for record in steps)
    losses = {}
    for folder in folders:
        batch = json.loads((folder / "plan.json").read_text())["largest_batch"]
        losses.setdefault(batch, []).append(records(folder, "final")[0]["full/loss"])
    for batch, values in losses.items():
        assert f"{batch:>8,} seq {batch / 8:>5g} {statistics.fmean(values):>9.4f}" in shown
    both = [Branch(batch, tuple(losses[batch])) for batch in (8, 32)]
    found = bracket(both, tolerance_of(both))
    assert f"at least {found.batch:,} sequences" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=nowhere"], "nowhere"),
        ([], "checkpoint=RUN"),
        (["checkpoint={run}/checkpoint-30", "multiples=2,4"], "multiples"),
        (["checkpoint={run}/checkpoint-30", "multiples=1,x"], "multiples"),
        (["checkpoint={run}/checkpoint-30", "multiples=1,2.5"], "multiples"),
        (["checkpoint={run}/checkpoint-30", "length=2epochs"], "length"),
        (["checkpoint={run}/checkpoint-30", "length=many"], "length"),
        (["checkpoint={run}/checkpoint-30", "tolerance=-1"], "tolerance"),
        (["checkpoint={run}/checkpoint-30", "format=json"], "results.json"),
        (["method=brunch", "checkpoint={run}/checkpoint-30"], "brunch"),
    ],
)
def test_what_is_no_branching_is_refused_in_one_line(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    method = [] if any(word.startswith("method") for word in words) else ["method=branch"]
    assert main([*method, *(word.format(run=run) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["duration=20steps"], "a branch needs a longer duration"),
        (["duration=80steps", "optim.name=sgd", "optim.lr=0.1"], "optim.name=adamw"),
        (["duration=80steps", "data.validation=30%"], "branch: {run}/checkpoint-40 was trained on other data"),
        (["duration=80steps", "model=tiny_gpt2"], "checkpoint"),
    ],
)
def test_a_run_that_cannot_branch_from_a_checkpoint_is_refused(hfbsz, run, ragged, tmp_path, words, message):
    branch = [f"branch={run}/checkpoint-40", f"output_dir={tmp_path}/run"]
    ended = hfbsz("pretrain.py", TINY, f"data.files={ragged}", *branch, *words)
    assert ended.code in (1, 2) and ended.err.count("\n") == 1 and message.format(run=run) in ended.err, ended.err


def test_a_branch_that_is_interrupted_resumes_from_its_own_checkpoints(hfbsz, run, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", f"branch={run}/checkpoint-20", "duration=400seq", "batch.size=16seq"]
    words += ["schedule.shape=constant", "checkpoint.every=48seq"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    first = hfbsz("pretrain.py", *words, f"output_dir={whole}")
    assert first.code == 0 and "branches from" in first.out, first.err
    assert hfbsz("pretrain.py", *words, f"output_dir={part}").code == 0
    for name in ("status.json", "model.safetensors"):
        (part / name).unlink()
    again = hfbsz("pretrain.py", *words, f"output_dir={part}")
    assert again.code == 0 and f"resumes from {part}" in again.out, again.err
    assert records(part, "final")[0]["full/loss"] == records(whole, "final")[0]["full/loss"]


def test_a_branch_of_a_run_that_ended_at_its_target_trains_on(hfbsz, ragged, tmp_path):
    words = [
        TINY,
        f"data.files={ragged}",
        "eval.every=10%",
        "eval.target=5.3",
        "optim.average=0.2",
        "checkpoint.every=5steps",
    ]
    assert hfbsz("pretrain.py", *words, f"output_dir={tmp_path}/run").code == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["cause"] == "target"
    branch = [
        f"branch={tmp_path}/run/checkpoint-{status['step']}",
        "duration=100steps",
        f"output_dir={tmp_path}/branch",
    ]
    assert hfbsz("pretrain.py", *words, *branch).code == 0
    assert json.loads((tmp_path / "branch" / "status.json").read_text())["step"] > status["step"]
    for word in ("eval.target=null", "optim.average=null"):
        assert word in words_of(point_of(tmp_path / "run" / f"checkpoint-{status['step']}"), (1, 2), None, "0")
