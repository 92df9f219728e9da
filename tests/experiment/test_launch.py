"""The launcher with runs that are active, fail or have finished, without training any."""

import json
import sys
import threading
import time

import pytest
from conftest import ROOT
from filelock import FileLock

from hfbsz.experiment.jobs import Job, product
from hfbsz.experiment.launch import Launcher
from hfbsz.system.files import write_text
from hfbsz.system.yaml import write_yaml


@pytest.fixture
def job(tmp_path, monkeypatch) -> Job:
    monkeypatch.chdir(tmp_path)
    (job,) = product([f"recipe={ROOT}/tests/tiny.yaml", "data.files=x"])
    job.folder.mkdir(parents=True)
    (job.folder / "checkpoint-4").mkdir()
    return job


def launcher_of(code: str, tmp_path, results: list) -> Launcher:
    (tmp_path / "pretrain.py").write_text(code)
    return Launcher([sys.executable], 1, lambda job, result: results.append(result), False, tmp_path)


def finish(job: Job, duration: str | None = None, state: str = "finished") -> None:
    recipe = job.loaded.recipe.to_dict() | ({"duration": duration} if duration else {})
    write_yaml(recipe, job.folder / "recipe.yaml")
    write_text(job.folder / "status.json", json.dumps({"state": state}))


def test_the_launcher_waits_for_an_orphan_and_leaves_its_checkpoints_if_it_is_stopped(job, tmp_path):
    results = []
    launcher = launcher_of("raise SystemExit(3)", tmp_path, results)
    with FileLock(job.folder / ".lock"):  # a run that a killed comparison left active
        thread = threading.Thread(target=launcher.run, args=([job],))
        thread.start()
        time.sleep(0.3)
        assert job.folder in launcher.running and not results
        launcher.stop()
        thread.join(10)
    assert not thread.is_alive() and not results and (job.folder / "checkpoint-4").is_dir()


def test_an_orphan_that_finishes_is_not_run_again(job, tmp_path):
    results = []
    launcher = launcher_of("raise SystemExit(3)", tmp_path, results)
    with FileLock(job.folder / ".lock"):
        thread = threading.Thread(target=launcher.run, args=([job],))
        thread.start()
        time.sleep(0.3)
        finish(job)
    thread.join(10)
    assert results == ["finished"] and not (job.folder / "checkpoint-4").exists()


def test_a_finished_run_of_another_duration_is_run(job, tmp_path):
    results = []
    finish(job, duration="7 steps")
    launcher_of("print('error: no such thing'); raise SystemExit(3)", tmp_path, results).run([job])
    assert results == [f"failed: no such thing ({job.log})"] and (job.folder / "checkpoint-4").is_dir()


def test_a_finished_run_is_not_started_and_its_checkpoints_stay(job, tmp_path):
    results = []
    finish(job)
    launcher_of("raise SystemExit(3)", tmp_path, results).run([job])
    assert results == ["finished earlier"] and (job.folder / "checkpoint-4").is_dir()


def test_a_run_that_diverged_is_reported_and_not_run_again(job, tmp_path):
    results = []
    launcher = launcher_of("raise SystemExit(3)", tmp_path, results)
    finish(job, state="diverged")
    launcher.run([job])
    assert results == [f"diverged earlier: to run it again, delete {job.folder}"] and not launcher.failures
