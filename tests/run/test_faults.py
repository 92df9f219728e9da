"""Faults of machine, disk and data, through the real command: a line that says what to do, the last complete checkpoint
untouched, no hang. docs/faults.md lists them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY, records
from test_resume import Started, same_weights, told

from hfbsz.data.rows import prepare
from hfbsz.recipe.load import load
from hfbsz.records.folder import read_status
from hfbsz.train.checkpoint import newest

pytestmark = pytest.mark.process

LONG = [TINY, "duration=3000steps", "checkpoint.every=20steps", "checkpoint.best=false", "eval.every=0%"]


def ranks(launcher: int) -> dict[str, psutil.Process]:
    """The ranks of `accelerate launch`, or of a process that forked them in their order."""
    children = psutil.Process(launcher).children(recursive=True)
    if any("fork_server.py" in word for word in psutil.Process(launcher).cmdline()):
        return {str(rank): child for rank, child in enumerate(sorted(children, key=lambda child: child.pid))}
    return {child.environ().get("RANK", "0"): child for child in children if "scripts/pretrain.py" in child.cmdline()}


def checkpoints(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*/complete.json"))


def whole_checkpoint(folder: Path) -> bool:
    complaints: list[str] = []
    return newest(folder, complaints.append) is not None and not complaints


def test_a_rank_that_dies_ends_the_others(ragged, environment, fork_server, tmp_path):
    folder = tmp_path / "run"
    run = Started(folder, environment, *LONG, f"data.files={ragged}", processes=2, server=fork_server)
    run.wait_for(lambda: checkpoints(folder))
    ranks(run.process.pid)["1"].kill()
    _, err = run.process.communicate(timeout=60)
    assert run.process.returncode != 0 and "error: rank 0: another rank has ended" in err
    assert "[rank0]: Traceback" not in err
    status = read_status(folder)
    assert (status["state"], status["cause"]) == ("failed", "rank")
    assert whole_checkpoint(folder)


def test_a_rank_that_hangs_does_not_hold_a_signaled_one(ragged, environment, fork_server, tmp_path):
    """Ten seconds, and twice the slowest step: then the rank leaves unsaved."""
    folder = tmp_path / "run"
    run = Started(folder, environment, *LONG, f"data.files={ragged}", processes=2, server=fork_server)
    run.wait_for(lambda: checkpoints(folder))
    found = ranks(run.process.pid)
    found["1"].suspend()
    time.sleep(0.5)
    started = time.monotonic()
    found["0"].terminate()
    found["0"].wait(timeout=30)
    assert time.monotonic() - started < 20
    found["1"].kill()  # as the launcher does 30 s after the first
    _, err = run.process.communicate(timeout=60)
    assert re.search(r"error: rank 0: SIGTERM: the other ranks did not answer within 1\d s", err)
    status = read_status(folder)
    assert (status["state"], status["cause"]) == ("preempted", "signal") and "without a checkpoint" in status["why"]
    assert whole_checkpoint(folder)


def test_an_orphan_ends_with_its_launcher(ragged, environment, tmp_path):
    folder = tmp_path / "run"
    run = Started(folder, environment, *LONG, f"data.files={ragged}", config="cpu.yaml")
    run.wait_for(lambda: checkpoints(folder))
    (child,) = ranks(run.process.pid).values()
    run.process.kill()
    child.wait(timeout=60)
    assert read_status(folder)["state"] == "preempted" and whole_checkpoint(folder)
    assert (folder / f"checkpoint-{read_status(folder)['step']}").is_dir()


@pytest.mark.parametrize("processes", [1, 2])
def test_gradients_that_are_not_finite_end_the_run(hfbsz, ragged, tmp_path, processes):
    folder = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", f"output_dir={folder}", "checkpoint.every=1steps", "optim.lr=1e30"]
    ended = hfbsz("pretrain.py", *words, "optim.clip=null", "schedule.warmup=0%", processes=processes)
    assert ended.code != 0 and "5 steps in a row had gradients that are not finite" in ended.err
    assert "lower optim.lr" in ended.err and "hfbsz/loop.py" not in ended.err
    status = read_status(folder)
    assert (status["state"], status["cause"]) == ("diverged", "diverged") and whole_checkpoint(folder)


BY_BLOCK = f"""
import runpy, sys
from hfbsz.data import contents
from hfbsz.data import rows
contents.BLOCK, rows._AT_ONCE = 4096, 0
sys.path.insert(0, {str(ROOT / "scripts")!r})
runpy.run_path({str(ROOT / "scripts" / "pretrain.py")!r}, run_name="__main__")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_row_that_cannot_be_read(hfbsz, ragged, tmp_path, processes):
    """Of a file that is verified as its rows are read, as large ones are: the rank that meets it says so, and the same
    command rebuilds the file and resumes."""
    folder, cache, script = tmp_path / "run", tmp_path / "cache", tmp_path / "by_block.py"
    script.write_text(BY_BLOCK)
    words = [TINY, f"data.files={ragged}", "checkpoint.every=5steps", "duration=50steps", "threads=1"]
    env = {"HFBSZ_CACHE": str(cache)}
    whole = hfbsz(script, *words, f"output_dir={tmp_path / 'whole'}", env=env)
    assert whole.code == 0, whole.err
    (arrow,) = cache.glob("*/train.arrow")
    content = bytearray(arrow.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    arrow.write_bytes(content)
    ended = hfbsz(script, *words, f"output_dir={folder}", processes=processes, env=env)
    assert ended.code != 0
    where = r"rank \d: " if processes == 2 else ""
    told = rf"error: {where}\S+train.arrow: damaged: block {middle // 4096} of 64 KiB, read for row \d+: the same "
    assert re.search(told, ended.err) and "hfbsz/data" not in ended.err
    assert read_status(folder)["state"] == "failed"
    again = hfbsz(script, *words, f"output_dir={folder}", processes=processes, env=env)
    assert again.code == 0 and "the token cache was damaged (train.arrow): rebuilt" in again.out, again.err
    if processes == 1:
        assert same_weights(folder, tmp_path / "whole")


def test_a_truncated_cache_is_rebuilt(ragged, tmp_path, monkeypatch):
    """Reading past the end of a mapped file would crash the process without a message."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path))
    data = load([TINY, f"data.files={ragged}"]).recipe.data
    first = prepare(data, {}, lambda *_: None)
    expected = [first.train[index].tolist() for index in range(len(first.train))]
    (arrow,) = tmp_path.glob("*/train.arrow")
    os.truncate(arrow, arrow.stat().st_size // 2)
    again = prepare(data, {}, lambda *_: None)
    assert [again.train[index].tolist() for index in range(len(again.train))] == expected


NAMESPACE = ["unshare", "-rm", "bash", "-ec"]
no_namespace = shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "mount -t tmpfs none /mnt"]).returncode
needs_a_disk = pytest.mark.skipif(bool(no_namespace), reason="no mount namespace for a small disk")


def on_a_disk(environment, script, *words):
    """Run a bash script with a file system of its own at /mnt, and `run` as the real command."""
    command = " ".join(f"'{word}'" for word in (sys.executable, "scripts/pretrain.py", *words, "output_dir=/mnt/run"))
    body = f'run() {{ {command} "$@"; }}\n{script}'
    done = subprocess.run([*NAMESPACE, body], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@needs_a_disk
def test_a_full_disk_loses_nothing(hfbsz, ragged, environment, tmp_path):
    """Filled while the run is at work; once there is room the same command ends as the unbroken run does."""
    words = [TINY, f"data.files={ragged}", "duration=160steps", "checkpoint.every=20steps", "threads=1"]
    assert hfbsz("pretrain.py", *words, f"output_dir={tmp_path}/whole").code == 0
    script = f"""
    mount -t tmpfs -o size=4m none /mnt
    run & first=$!
    while [ ! -e /mnt/run/checkpoint-40 ]; do sleep 0.02; done
    cat /dev/zero > /mnt/filler 2>/dev/null || true
    wait $first && exit 9
    cp /mnt/run/status.json {tmp_path}/status.json
    rm /mnt/filler
    run
    cp -r /mnt/run {tmp_path}/resumed
    """
    code, out, err = on_a_disk(environment, script, *words)
    assert code == 0, (out, err)
    assert "No space left on device" in err and "make room" in err and "Traceback" not in err
    assert "resumes from" in out and ": skipped" not in out
    assert told(tmp_path / "resumed") == told(tmp_path / "whole")
    assert same_weights(tmp_path / "resumed", tmp_path / "whole")


@needs_a_disk
def test_a_folder_that_cannot_be_written(ragged, environment):
    script = "mount -t tmpfs -o ro none /mnt\nrun"
    code, _, err = on_a_disk(environment, script, TINY, f"data.files={ragged}")
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("error: /mnt/run: cannot be written: Read-only file system: choose output_dir=")


def extended(hfbsz, folder, words, *durations):
    for duration in durations:
        ended = hfbsz("pretrain.py", *words, f"output_dir={folder}", f"duration={duration}")
        assert ended.code == 0, ended.err
    return ended


@pytest.mark.parametrize("schedule", [["schedule.shape=constant"], ["schedule.shape=wsd", "schedule.decay=80seq"]])
def test_a_longer_budget_resumes_where_the_shorter_one_did_not_decay(hfbsz, ragged, tmp_path, schedule):
    words = [TINY, f"data.files={ragged}", "schedule.warmup=40seq", "threads=1", "eval.every=5steps", *schedule]
    folder, whole = tmp_path / "run", tmp_path / "whole"
    ended = extended(hfbsz, folder, words, "30steps", "60steps")
    assert f"checkpoint-{30 if 'constant' in schedule[0] else 19}, step" in ended.out
    extended(hfbsz, whole, words, "60steps")
    assert same_weights(folder, whole)
    ours, theirs = records(folder, "step"), records(whole, "step")
    assert [one["train/loss"] for one in ours] == [one["train/loss"] for one in theirs]
    shorter = hfbsz("pretrain.py", *words, f"output_dir={folder}", "duration=20steps")
    assert shorter.code == 2 and "a longer duration resumes from it" in shorter.err
    assert read_status(folder)["state"] == "finished" and same_weights(folder, whole)


def test_a_cosine_does_not_grow_longer(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", f"output_dir={tmp_path}/run"]
    assert hfbsz("pretrain.py", *words, "duration=10steps").code == 0
    longer = hfbsz("pretrain.py", *words, "duration=20steps")
    assert longer.code == 2 and "duration: 10 steps there, 20 steps here" in longer.err


def test_the_best_evaluation_is_kept(hfbsz, ragged, tmp_path):
    """Validation gets worse after its best: that checkpoint stays beside the newest."""
    folder = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", "data.validation=90%", "duration=300steps", "optim.lr=1e-2"]
    ended = hfbsz(
        "pretrain.py",
        *words,
        "eval.every=5%",
        "checkpoint.keep=1",
        "eval.full=false",
        f"output_dir={folder}",
    )
    assert ended.code == 0, ended.err
    evaluations = [record for record in records(folder, "eval") if record["train/global_step"]]
    best = min(evaluations, key=lambda record: record["eval/loss"])["train/global_step"]
    kept = {int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")}
    assert best < 300 and kept == {best, 300}
    assert newest(folder, print).state["kept"] == {"best": best}


def test_other_data_are_refused(hfbsz, ragged, tmp_path):
    folder, corpus = tmp_path / "run", tmp_path / "corpus.jsonl"
    shutil.copy(ragged, corpus)
    words = [TINY, f"data.files={corpus}", f"output_dir={folder}", "duration=30steps", "schedule.shape=constant"]
    words += ["schedule.warmup=0%"]
    assert hfbsz("pretrain.py", *words).code == 0
    corpus.write_text(corpus.read_text() + '\n{"text": "one more document"}')
    ended = hfbsz("pretrain.py", *words, "duration=60steps")
    assert ended.code == 2 and "the data have changed since the checkpoint" in ended.err
    assert read_status(folder)["state"] == "finished"


@pytest.mark.parametrize("moment", ["evaluating", "saving"])
def test_a_signal_at_any_moment_ends_both_ranks_with_a_checkpoint(ragged, environment, fork_server, tmp_path, moment):
    folder = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", "duration=3000steps", "checkpoint.every=3steps", "eval.every=0%"]
    if moment == "evaluating":
        words += ["eval.every=1steps", "eval.rows=100000", "checkpoint.best=false"]  # nearly all of the time
    run = Started(folder, environment, *words, processes=2, server=fork_server)
    reached = {
        "evaluating": lambda: run.step() >= 3,
        "saving": lambda: list(folder.glob(".checkpoint-*.tmp")),
    }
    run.wait_for(reached[moment])
    run.end(signal.SIGUSR1, ranks(run.process.pid)["1"].pid)
    status = read_status(folder)
    assert (status["state"], status["cause"]) == ("preempted", "signal")
    assert (folder / f"checkpoint-{status['step']}" / "complete.json").is_file() and whole_checkpoint(folder)
