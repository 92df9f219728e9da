"""Weights & Biases: one W&B run per run, with the keys and values of records.jsonl; its faults never stop training."""

import json
import math
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, TINY, records
from fake_wandb import fake_server
from test_resume import Started
from wandb_reader import read_run

from hfbsz.records.folder import read_status
from hfbsz.report.wandb.identity import read_identity
from hfbsz.train.checkpoint import newest

pytestmark = pytest.mark.process


def lines(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_offline_run_is_records_jsonl(hfbsz, ragged, tmp_path, processes):
    run = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", f"output_dir={run}", "log.wandb=offline", "log.group=a test"]
    ended = hfbsz("pretrain.py", *words, processes=processes)
    assert ended.code == 0, ended.err
    (folder,) = (run / "wandb").glob("offline-run-*")  # one run, not one for each rank
    logged = read_run(folder)
    written = lines(run)
    assert len(logged.history) == len(written) == 50 + 3 + 1 + 2 + 4  # steps, evaluations, final, states, checkpoints
    for theirs, ours in zip(logged.history, written, strict=True):
        theirs = {name: value for name, value in theirs.items() if not name.startswith("_")}
        assert theirs.keys() == ours.keys()
        assert all(
            theirs[name] == value or math.isclose(theirs[name], value, rel_tol=0) for name, value in ours.items()
        )
    assert (logged.group, logged.job_type) == ("a test", "pretrain") and logged.name.startswith(
        "llama-own-b8-lr0.003-s0"
    )
    assert logged.config["plan"]["largest_batch"] == 8  # by which a dashboard groups
    assert logged.config["plan"]["steps"] == 50 and logged.config["recipe"]["optim"]["lr"] == 0.003


def test_case_s04_a_token_from_the_environment_is_not_written_to_any_file(environment, tmp_path):
    """Not out of variables, the URLs in them, or the remote of the git repository in which a run is started."""
    at = tmp_path / "repository"
    at.mkdir()
    (at / "a.txt").write_text("hello batch size world\n" * 2000)
    for command in (
        "init -q",
        "remote add origin https://me:hf_PLANTED@example.com/x.git",
        "config user.name hf_PLANTED",
    ):
        subprocess.run(["git", *command.split()], cwd=at, check=True)
    planted = dict.fromkeys(("HF_TOKEN", "SECRET", "WANDB_API_KEY"), "hf_PLANTED" + "0" * 40)
    planted |= dict.fromkeys(("WANDB_BASE_URL", "PIP_INDEX_URL"), "https://me:hf_PLANTED@example.com")
    words = ["recipe=debug", "data.files=a.txt", "data.vocab_size=300", "duration=4 steps", "output_dir=run"]
    command = [sys.executable, str(ROOT / "scripts" / "pretrain.py"), *words, "log.wandb=offline"]
    ended = subprocess.run(command, cwd=at, env=environment | planted, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    files = [path for path in (at / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and (at / "run" / "report.html") in files
    assert not [path for path in files if b"PLANTED" in path.read_bytes()]
    assert "PLANTED" not in ended.stdout + ended.stderr


def test_a_run_of_an_agent_stays_the_agents_when_it_is_resumed_or_uploaded_later(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", "log.wandb=offline", "duration=4 steps"]
    words.append(f"output_dir={tmp_path}/sweep-${{oc.env:WANDB_SWEEP_ID}}/${{oc.env:WANDB_RUN_ID}}")
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run7", "WANDB_ENTITY": "team", "WANDB_PROJECT": "swept"}
    ended = hfbsz("pretrain.py", *words, env=agent)
    assert ended.code == 0, ended.err
    run = tmp_path / "sweep-sweep1" / "run7"
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert (read_run(folder).run_id, read_run(folder).project) == ("run7", "swept")
    assert newest(run, print).state["wandb_id"] == "run7"
    identity = read_identity(run)
    assert (identity.id, identity.project, identity.entity) == ("run7", "swept", "team")


def test_a_server_that_is_down_gives_a_warning(hfbsz, ragged, tmp_path):
    run = tmp_path / "run"
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    ended = hfbsz("pretrain.py", TINY, f"data.files={ragged}", f"output_dir={run}", "log.wandb=online", env=env)
    assert ended.code == 0 and read_status(run)["state"] == "finished"
    assert ended.out.count("warning: ") == 1 and "Traceback" not in ended.err
    assert len(lines(run)) == 60


def test_a_run_killed_and_resumed_offline_is_uploaded_once(hfbsz, ragged, environment, fork_server, tmp_path):
    """Two offline folders of one id, which `wandb sync` would lay over each other; records.jsonl has each row once."""
    run = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", "log.wandb=offline", "duration=90steps", "checkpoint.every=7steps"]
    words += ["threads=1"]
    first = Started(run, environment, *words, server=fork_server)
    first.wait_for(lambda: first.step() >= 12)
    first.end(signal.SIGKILL)
    ended = hfbsz("pretrain.py", *words, f"output_dir={run}")
    assert ended.code == 0 and "resumes from" in ended.out, ended.err
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2
    with fake_server() as server:
        sent = hfbsz("sync.py", run, env=server.environment())
        assert sent.code == 0, sent.err
        assert server.run.rows() == lines(run) and server.run.exit_code == 0
        (run_id,) = server.runs
        assert run_id == json.loads((run / "wandb.json").read_text())["id"] and run_id.startswith("run-")
        assert server.run.config["recipe"]["value"]["optim"]["lr"] == 0.003
        again = hfbsz("sync.py", run, env=server.environment())
        assert again.code == 0 and "complete" in again.out and server.run.rows() == lines(run)


def test_a_run_whose_wandb_process_dies_finishes_and_is_uploaded_later(hfbsz, ragged, environment, tmp_path):
    run = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", "log.wandb=offline", "duration=200steps", "threads=1", f"output_dir={run}"]
    process = subprocess.Popen(
        [sys.executable, "scripts/pretrain.py", *words],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (
        (run / "records.jsonl").exists() and (run / "records.jsonl").read_text().count("\n") > 40
    ):
        time.sleep(0.01)
    (core,) = (child for child in psutil.Process(process.pid).children() if child.name() == "wandb-core")
    core.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    assert out.count("warning: ") == 1 and f"sync.py {run}" in out
    assert [record["train/global_step"] for record in records(run, "step")] == [*range(1, 201)]
    assert records(run, "lifecycle")[-1]["state"] == read_status(run)["state"] == "finished"
    with fake_server() as server:
        assert hfbsz("sync.py", run, env=server.environment()).code == 0
        assert server.run.rows() == lines(run)
