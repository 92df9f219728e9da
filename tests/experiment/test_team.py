"""A comparison's run in W&B holds its tables and its page, is one run however often it is said, and never stops it.

wandb keeps state in a process, so every scenario is a process of its own, with its own home and on loopback only.
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
from wandb_reader import read_run

from hfbsz.experiment.page import wandb as team

SCENARIO = """
import json, sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from comparison import experiment
from hfbsz.experiment.page.wandb import aggregate
from hfbsz.report.wandb import reporter as report

report.INIT_SECONDS, report.FINISH_SECONDS, report.SLACK_SECONDS = 2.0, 3.0, 2.0
told = []

def say(mode, **what):
    aggregate(experiment(Path("compared"), **what), mode, "p", None, "a group: a=1", told.append, "<h1>The page</h1>")

def end():
    print(json.dumps(told))

"""


@pytest.fixture
def play(tmp_path, environment):
    """Runs a scenario in an environment that knows nothing of the user's W&B; gives what it told."""

    def run(body: str, **env: str) -> list[str]:
        own = {name: value for name, value in environment.items() if name != "WANDB_MODE"}
        own |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_ERROR_REPORTING": "false"}
        own |= {"NO_PROXY": "*", "no_proxy": "*"}
        done = subprocess.run(
            [sys.executable, "-c", SCENARIO + body + "\nend()", Path(__file__).parent],
            cwd=tmp_path, env=own | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and done.stderr == "", done.stderr
        (line,) = done.stdout.splitlines()  # nothing of W&B on the console
        return json.loads(line)

    return run


def the_copy(place: Path) -> Path:
    (folder,) = (place / "compared" / "wandb").glob("*run-*-*")
    return folder


def kept(folder: Path, name: str) -> list[dict]:
    """A table's rows, as W&B's copy has them."""
    (file,) = (folder / "files" / "media" / "table").glob(f"{name}_0_*.json")
    table = json.loads(file.read_text(), parse_constant=pytest.fail)  # NaN or Infinity, which are no JSON
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_offline_and_said_again_it_is_one_run_that_holds_the_comparison(play, tmp_path):
    again = 'say("offline"); time.sleep(1.1); say("offline", failed=False)'  # W&B's folders bear the second
    assert play(again) == []
    folder = the_copy(tmp_path)
    run = read_run(folder)
    assert (run.name, run.group, run.job_type) == ("comparison a name", "a group: a=1", "comparison")
    assert run.run_id.startswith("a-group--a-1-") and (run.project, run.exit_code) == ("p", 0)
    assert run.config["comparison"]["baseline"] == "batch.size=8"
    assert run.summary["comparison/best_arm"] == "batch.size=8" and run.summary["comparison/failed"] == 0
    (html,) = (folder / "files" / "media" / "html").iterdir()
    assert html.read_text() == "<h1>The page</h1>"
    assert len(run.history) == 1
    said = team.tables(experiment(tmp_path / "compared", failed=False))
    for name, (columns, rows) in said.items():
        for theirs, ours in zip(kept(folder, name), rows, strict=True):
            finite = [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in ours]
            assert theirs == dict(zip(columns, finite, strict=True))
    points = kept(folder, "loss_over_batch_table")
    assert len(points) == 6 and points[0] == {"batch (sequences)": 8, "final loss (nats/target)": 4.3911}
    assert len(kept(folder, "mean_loss_over_batch_table")) == 2


def test_online_and_said_again_it_is_one_run(play, tmp_path):
    with fake_server() as server:
        assert play('say("auto"); say("auto", failed=False)', **server.environment()) == []
        run = server.run
    assert len(run.history) == 2 and run.exit_code == 0
    assert run.summary["comparison/failed"] == 0 and run.summary["arms"]["nrows"] == 3
    assert (run.begun["groupName"], run.begun["jobType"]) == ("a group: a=1", "comparison")
    assert run.config["_wandb"]["value"]["visualize"].keys() == {"loss_over_batch", "mean_loss_over_batch"}
    assert the_copy(tmp_path).name.startswith("run-")


def test_a_server_that_is_down_costs_one_warning(play, tmp_path):
    with FakeServer() as closed:
        env = closed.environment()
    begin = time.monotonic()
    (warning,) = play('say("online")', **env)
    assert time.monotonic() - begin < 25
    assert "offline" in warning and "the same command" in warning and env["WANDB_API_KEY"] not in warning
    assert len(kept(the_copy(tmp_path), "seeds")) == 8


HANG = """
import psutil
def log(run, row):
    (core,) = (child for child in psutil.Process().children() if child.name() == "wandb-core")
    core.suspend()
    logged(run, row)
logged, wandb.Run.log = wandb.Run.log, log"""


def test_no_fault_of_wandb_reaches_the_comparison(play):
    body = (
        """
import wandb
table, wandb.Table = wandb.Table, None
say("offline")
wandb.Table = table"""
        + HANG
        + """
begin = time.monotonic()
say("offline")
assert time.monotonic() - begin < 15"""
    )
    broken, hung = play(body)
    assert "TypeError" in broken and "does not end" in hung and "\n" not in broken + hung


def test_no_fault_of_ours_does(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(team, "tables", lambda _: 1 / 0)
    team.aggregate(experiment(tmp_path), "offline", "p", None, "g", told.append)
    (warning,) = told
    assert "ZeroDivisionError" in warning and not (tmp_path / "wandb").exists()


def test_off_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for mode in ("off", "auto"):
        team.aggregate(experiment(tmp_path), mode, "p", None, "g", pytest.fail)
    assert not (tmp_path / "wandb").exists()


def test_tables_say_what_came_of_arms_and_seeds(tmp_path):
    found = experiment(tmp_path)
    read = {
        name: [dict(zip(columns, row, strict=True)) for row in rows]
        for name, (columns, rows) in team.tables(found).items()
    }
    small, large, waiting = read["arms"]
    assert small["final loss, mean (nats/target)"] == pytest.approx(4.4695, abs=5e-5)
    assert small["final loss, sd (nats/target)"] == pytest.approx(0.152, abs=5e-4)
    assert small["gap, mean (nats/target)"] is None and small["best epoch, mean"] == 2.5
    assert small["peak memory, highest (B)"] == 2**30 + 2
    assert (large["seeds"], large["runs"], large["failed"]) == (3, 4, 1)
    assert waiting["batch (sequences)"] is None and waiting["seeds"] == 0
    assert [row["run in W&B"] for row in read["seeds"]] == ["b8-s0-abc"] + 7 * [None]
    assert read["seeds"][6]["why it failed"] == "out of memory"
    assert [(row["value"], row["diverged"], row["chosen"]) for row in read["tuning"]] == [
        (1e-3, True, False),
        (2e-3, False, True),
        (4e-3, None, False),
    ]
    (test,) = read["tests"]
    assert (test["left"], test["right"], test["n (seeds)"]) == ("batch.size=64", "batch.size=8", 3)
    assert test["mean of left − right"] == pytest.approx(0.998, abs=5e-4) and test["sign-flip p"] == 0.25
    assert len(read["beliefs"]) == len(found.findings)


def test_the_summary_counts_every_run_once_and_passes_over_an_arm_that_diverged(tmp_path):
    found = experiment(tmp_path, losses={SMALL: (4.4, math.nan, 4.4), LARGE: (5.4, 5.5, 5.6)})
    assert team.summary(found) == {
        "comparison/best_arm": "batch.size=64",
        "comparison/best_arm_final_loss": pytest.approx(5.5),
        "comparison/arms": 3,
        "comparison/runs": 8,
        "comparison/finished": 6,
        "comparison/failed": 1,
        "comparison/diverged": 0,
    }
