"""A run that is killed goes on as if nothing had been: through the real command line."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, records
from safetensors.numpy import load_file

from hfbsz.records.folder import read_status

# dropout, a ramp that grows inside an epoch, a second epoch, a warmup; records of every third step
WORDS = [
    TINY, "model=tiny_gpt2", "model.shape.resid_pdrop=0.1", "batch.size=null", "batch.ramp=0:4 30%:8 60%:16",
    "duration=90steps", "schedule.warmup=20%", "log.every=3steps", "checkpoint.every=7steps", "eval.every=20%",
    "threads=1",
]  # fmt: skip


class Started:
    """The real command, to be watched by its records and ended by a signal; forked from `server`, if that is given."""

    def __init__(
        self, folder, environment, *words, processes=1, config=None, script="pretrain.py", server=None, **started
    ):
        self.folder = folder
        if server is not None:
            command = [str(ROOT / "scripts" / script), *words, f"output_dir={folder}"]
            self.process = server.start(
                command, environment, config="cpu_2proc.yaml" if processes > 1 else None, **started
            )
            return
        path = f"accelerate_configs/{config or 'cpu_2proc.yaml'}"
        launch = ["-m", "accelerate.commands.launch", "--config_file", path] if processes > 1 or config else []
        command = [sys.executable, *launch, f"scripts/{script}", *words, f"output_dir={folder}"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def step(self) -> int:
        try:
            return max((record["train/global_step"] for record in records(self.folder, "step")), default=0)
        except (OSError, ValueError):  # not there yet, or a line half written
            return 0

    def wait_for(self, reached, seconds=120):
        deadline = time.monotonic() + seconds
        while not reached() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert self.process.poll() is None, self.process.stderr.read()

    def end(self, number, pid=None) -> str:
        os.kill(pid or self.process.pid, number)
        _, err = self.process.communicate(timeout=90)
        return err


def told(folder):
    """The records of training and evaluation without times."""
    timed = {"record", "time", "train/seconds", "train/device_seconds"}
    return [
        {
            key: value
            for key, value in record.items()
            if key not in timed and not key.endswith("/seconds") and not key.startswith("perf/")
        }
        for event in ("step", "eval", "final")
        for record in records(folder, event)
    ]


def same_weights(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def unbroken(hfbsz, ragged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    ended = hfbsz("pretrain.py", *WORDS, f"data.files={ragged}", f"output_dir={folder}")
    assert ended.code == 0, ended.err
    return folder


def kill_and_resume(folder, environment, server, words, times, seed):
    """Kill the run at random points of training, a quarter of them while it writes a checkpoint; then finish it."""
    draw = random.Random(seed)
    for number in range(times):
        run = Started(folder, environment, *words, server=server)
        if number % 4 == 3:
            run.wait_for(lambda: list(folder.glob(".checkpoint-*.tmp")))
        else:
            begun = run.step()
            target = begun + draw.randint(1, 30)
            run.wait_for(lambda run=run, target=target: run.step() >= min(target, 84))
        run.end(signal.SIGKILL)
        assert read_status(folder)["state"] == "running"
    last = Started(folder, environment, *words, server=server)
    _, err = last.process.communicate(timeout=120)
    assert last.process.returncode == 0, err


@pytest.mark.process
def test_a_run_killed_five_times_equals_the_unbroken_run(unbroken, ragged, environment, fork_server, tmp_path):
    """SIGKILL: records without gap or double, final weights bit-identical."""
    folder = tmp_path / "run"
    kill_and_resume(folder, environment, fork_server, [*WORDS, f"data.files={ragged}"], times=5, seed=0)
    assert told(folder) == told(unbroken) and same_weights(folder, unbroken)
    assert not list(folder.glob("attempt-*")) and read_status(folder)["state"] == "finished"
    assert [record["state"] for record in records(folder, "lifecycle")][-1] == "finished"


NOISE_RAMP = [
    TINY, "batch.size=32seq", "batch.start=4seq", "batch.ramp=noise", "batch.micro_max=2", "duration=720seq",
    "measure.noise.every=1steps", "checkpoint.every=7steps", "eval.every=20%", "threads=1",
]  # fmt: skip


@pytest.mark.process
def test_a_batch_that_follows_the_noise_scale_grows_alike_in_a_run_that_is_killed(
    hfbsz, ragged, environment, fork_server, tmp_path
):
    words, whole, folder = [*NOISE_RAMP, f"data.files={ragged}"], tmp_path / "whole", tmp_path / "run"
    ended = hfbsz("pretrain.py", *words, f"output_dir={whole}")
    assert ended.code == 0, ended.err
    sizes = [record["batch/global"] for record in records(whole, "step")]
    assert sizes == sorted(sizes) and {4, 8} <= {*sizes} <= {4, 8, 16, 32}
    assert f"batch 4 → 8 sequences after step {sizes.index(8)}: noise scale" in ended.out
    for target in (3, sizes.index(8) + 1, sizes.index(8) + 5):
        run = Started(folder, environment, *words, server=fork_server)
        run.wait_for(lambda run=run, target=target: run.step() >= target)
        run.end(signal.SIGKILL)
    assert hfbsz("pretrain.py", *words, f"output_dir={folder}").code == 0
    assert told(folder) == told(whole) and same_weights(folder, whole)


def test_two_ranks_decide_alike(hfbsz, ragged, tmp_path):
    folder = tmp_path / "run"
    ended = hfbsz("pretrain.py", *NOISE_RAMP, f"data.files={ragged}", f"output_dir={folder}", processes=2)
    assert ended.code == 0, ended.err
    assert {4, 8} <= {record["batch/global"] for record in records(folder, "step")}


@pytest.mark.slow
def test_two_hundred_kills(unbroken, ragged, environment, fork_server, tmp_path):
    for number in range(40):
        folder = tmp_path / f"run-{number}"
        kill_and_resume(folder, environment, fork_server, [*WORDS, f"data.files={ragged}"], times=5, seed=number)
        assert told(folder) == told(unbroken) and same_weights(folder, unbroken), number


def test_one_two_and_one_processes_train_on_the_same_rows(hfbsz, ragged, environment, fork_server, tmp_path):
    """Stopped during a ramp by SIGTERM to one rank. Without dropout, in float64, losses equal those of an unbroken run
    to 1e-9."""
    words = [
        TINY,
        "precision=fp64",
        "batch.size=null",
        "batch.ramp=0:4 30%:8 60%:16",
        "duration=90steps",
        f"data.files={ragged}",
    ]
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    assert hfbsz("pretrain.py", *words, f"output_dir={unbroken}").code == 0
    for processes, target in ((1, 30), (2, 60)):
        run = Started(folder, environment, *words, processes=processes, server=fork_server)
        run.wait_for(lambda run=run, target=target: run.step() >= target)
        run.end(signal.SIGTERM, read_status(folder)["pid"])
        status = read_status(folder)
        assert (status["state"], status["cause"], status["why"]) == ("preempted", "signal", "SIGTERM")
        assert (folder / f"checkpoint-{status['step']}" / "complete.json").is_file()
    ended = hfbsz("pretrain.py", *words, f"output_dir={folder}")
    assert ended.code == 0 and "resumes from" in ended.out
    ours, theirs = records(folder, "step"), records(unbroken, "step")
    for one, other in zip(ours, theirs, strict=True):
        for name in ("train/global_step", "train/sequences", "train/num_input_tokens_seen", "batch/global"):
            assert one[name] == other[name]
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-9)


def test_changes_that_a_resumed_run_accepts_and_rejects(hfbsz, ragged, environment, fork_server, tmp_path):
    folder = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", "checkpoint.every=5steps"]
    run = Started(folder, environment, *words, server=fork_server)
    run.wait_for(lambda: run.step() >= 12)
    run.end(signal.SIGKILL)
    place = f"output_dir={folder}"
    other = hfbsz("pretrain.py", *words, place, "optim.lr=1e-3")
    assert other.code == 2 and "optim.lr: 0.003 there, 0.001 here" in other.err
    elsewhere = hfbsz("pretrain.py", *words, f"output_dir={tmp_path}/new", f"resume={folder}/checkpoint-99")
    assert elsewhere.code == 2 and "not a complete checkpoint" in elsewhere.err
    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    for path in checkpoint.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    ended = hfbsz("pretrain.py", *words, place, "batch.micro_max=4", "log.every=2steps")
    assert ended.code == 0 and "skipped" in ended.out and "resumes from" in ended.out


@pytest.mark.slow
def test_sharded_weights_resume_too(hfbsz, ragged, environment, tmp_path):
    """FSDP2 on two processes, then one process without it: losses equal those of an unbroken run to 1e-5."""
    words = [TINY, f"data.files={ragged}", "batch.micro_max=2", "duration=90steps"]
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    assert hfbsz("pretrain.py", *words, f"output_dir={unbroken}").code == 0
    for target in (20, 45):
        run = Started(folder, environment, *words, processes=2, config="fsdp2_cpu_2proc.yaml")
        run.wait_for(lambda run=run, target=target: run.step() >= target)
        run.end(signal.SIGTERM, read_status(folder)["pid"])
        assert read_status(folder)["state"] == "preempted"
    ended = hfbsz("pretrain.py", *words, f"output_dir={folder}")
    assert ended.code == 0 and "resumes from" in ended.out
    losses = [[record["train/loss"] for record in records(path, "step")] for path in (folder, unbroken)]
    assert len(losses[0]) == len(losses[1]) == 90 and losses[0] == pytest.approx(losses[1], rel=1e-5)
