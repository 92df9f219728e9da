"""W&B gets the rows of records.jsonl, and no fault of W&B stops or slows a run.

wandb keeps state in a process, so every scenario is a separate process, with its own home and on loopback only.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_wandb import KEY, FakeServer, fake_server

from hfbsz.records.record import Clock, Reading

pytestmark = pytest.mark.process

SCENARIO = """
import json, os, signal, sys, time
from pathlib import Path
import psutil
from hfbsz.report.wandb import reporter as report

report.FINISH_SECONDS, report.SLACK_SECONDS = 3.0, 2.0
report.WAITING_ROWS = 2_000
warnings, slowest = [], 0.0

def start(mode, identity={}, **more):
    begin = time.monotonic()
    names = report.Identity("abcd1234", "p", None, "g", "pretrain", "n", **identity)
    reporter = report.WandbReporter(
        folder=Path("run"), mode=mode, identity=names,
        config={"batch": {"size": "64 sequences"}, "plan": {"steps": 9}}, warn=warnings.append, **more,
    )
    return reporter, time.monotonic() - begin

def log(reporter, rows):
    global slowest
    for row in rows:
        begin = time.monotonic()
        reporter.log(row)
        slowest = max(slowest, time.monotonic() - begin)

def end(reporter, started):
    begin = time.monotonic()
    reporter.finish()
    seconds = {"start": started, "log": slowest, "finish": time.monotonic() - begin}
    print(json.dumps({"warnings": warnings, "imported": "wandb" in sys.modules, **seconds}))

def core():
    return next(child for child in psutil.Process().children() if child.name() == "wandb-core")

rows = json.loads(Path("rows.json").read_text())
"""
PLAIN = 'reporter, started = start("{mode}"); log(reporter, rows); end(reporter, started)'


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    path = Path(__file__).parents[1] / "wandb_reader.py"
    spec = importlib.util.spec_from_file_location("wandb_reader", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, float | str]]:
    """Rows of records.jsonl with all kinds of events, and floats that are hard to round-trip."""
    lines = [{"time": 1.7e9, **Reading("lifecycle", Clock(0, 0, 0, 0.0), {"lifecycle/what": "started"}).flat()}]
    for step in range(1, 50):
        event, values = "step", {"train/loss": 10 / 3 / step, "batch/global": 8, "train/learning_rate": 1e-7 / step}
        if step % 10 == 0:
            event, values = "eval", {"eval/loss": 0.1 + abs(step - 20) / 7, "eval/code/loss": 1 / step}
        reading = Reading(event, Clock(step, 8 * step, 2**40 + 1024 * step, step / 9), values)
        lines.append({"time": 1.7e9 + step / 3, **reading.flat()})
    lines[5] |= {"train/loss": math.nan, "train/grad_norm": math.inf}
    (tmp_path / "rows.json").write_text(json.dumps(lines))
    return lines


def play(place: Path, body: str, seconds: float = 40, **env: str) -> dict[str, Any]:
    """Run a scenario in an environment without the user's W&B settings; returns what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    clean |= {"HOME": str(place), "NETRC": str(place / "netrc"), "WANDB_ERROR_REPORTING": "false"}
    clean |= {"PYTHONUNBUFFERED": "1", "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO + body],
        cwd=place, env=clean | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (line,) = done.stdout.splitlines()  # W&B prints nothing
    return json.loads(line)


def same(read: list[dict[str, Any]], rows: list[dict[str, float | str]]) -> bool:
    """Whether rows are equal to the last bit, NaN included; W&B writes 1.0 as 1 and reorders the keys of a row."""

    def plain(row: dict[str, Any]) -> str:
        return repr(sorted((name, v if isinstance(v, str) else float(v)) for name, v in row.items()))

    return [plain(row) for row in read] == [plain(row) for row in rows]


def wandb_folder(place: Path, pattern: str) -> Path:
    (folder,) = (place / "run" / "wandb").glob(pattern)
    return folder


def test_offline_run_holds_every_key_and_value(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    seen = play(tmp_path, PLAIN.format(mode="auto"))
    assert seen["warnings"] == []
    run = reader.read_run(wandb_folder(tmp_path, "*run-*"))
    assert same(run.history, rows)
    assert (run.name, run.group, run.job_type) == ("n", "g", "pretrain")
    assert (run.run_id, run.project, run.exit_code) == ("abcd1234", "p", 0)
    assert run.config["batch"] == {"size": "64 sequences"} and run.config["plan"] == {"steps": 9}
    assert run.metrics["train/loss"].step_metric == "train/num_input_tokens_seen"
    assert run.metrics["train/sequences"].options.hidden
    for name in ("eval/loss", "eval/code/loss"):
        assert run.metrics[name].summary.min and run.metrics[name].summary.last


def test_exit_code_and_rows_changed_by_the_caller(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    body = 'reporter, _ = start("offline"); row = dict(rows[1]); reporter.log(row); row.clear(); reporter.finish(1)'
    play(tmp_path, body + '; reporter.log(rows[2]); print("{}")', WANDB_API_KEY=KEY)
    run = reader.read_run(wandb_folder(tmp_path, "*run-*"))
    assert same(run.history, rows[1:2]) and run.exit_code == 1


def test_a_resumed_run_sends_nothing_twice(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    """Steps after the last checkpoint are repeated, but their rows were already sent by the interrupted start."""
    body = 'reporter, started = start("offline", sent={("step", 1), ("step", 2), ("eval", 10)}); log(reporter, rows)'
    play(tmp_path, body + "; end(reporter, started)")
    unsent = [row for number, row in enumerate(rows) if number not in (1, 2, 10)]
    assert same(reader.read_run(wandb_folder(tmp_path, "*run-*")).history, unsent)


def test_online_where_logged_in(tmp_path: Path, rows: list) -> None:
    with fake_server() as server:
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{server.server_port}\n login user\n password {KEY}\n")
        (tmp_path / "netrc").chmod(0o600)
        seen = play(tmp_path, PLAIN.format(mode="auto"), WANDB_BASE_URL=server.url)
    assert seen["warnings"] == [] and seen["log"] < 0.5
    assert same(server.run.rows(), rows)
    metrics = server.run.config["_wandb"]["value"]["m"]
    axis_of = {entry["1"]: metrics[entry["5"] - 1]["1"] for entry in metrics if "5" in entry}
    assert axis_of["eval/loss"] == axis_of["train/loss"] == "train/num_input_tokens_seen"
    assert KEY not in json.dumps(server.run.config)


def test_a_resumed_run_continues_the_same_history(tmp_path: Path, rows: list) -> None:
    body = 'reporter, started = start("online"); log(reporter, rows[{part}]); end(reporter, started)'
    with fake_server() as server:
        for part in (":20", "20:"):
            play(tmp_path, body.format(part=part), WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        assert same(server.run.rows(), rows)
        assert [row["_step"] for row in server.run.history] == [*range(len(rows))]


def test_a_run_of_a_sweep_is_the_agents(tmp_path: Path, rows: list) -> None:
    """The sweep agent's run, project and team replace those of hfbsz, without a warning."""
    parameters = tmp_path / "config-run7.yaml"
    parameters.write_text("wandb_version: 1\n\noptim.lr:\n  value: 0.002\n")
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run7", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    agent |= {"WANDB_ENTITY": "team", "WANDB_PROJECT": "swept"}
    with fake_server() as server:
        seen = play(tmp_path, PLAIN.format(mode="auto"), **agent, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        run = server.run
    assert seen["warnings"] == [] and same(run.rows(), rows)
    begun = run.begun
    assert (begun["name"], begun["sweep"], begun["project"], begun["entity"]) == ("run7", "sweep1", "swept", "team")
    assert (begun["displayName"], begun["groupName"], begun["jobType"]) == ("n", "g", "pretrain")
    assert run.config["optim.lr"]["value"] == 0.002 and run.config["plan"]["value"] == {"steps": 9}


def test_server_that_is_down(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    with FakeServer() as closed:
        url = closed.url
    begin = time.monotonic()
    seen = play(tmp_path, PLAIN.format(mode="online"), WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    assert time.monotonic() - begin < 25
    (warning,) = seen["warnings"]
    assert "offline" in warning and KEY not in warning
    assert same(reader.read_run(wandb_folder(tmp_path, "offline-run-*")).history, rows)


@pytest.mark.parametrize("key", [None, "short"])
def test_online_without_a_usable_key_warns_and_does_not_prompt(
    tmp_path: Path, rows: list, reader: ModuleType, key: str | None
) -> None:
    seen = play(tmp_path, PLAIN.format(mode="online"), **({"WANDB_API_KEY": key} if key else {}))
    assert len(seen["warnings"]) == 1 and seen["start"] < 8
    assert same(reader.read_run(wandb_folder(tmp_path, "*run-*")).history, rows)


def test_server_that_fails_midway(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    body = """
reporter, started = start("auto")
log(reporter, rows[:20])
Path("half").touch()
while not Path("broken").exists(): time.sleep(0.02)
log(reporter, rows[20:])
end(reporter, started)
"""
    with fake_server() as server:

        def break_midway() -> None:
            while not (tmp_path / "half").exists():
                time.sleep(0.02)
            server.broken = True
            (tmp_path / "broken").touch()

        threading.Thread(target=break_midway, daemon=True).start()
        seen = play(tmp_path, body, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert seen["log"] < 0.5 and seen["finish"] < 8
    (warning,) = seen["warnings"]
    assert "sync run" in warning  # the command for a working directory that is not a clone
    assert same(reader.read_run(wandb_folder(tmp_path, "run-*")).history, rows)


@pytest.mark.parametrize("fate", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("rows_after", [30, 3_000])
def test_service_that_dies_or_hangs_midway(tmp_path: Path, rows: list, fate: str, rows_after: int) -> None:
    body = f"""
reporter, started = start("offline")
log(reporter, rows)
time.sleep(0.5)
core().send_signal(signal.{fate})
time.sleep(0.2)
log(reporter, (rows * {rows_after})[:{rows_after}])
end(reporter, started)
assert all(child.status() == "zombie" for child in psutil.Process().children())
"""
    seen = play(tmp_path, body)
    assert seen["log"] < 0.5 and seen["finish"] < 8
    (warning,) = seen["warnings"]
    assert "records.jsonl" in warning


@pytest.mark.parametrize(("mode", "env"), [("auto", {"WANDB_MODE": "disabled"}), ("off", {})])
def test_off_writes_and_imports_nothing(tmp_path: Path, rows: list, mode: str, env: dict[str, str]) -> None:
    seen = play(tmp_path, PLAIN.format(mode=mode), **env)
    assert not seen["imported"] and seen["warnings"] == []
    assert not (tmp_path / "run").exists()


def test_environment_asks_for_offline(tmp_path: Path, rows: list) -> None:
    seen = play(tmp_path, PLAIN.format(mode="auto"), WANDB_MODE="offline", WANDB_API_KEY=KEY)
    assert seen["warnings"] == [] and wandb_folder(tmp_path, "*run-*").name.startswith("offline-run-")


ALERTED = """
from hfbsz.records.record import Clock, Reading
from hfbsz.report.wandb.alerts import Alerts

reporter, started = start("{mode}", {{"tags": ("a", "b c"), "notes": "why"}})
alerts = Alerts(["overfitting", "failed"], "n", reporter.use)
for row in rows:
    reporter.log(row)
    alerts.read(Reading("eval", Clock(9), {{"overfit/onset_step": 7}}))
alerts.end("failed", {{"cause": "disk_full"}})
end(reporter, started)
"""
TEXTS = {
    "Overfitting began": "n: since step 7 validation loss rises while the loss on training rows falls (step 9)",
    "Run failed": "n: cause: disk_full; its status.json says why",
}


def test_alerts_and_tags_are_in_the_offline_file(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    theirs = {"WANDB_TAGS": "x,y", "WANDB_NOTES": "of the environment"}  # the caller has chosen before
    assert play(tmp_path, ALERTED.format(mode="offline"), **theirs)["warnings"] == []
    run = reader.read_run(wandb_folder(tmp_path, "offline-run-*"))
    assert {alert.title: alert.text for alert in run.alerts} == TEXTS and len(run.alerts) == 2
    assert (run.tags, run.notes) == (("a", "b c"), "why") and same(run.history, rows)


def test_alerts_and_tags_reach_the_server(tmp_path: Path, rows: list) -> None:
    with fake_server() as server:
        seen = play(tmp_path, ALERTED.format(mode="online"), **server.environment())
        again = play(tmp_path, PLAIN.format(mode="online"), **server.environment())
        run = server.run
    assert seen["warnings"] == again["warnings"] == [] and seen["log"] < 0.5
    assert {alert["title"]: alert["text"] for alert in run.alerts} == TEXTS and len(run.alerts) == 2
    assert {alert["severity"] for alert in run.alerts} == {"WARN", "ERROR"}
    assert run.tags == ["a", "b c"] and run.notes == "why"  # a start without tags removes none


def test_a_fault_of_one_part_is_told_once_and_the_rows_arrive(tmp_path: Path, rows: list, reader: ModuleType) -> None:
    body = """
reporter, started = start("offline")
def full(run):
    raise OSError(28, "No space left on device")
for row in rows:
    reporter.use(full, "models")
    reporter.log(row)
reporter.use(lambda run: run.alert("still", "here"), "alerts")
end(reporter, started)
"""
    (warning,) = play(tmp_path, body)["warnings"]
    assert "no more models" in warning and "No space left" in warning and "sync run" in warning
    run = reader.read_run(wandb_folder(tmp_path, "offline-run-*"))
    assert same(run.history, rows) and len(run.alerts) == 1
