"""`scripts/sync.py` sends exactly the rows of records.jsonl that are missing in W&B."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from fake_wandb import FakeServer, KeptRun, fake_server
from filelock import FileLock

from hfbsz.records.record import Clock, Reading
from hfbsz.report.wandb.identity import Identity
from hfbsz.report.wandb.sync import missing_rows

PATIENT = "import sys; from hfbsz.commands import sync; from hfbsz.report.wandb import sync as sender; "
PATIENT += "sender.FINISH_SECONDS = 2; sys.exit(sync.main(sys.argv[1:]))"


@pytest.fixture
def rows() -> list[dict]:
    """The rows of a run that was resumed twice from the checkpoint of step 20."""
    lines = [Reading("lifecycle", Clock(0, 0, 0, 0.0), {"state": "running"})]
    for step in range(1, 41):
        lines.append(Reading("step", Clock(step, 8 * step, 512 * step, step / 9), {"train/loss": 10 / 3 / step}))
        if step % 10 == 0:
            loss = 0.1 + abs(step - 20) / 7
            lines.append(Reading("eval", Clock(step, 8 * step, 512 * step, step / 9), {"eval/loss": loss}))
        if step == 20:
            lines += 2 * [Reading("lifecycle", Clock(step, 8 * step, 512 * step, step / 9), {"state": "resumed"})]
    lines.append(Reading("lifecycle", Clock(40, 320, 20480, 40 / 9), {"state": "finished"}))
    return [{**reading.flat(), "time": 1.7e9 + number} for number, reading in enumerate(lines)]


@pytest.fixture
def run(tmp_path, rows) -> Path:
    return make(tmp_path / "run", rows)


def make(folder: Path, rows: list[dict], state: str = "finished", host: str = "elsewhere") -> Path:
    folder.mkdir()
    Identity("abcd1234", "p", None, "g", "pretrain", "n").write(folder)
    (folder / "plan.json").write_text(json.dumps({"recipe": {"seed": 7}, "steps": 40}))
    (folder / "machine.json").write_text('{"torch": "2"}')
    (folder / "status.json").write_text(json.dumps({"state": state, "host": host, "pid": 1}))
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def sync(hfbsz, tmp_path):
    """Runs the script without the user's W&B settings, except those in `env`."""
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_ERROR_REPORTING": "false"}

    def run(*folders, env=None):
        return hfbsz("sync.py", *folders, env=nobody | (env or {}))

    return run


def holds(server: FakeServer, rows: list[dict]) -> bool:
    """Whether the server has every row once, to the last bit, in any order."""
    return sorted(map(repr_of, server.run.rows())) == sorted(map(repr_of, rows))


def repr_of(row: dict) -> str:
    return repr(sorted((name, v if isinstance(v, str) else float(v)) for name, v in row.items()))


def test_a_run_is_sent_once_and_completely(sync, run, rows):
    with fake_server() as server:
        first = sync(run, env=server.environment())
        assert (first.code, first.err) == (0, "") and f"{len(rows)} of {len(rows)} rows sent" in first.out
        assert server.run.rows() == rows and server.runs.keys() == {"abcd1234"}
        assert [row["_timestamp"] for row in server.run.history] == [row["time"] for row in rows]
        assert server.run.config["recipe"]["value"] == {"seed": 7} and server.run.exit_code == 0
        assert server.run.summary["eval/loss"] == {"min": 0.1, "last": pytest.approx(0.1 + 20 / 7)}
        axes = {entry["1"] for entry in server.run.config["_wandb"]["value"]["m"] if "5" in entry}
        assert {"train/loss", "eval/loss"} <= axes
        openings = server.run.openings
        again = sync(run, env=server.environment())
        assert again.code == 0 and "complete" in again.out
        assert server.run.rows() == rows and server.run.openings == openings
    assert not (run / "wandb").exists() and not (ROOT / "wandb").exists()


def test_only_missing_rows_are_sent(sync, run, rows):
    """W&B has a run that was killed online: its last rows did not arrive, those after the resume did."""
    old = [{**row, "time": row["time"] - 99} for row in rows[:15]] + rows[18:30]
    history = [{**row, "_step": number} for number, row in enumerate(old)]
    with fake_server() as server:
        server.runs["abcd1234"] = KeptRun(history, summary={"_step": 99})  # a server's summary may be ahead
        server.unsettled = 1
        ended = sync(run, env=server.environment())
        assert ended.code == 0, ended.err
        assert holds(server, old + rows[15:18] + rows[30:])
        assert server.run.rows()[len(old) :] == rows[15:18] + rows[30:]
        assert server.run.summary["eval/loss"]["min"] == 0.1 and server.run.summary["state"] == "finished"


def test_it_resumes_where_the_server_failed(sync, environment, run, rows):
    with fake_server() as server:
        server.rows_left = 20
        env = environment | server.environment() | {"WANDB_ERROR_REPORTING": "false"}
        env |= {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run([sys.executable, "-c", PATIENT, run], env=env, capture_output=True, text=True)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "same command" in ended.stderr
        assert len(server.run.history) == 20
        server.broken, server.rows_left = False, None
        assert sync(run, env=server.environment()).code == 0
        assert server.run.rows() == rows


def test_rows_are_identified_by_event_step_and_state(rows):
    repeated = [{**row, "time": row["time"] + 5} for row in rows]
    assert missing_rows(repeated, rows) == []
    resumed = [row for row in rows if row.get("state") == "resumed"]
    assert len(resumed) == 2 and missing_rows(rows, [row for row in rows if row is not resumed[1]]) == [resumed[1]]
    assert missing_rows(rows, []) == rows


def test_folders_that_cannot_be_sent_are_refused_before_anything_is_sent(sync, tmp_path, rows):
    """One line per folder, and no request to W&B."""
    good, bare = make(tmp_path / "good", rows), tmp_path / "bare"
    bare.mkdir()
    empty, held = make(tmp_path / "empty", []), make(tmp_path / "held", rows)
    at_work, old = make(tmp_path / "at_work", rows, "running"), make(tmp_path / "old", rows)
    (old / "wandb.json").unlink()
    torn = make(tmp_path / "torn", rows)
    (torn / "wandb.json").write_text('{"id": 1}')
    folders = [good, tmp_path / "none", bare, empty, held, at_work, old, torn]
    with FileLock(held / ".lock"), fake_server() as server:
        ended = sync(*folders, env=server.environment())
        assert ended.code == 2 and not server.runs
    errors = ended.err.splitlines()
    phrases = ["no such folder", "folder", "records.jsonl is empty", "another", "elsewhere", "wandb.json", "wandb.json"]
    assert [folder.name in line for folder, line in zip(folders[1:], errors, strict=True)] == [True] * 7
    assert [phrase in line for phrase, line in zip(phrases, errors, strict=True)] == [True] * 7, errors
    assert not (bare / ".lock").exists()


def test_without_a_login_or_a_server(sync, run):
    nobody = sync(run)
    assert nobody.code == 2 and nobody.err.count("\n") == 1 and "WANDB_API_KEY" in nobody.err
    with FakeServer() as closed:
        env = closed.environment()
    begin = time.monotonic()
    down = sync(run, env=env)
    assert down.code == 2 and down.err.count("\n") == 1 and closed.url in down.err and "Traceback" not in down.err
    assert time.monotonic() - begin < 30
    assert sync().code == 2
