"""Trackio and TensorBoard get each row once, over tokens, and no fault of theirs stops a run."""

import json
import sys
import threading
import types
from pathlib import Path

import pytest
from past_runs import write_run

from hfbsz.commands.sync import main as sync
from hfbsz.errors import UserError
from hfbsz.recipe.load import load
from hfbsz.records.run_data import STEPS, TOKENS
from hfbsz.report.trackers import open as opening
from hfbsz.report.trackers import tracker
from hfbsz.report.trackers.open import open_trackers
from hfbsz.report.trackers.tracker import ThreadedTracker
from hfbsz.report.trackers.trackio import TrackioStore
from hfbsz.report.wandb.reporter import Identity

IDENTITY = Identity("run-abc123", "p", None, "g", "pretrain", "tiny-b8")


class Memory:
    """A store that keeps rows; it fails from row `fails` on."""

    def __init__(self, fails: int | None = None) -> None:
        self.rows, self.fails, self.closed = [], fails, False

    def write(self, rows):
        self.rows += rows
        if self.fails is not None and len(self.rows) > self.fails:
            raise OSError(28, "No space left on device")

    def close(self):
        self.closed = True


def row(step, event="step", **values):
    return {"event": event, STEPS: step, TOKENS: 504 * step, "time": 1e9 + step, "record": step, **values}


def test_rows_arrive_in_order_and_the_caller_may_change_them():
    store, warnings = Memory(), []
    one = ThreadedTracker("Trackio", lambda: store, warnings.append, "…")
    line = row(0)
    for step in range(500):
        line[STEPS] = step
        one.log(line)
    assert one.finish() and store.closed and warnings == []
    assert [line[STEPS] for line in store.rows] == list(range(500))


def test_a_fault_is_one_warning():
    store, warnings = Memory(fails=3), []
    one = ThreadedTracker("TensorBoard", lambda: store, warnings.append, "run sync")
    for step in range(100):
        one.log(row(step))
    assert not one.finish() and not one.finish()
    (warning,) = warnings
    assert (
        warning == "TensorBoard is off for the rest of the run, OSError: [Errno 28] No space left on device; run sync"
    )


def test_a_store_that_does_not_open_is_one_warning():
    def fails():
        raise UserError("no such folder")

    warnings = []
    one = ThreadedTracker("Trackio", fails, warnings.append, "run sync")
    one.log(row(1))
    assert not one.finish() and warnings == ["Trackio is off for the rest of the run, no such folder; run sync"]


def test_a_store_that_hangs_does_not_hold_the_run(monkeypatch):
    monkeypatch.setattr(tracker, "OPEN_SECONDS", 0.05)
    monkeypatch.setattr(tracker, "WAITING_ROWS", 10)
    released, warnings = threading.Event(), []
    one = ThreadedTracker("Trackio", lambda: released.wait(5) and Memory(), warnings.append, "run sync")
    for step in range(100):
        one.log(row(step))
    assert not one.finish() and len(warnings) == 1 and "does not start" in warnings[0]
    released.set()


TRACKIO = """
import json, os
from pathlib import Path
from types import SimpleNamespace
from trackio import context_vars
from trackio.sqlite_storage import SQLiteStorage

class Run:
    def __init__(self, project, name, config):
        self.project, self.name, self.id, self.config, self.lost = project, name, f"id-{name}", config, 0
    def log(self, metrics: dict, step: int | None = None):
        if os.environ.get("LOSES") and step > 2000:
            return  # Trackio only warns
        with SQLiteStorage.path(self.project, self.id).open("a") as file:
            file.write(json.dumps({**metrics, "step": step, "timestamp": "now"}) + "\\n")
    def finish(self):
        print("* Run finished")

def init(project: str, name: str | None = None, group: str | None = None, space_id: str | None = None,
         server_url: str | None = None, dataset_id: str | None = None, bucket_id: str | None = None,
         config: dict | None = None, resume: str = "never", settings=None, private: bool | None = None,
         embed: bool = True, auto_log_gpu: bool | None = None, gpu_log_interval: float = 10.0,
         auto_log_cpu: bool | None = None, cpu_log_interval: float = 10.0, webhook_url: str | None = None,
         webhook_min_level=None) -> Run:
    assert resume == "allow" and not embed and auto_log_gpu is False and auto_log_cpu is False
    print("* Trackio project initialized")
    return Run(project, name, config)
"""  # what `TrackioStore` uses of trackio 0.43, with its signatures
STORAGE = """
import json, os
from pathlib import Path

class SQLiteStorage:
    @staticmethod
    def path(project, run_id):
        return Path(os.environ["TRACKIO_DIR"], f"{project}-{run_id}.jsonl")
    @staticmethod
    def get_logs(project: str, run: str | None = None, max_points: int | None = None, run_id: str | None = None,
                 scalar_only: bool = False) -> list[dict]:
        path = SQLiteStorage.path(project, run_id)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    @staticmethod
    def has_pending_data(project: str) -> bool:
        return bool(os.environ.get("PENDING"))
"""


@pytest.fixture
def fake_trackio(tmp_path, monkeypatch):
    """A folder in which a fake of trackio keeps a file for each run."""
    package = tmp_path / "fake" / "trackio"
    package.mkdir(parents=True)
    context = "from contextvars import ContextVar\ncurrent_server = ContextVar('server', default=None)\n"
    files = {"__init__": TRACKIO, "sqlite_storage": STORAGE, "context_vars": context, "run": "", "utils": ""}
    for name, text in (files | {"deploy": ""}).items():
        (package / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        del sys.modules[name]


def stored(folder, name="p-id-tiny-b8"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_trackio_gets_each_row_over_tokens(fake_trackio, capsys):
    store = TrackioStore("p", "tiny-b8", "g", {"plan": {"steps": 3}}, [])
    store.write([row(step, **{"train/loss": 1 / step, "noise/layer/a": 1.0}) for step in (1, 2, 3)])
    store.close()
    rows = stored(fake_trackio)
    assert [one["step"] for one in rows] == [504, 1008, 1512] and [one["train/loss"] for one in rows] == [1, 0.5, 1 / 3]
    assert all("time" not in one and "noise/layer/a" not in one and one[STEPS] for one in rows)
    assert capsys.readouterr().out == ""


def test_a_resumed_trackio_run_has_each_row_once(fake_trackio):
    first = TrackioStore("p", "tiny-b8", None, {}, [])
    started = row(0, "lifecycle", state="running")
    first.write([started, *(row(step) for step in (1, 2, 3, 4))])  # killed, and resumed from step 2
    again = TrackioStore("p", "tiny-b8", None, {}, [started, row(1), row(2), row(2, "measure")])
    again.write([row(2, "lifecycle", state="resumed"), row(3), row(4), row(5)])
    again.close()
    keys = [(one["event"], one[STEPS], one.get("state")) for one in stored(fake_trackio)]
    assert len(keys) == len(set(keys)) == 8
    assert {("measure", 2, None), ("lifecycle", 2, "resumed"), ("step", 5, None)} <= set(keys)


def test_rows_that_trackio_loses_are_told(fake_trackio, monkeypatch):
    monkeypatch.setenv("LOSES", "1")  # the row after 2,000 tokens
    store = TrackioStore("p", "tiny-b8", None, {}, [])
    store.write([row(step) for step in (1, 2, 3, 4)])
    with pytest.raises(UserError, match="1 of 4 rows are not in its database"):
        store.close()
    monkeypatch.delenv("LOSES")
    again = TrackioStore("p", "tiny-b8", None, {}, [row(step) for step in (1, 2, 3, 4)])
    again.close()
    assert len(stored(fake_trackio)) == 4


def test_a_trackio_server_that_is_down_is_told(fake_trackio, monkeypatch):
    from trackio import context_vars

    monkeypatch.setattr(context_vars, "current_server", types.SimpleNamespace(get=lambda: "http://127.0.0.1:9"))
    store = TrackioStore("p", "tiny-b8", None, {}, [row(1)])
    store.write([row(2)])
    assert [one[STEPS] for one in stored(fake_trackio)] == [2]  # earlier rows were sent by the start that wrote them
    monkeypatch.setenv("PENDING", "1")
    with pytest.raises(UserError, match="its server did not take all rows"):
        store.close()


def test_finished_runs_are_sent_to_trackio_later(fake_trackio, capsys):
    run = write_run(fake_trackio / "run", ["batch.size=8seq"])
    (run / "machine.json").write_text("{}")
    IDENTITY.write(run)
    for _ in range(2):
        assert sync([str(run), "to=trackio"]) == 0
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    rows = stored(fake_trackio, "p-id-tiny-b8-abc123")
    assert [one["step"] for one in rows] == [record[TOKENS] for record in records] and len(rows) > 5
    assert "Trackio holds all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["to=trackio"], "name at least one run"),
        (["nowhere", "to=trackio"], "nowhere: no such folder"),
        ([".", "to=trackio"], "no records.jsonl"),
        ([".", "to=mlflow"], "must be wandb, trackio or tensorboard"),
        ([".", "to="], "must be wandb, trackio or tensorboard"),
    ],
)
def test_wrong_words_are_told(fake_trackio, words, told, monkeypatch, capsys):
    monkeypatch.chdir(fake_trackio)
    assert sync(words) == 2 and told in capsys.readouterr().err


def test_a_missing_package_is_told_before_training(monkeypatch):
    from hfbsz.run.scores import check_packages
    from hfbsz.system import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    for field, extra in (("log.trackio", "trackio"), ("log.tensorboard", "tensorboard")):
        with pytest.raises(UserError, match=rf"{field}: .*pip install 'hfbsz\[{extra}\]'"):
            check_packages(load(["recipe=debug", f"{field}=true"]).recipe)
    check_packages(load(["recipe=debug"]).recipe)


def test_a_tracker_without_its_package_is_one_warning(tmp_path, monkeypatch):
    """A recipe read back on a machine without it, say."""
    run = write_run(tmp_path / "run", ["batch.size=8seq"])
    (run / "machine.json").write_text("{}")

    def missing(*_):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(opening, "TensorBoardStore", missing)
    warnings: list[str] = []
    (one,) = open_trackers(run, load(["recipe=debug", "log.tensorboard=true"]).recipe.log, IDENTITY, warnings.append)
    assert not one.finish()
    (warning,) = warnings
    assert "ModuleNotFoundError" in warning and "sync" in warning and "to=tensorboard" in warning


@pytest.mark.trackers
def test_tensorboard_reads_each_row_over_tokens(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from hfbsz.report.trackers.tensorboard import TensorBoardStore

    folder = tmp_path / "tensorboard"
    first = TensorBoardStore(folder, [])
    first.write([row(step, **{"train/loss": 1 / step}) for step in (1, 2, 3, 4)])  # killed, and resumed from step 2
    again = TensorBoardStore(folder, [row(step, **{"train/loss": 1 / step}) for step in (1, 2)])
    again.write([row(step, **{"train/loss": 1 / step}) for step in (3, 4, 5)])
    again.close()
    assert len(list(folder.iterdir())) == 1
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    scalars = read.Scalars("train/loss")
    assert [one.step for one in scalars] == [504, 1008, 1512, 2016, 2520]
    assert [one.value for one in scalars] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert [one.wall_time for one in scalars] == pytest.approx([1e9 + step for step in range(1, 6)])


@pytest.mark.trackers
@pytest.mark.process
def test_three_runs_are_in_the_database_of_trackio(hfbsz, ragged, tmp_path):
    pytest.importorskip("trackio")
    env = {"TRACKIO_DIR": tmp_path / "trackio"}
    for size in (4, 8, 16):
        words = ["recipe=tests/tiny.yaml", f"data.files={ragged}", "duration=96seq", f"batch.size={size}seq"]
        words += ["batch.micro_max=4", "log.trackio=true", "log.tensorboard=true", f"output_dir={tmp_path}/{size}"]
        ended = hfbsz("pretrain.py", *words, env=env)
        assert ended.code == 0 and "warning" not in ended.out and "rackio" not in ended.out + ended.err, ended.err
    read = """
import json
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_run_records("hfbsz")
print(json.dumps({run["name"]: SQLiteStorage.get_logs("hfbsz", run["name"], run_id=run["id"]) for run in runs}))
"""
    (tmp_path / "read.py").write_text(read)
    logs = json.loads(hfbsz(tmp_path / "read.py", env=env, process=True).out)
    assert len(logs) == 3
    for size in (4, 8, 16):
        records = [json.loads(line) for line in (tmp_path / str(size) / "records.jsonl").read_text().splitlines()]
        (rows,) = (rows for name, rows in logs.items() if f"-b{size}-" in name)
        assert [one["step"] for one in rows] == [record[TOKENS] for record in records]
        losses = [record["train/loss"] for record in records if "train/loss" in record]
        assert [one["train/loss"] for one in rows if "train/loss" in one] == losses and len(losses) == 96 // size
