"""The comparison's W&B run: its tables and page, the same run when it is sent again, and no fault of W&B is raised.

wandb keeps state in a process, so every scenario is a separate process, with its own home and on loopback only.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comparison import LARGE, SMALL, experiment
from fake_wandb import FakeServer, fake_server
from synthetic_experiments import full_sample
from wandb_reader import read_run

from hfbsz.experiment.page import wandb as team

SCENARIO = """
import json, sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from comparison import experiment
from hfbsz.experiment.page.wandb import log_comparison
from hfbsz.report.wandb import reporter as report

report.INIT_SECONDS, report.FINISH_SECONDS, report.SLACK_SECONDS = 2.0, 3.0, 2.0
warnings = []

def log(mode, **changes):
    experiment_now = experiment(Path("compared"), **changes)
    log_comparison(experiment_now, mode, "p", None, "a group: a=1", warnings.append, "<h1>The page</h1>")

def end():
    print(json.dumps(warnings))

"""


@pytest.fixture
def play(tmp_path, environment):
    """Run a scenario in an environment without the user's W&B settings; returns its warnings."""

    def run(body: str, **env: str) -> list[str]:
        clean = {name: value for name, value in environment.items() if name != "WANDB_MODE"}
        clean |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_ERROR_REPORTING": "false"}
        clean |= {"NO_PROXY": "*", "no_proxy": "*"}
        done = subprocess.run(
            [sys.executable, "-c", SCENARIO + body + "\nend()", Path(__file__).parent],
            cwd=tmp_path, env=clean | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and done.stderr == "", done.stderr
        (line,) = done.stdout.splitlines()  # W&B prints nothing
        return json.loads(line)

    return run


def local_copy(folder: Path) -> Path:
    """The only W&B folder of the comparison."""
    (copy,) = (folder / "compared" / "wandb").glob("*run-*-*")
    return copy


def logged_table(folder: Path, name: str) -> list[dict]:
    """The rows of a table in W&B's local copy."""
    (file,) = (folder / "files" / "media" / "table").glob(f"{name}_0_*.json")
    table = json.loads(file.read_text(), parse_constant=pytest.fail)  # NaN or Infinity are not JSON
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_offline_and_sent_again_it_is_one_run_with_the_comparison(play, tmp_path):
    twice = 'log("offline"); time.sleep(1.1); log("offline", failed=False)'  # W&B's folder names have the second
    assert play(twice) == []
    folder = local_copy(tmp_path)
    run = read_run(folder)
    assert (run.name, run.group, run.job_type) == ("comparison a name", "a group: a=1", "comparison")
    assert run.run_id.startswith("a-group--a-1-") and (run.project, run.exit_code) == ("p", 0)
    assert run.config["comparison"]["baseline"] == "batch.size=8"
    assert run.summary["comparison/best_arm"] == "batch.size=8" and run.summary["comparison/failed"] == 0
    (html,) = (folder / "files" / "media" / "html").iterdir()
    assert html.read_text() == "<h1>The page</h1>"
    assert len(run.history) == 1
    tables = team.tables(experiment(tmp_path / "compared", failed=False))
    for name, (columns, rows) in tables.items():
        for theirs, ours in zip(logged_table(folder, name), rows, strict=True):
            finite = [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in ours]
            assert theirs == dict(zip(columns, finite, strict=True))
    points = logged_table(folder, "loss_over_batch_table")
    assert len(points) == 6 and points[0] == {"batch (sequences)": 8, "final loss (nats/target)": 4.3911}
    assert len(logged_table(folder, "mean_loss_over_batch_table")) == 2


def test_online_and_sent_again_it_is_one_run(play, tmp_path):
    with fake_server() as server:
        assert play('log("auto"); log("auto", failed=False)', **server.environment()) == []
        run = server.run
    assert len(run.history) == 2 and run.exit_code == 0
    assert run.summary["comparison/failed"] == 0 and run.summary["arms"]["nrows"] == 3
    assert (run.begun["groupName"], run.begun["jobType"]) == ("a group: a=1", "comparison")
    assert run.config["_wandb"]["value"]["visualize"].keys() == {"loss_over_batch", "mean_loss_over_batch"}
    assert local_copy(tmp_path).name.startswith("run-")


def test_a_server_that_is_down_costs_one_warning(play, tmp_path):
    with FakeServer() as closed:
        env = closed.environment()
    begin = time.monotonic()
    (warning,) = play('log("online")', **env)
    assert time.monotonic() - begin < 25
    assert "offline" in warning and "same command" in warning and env["WANDB_API_KEY"] not in warning
    assert len(logged_table(local_copy(tmp_path), "seeds")) == 8


HANG = """
import psutil
def suspended_log(run, row):
    (core,) = (child for child in psutil.Process().children() if child.name() == "wandb-core")
    core.suspend()
    original_log(run, row)
original_log, wandb.Run.log = wandb.Run.log, suspended_log"""


def test_no_fault_of_wandb_reaches_the_comparison(play):
    body = (
        """
import wandb
table, wandb.Table = wandb.Table, None
log("offline")
wandb.Table = table"""
        + HANG
        + """
begin = time.monotonic()
log("offline")
assert time.monotonic() - begin < 15"""
    )
    broken, hung = play(body)
    assert "TypeError" in broken and "does not end" in hung and "\n" not in broken + hung


def test_no_fault_of_hfbsz_reaches_the_comparison(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(team, "tables", lambda _: 1 / 0)
    team.log_comparison(experiment(tmp_path), "offline", "p", None, "g", warnings.append)
    (warning,) = warnings
    assert "ZeroDivisionError" in warning and not (tmp_path / "wandb").exists()


def test_off_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for mode in ("off", "auto"):
        team.log_comparison(experiment(tmp_path), mode, "p", None, "g", pytest.fail)
    assert not (tmp_path / "wandb").exists()


def test_tables_of_arms_and_seeds(tmp_path):
    compared = experiment(tmp_path)
    tables = {
        name: [dict(zip(columns, row, strict=True)) for row in rows]
        for name, (columns, rows) in team.tables(compared).items()
    }
    small, large, waiting = tables["arms"]
    assert small["final loss, mean (nats/target)"] == pytest.approx(4.4695, abs=5e-5)
    assert small["final loss, sd (nats/target)"] == pytest.approx(0.152, abs=5e-4)
    assert small["gap, mean (nats/target)"] is None and small["best epoch, mean"] == 2.5
    assert small["peak memory, highest (B)"] == 2**30 + 2
    assert (large["seeds"], large["runs"], large["failed"]) == (3, 4, 1)
    assert waiting["batch (sequences)"] is None and waiting["seeds"] == 0
    assert [row["run in W&B"] for row in tables["seeds"]] == ["b8-s0-abc"] + 7 * [None]
    assert tables["seeds"][6]["why it failed"] == "out of memory"
    assert [(row["value"], row["diverged"], row["chosen"]) for row in tables["tuning"]] == [
        (1e-3, True, False),
        (2e-3, False, True),
        (4e-3, None, False),
    ]
    (test,) = tables["tests"]
    assert (test["left"], test["right"], test["n (seeds)"]) == ("batch.size=64", "batch.size=8", 3)
    assert test["mean of left − right"] == pytest.approx(0.998, abs=5e-4) and test["sign-flip p"] == 0.25
    assert len(tables["beliefs"]) == len(compared.findings)


def test_scores_on_tasks_are_columns_of_arms_and_seeds():
    compared = full_sample()
    tables = {name: [dict(zip(columns, row, strict=True)) for row in rows]
              for name, (columns, rows) in team.tables(compared).items()}  # fmt: skip
    measured = [row["python_next_line/acc"] for row in tables["seeds"][:3]]
    assert measured == [score.value for score in compared.arms[0].scores["python_next_line/acc"]]
    assert tables["arms"][0]["python_next_line/acc, mean"] == pytest.approx(sum(measured) / 3)
    assert tables["arms"][7]["python_next_line/acc, mean"] is None  # its runs failed


def test_the_summary_counts_every_run_once_and_skips_an_arm_that_diverged(tmp_path):
    compared = experiment(tmp_path, losses={SMALL: (4.4, math.nan, 4.4), LARGE: (5.4, 5.5, 5.6)})
    assert team.summary(compared) == {
        "comparison/best_arm": "batch.size=64",
        "comparison/best_arm_final_loss": pytest.approx(5.5),
        "comparison/arms": 3,
        "comparison/runs": 8,
        "comparison/finished": 6,
        "comparison/failed": 1,
        "comparison/diverged": 0,
    }
