"""Models and lineage in W&B: against the fake server, in the offline file, and sent later by `sync`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, records
from fake_wandb import FakeServer, fake_server
from wandb_reader import read_run

from hfbsz.errors import INTERRUPTED
from hfbsz.records.folder import read_status
from hfbsz.report.wandb.identity import read_identity

pytestmark = pytest.mark.process


@pytest.fixture
def train(hfbsz, ragged, tmp_path):
    """Trains the tiny model in tmp_path/NAME; returns the folder and what was printed."""

    def start(name: str, *words: str, env: dict | None = None, processes: int = 1) -> tuple[Path, str]:
        folder = tmp_path / name
        words = (TINY, f"data.files={ragged}", f"output_dir={folder}", "duration=20steps", *words)
        ended = hfbsz("pretrain.py", *words, env=env, processes=processes)
        assert ended.code == 0, ended.err
        return folder, ended.out

    return start


def versions(server: FakeServer, kind: str = "model") -> list:
    return [one for one in server.artifacts.all.values() if one.type == kind]


def loads(files: dict[str, bytes], folder: Path) -> None:
    """Whether transformers loads the files of an artifact as a model, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    _, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).vocab_size


def test_the_saved_model_and_the_lineage_of_a_finished_run(train, tmp_path):
    with fake_server() as server:
        env = server.environment()
        first, out = train("first", "log.wandb=online", "log.artifacts=end", env=env)
        assert "warning" not in out
        (model,) = versions(server)
        (data,) = versions(server, "dataset")
        first_id = read_identity(first).id
        assert (model.name, model.run, model.state) == (f"model-{first_id}", first_id, "COMMITTED")
        assert "final_model" in model.aliases and data.used_by == [first_id]
        plan = json.loads((first / "plan.json").read_text())
        assert data.name == f"data-{plan['facts']['data_hash'][:16]}" and data.metadata["rows"] == plan["facts"]["rows"]
        assert model.metadata["full/loss"] == records(first, "final")[0]["full/loss"]
        assert (model.metadata["model/step"], model.metadata["batch"]) == (20, 8)
        assert model.metadata["data_hash"] == plan["facts"]["data_hash"] and model.metadata["final_model"] is True
        assert {"README.md", "recipe.yaml", "plan.json", *read_status(first)["saved"]} <= model.files.keys()
        assert "records.jsonl" not in model.files
        loads({name: body for name, body in model.files.items() if name[0] != "."}, tmp_path / "loaded")

        second, out = train("second", "log.wandb=online", "log.artifacts=end", f"model.path={first}", env=env)
        assert "warning" not in out
        assert model.used_by == [read_identity(second).id] and len(data.used_by) == 2
        parents = server.runs[read_identity(second).id].config["parents"]["value"]
        assert parents["model"] == f"hfbsz/model-{first_id}:final_model" and parents["run"] == f"hfbsz/{first_id}"


def test_models_tags_and_alerts_of_an_offline_run_are_in_its_file_and_sent_later(train, hfbsz, tmp_path):
    """The last checkpoint has the weights of the saved model but not its files: two versions."""
    words = ["log.wandb=offline", "log.artifacts=checkpoints", "checkpoint.every=8steps", "checkpoint.best=false"]
    words += ["log.tags=[a tag,b]", "log.notes=a note", "checkpoint.keep=9"]
    parent, _ = train("parent", "log.wandb=offline", "log.artifacts=end")
    folder, out = train("run", *words, f"model.path={parent}", env={"WANDB_TAGS": "not used"})
    assert "warning" not in out and not (folder / ".artifacts.tmp").exists()
    (copy,) = (folder / "wandb").glob("offline-run-*")
    logged, parent_id, run_id = read_run(copy), read_identity(parent).id, read_identity(folder).id
    assert (logged.tags, logged.notes) == (("a tag", "b"), "a note")
    assert [one.name for one in logged.artifacts] == [f"model-{run_id}"] * 4
    found = [set(one.aliases) - {"latest", "best"} for one in logged.artifacts]
    assert found == [
        {"checkpoint_global_step_8", "epoch_0.11"},
        {"checkpoint_global_step_16", "epoch_0.23"},
        {"checkpoint_global_step_20", "epoch_0.28"},
        {"final_model"},
    ]
    assert logged.config["parents"]["model"] == f"hfbsz/model-{parent_id}:final_model"
    rows = (folder / "records.jsonl").read_text().count("\n")
    with fake_server() as server:
        sent = hfbsz("sync.py", folder, env=server.environment())
        assert sent.code == 0 and "is not in W&B: send that run first" in sent.out, sent.err
        assert hfbsz("sync.py", parent, env=server.environment()).code == 0
        again = hfbsz("sync.py", folder, env=server.environment())
        assert again.code == 0 and f"0 of {rows} rows sent, model-{parent_id}" in again.out, again.out + again.err
        last = hfbsz("sync.py", folder, parent, env=server.environment())
        assert last.code == 0 and last.out.count("complete") == 2
        mine = [one for one in versions(server) if one.run == run_id]
        (base,) = (one for one in versions(server) if one.run == parent_id)
        (data,) = versions(server, "dataset")
        assert base.used_by == [run_id] and sorted(data.used_by) == sorted([run_id, parent_id])
        assert [sorted(set(one.aliases) & {"final_model", "checkpoint_global_step_8"}) for one in mine] == [
            ["checkpoint_global_step_8"], [], [], ["final_model"]
        ]  # fmt: skip
        assert server.runs[run_id].tags == ["a tag", "b"] and server.runs[run_id].notes == "a note"
        assert len(server.runs[run_id].rows()) == rows
    loads({name: body for name, body in mine[0].files.items() if name[0] != "."}, tmp_path / "checkpoint")


def test_an_upload_that_is_refused_costs_one_warning_and_is_made_up_for(train, hfbsz):
    with fake_server() as server:
        server.artifacts.is_full = True
        folder, out = train("run", "log.wandb=online", "log.artifacts=end", env=server.environment())
        assert out.count("warning: ") <= 2 and f"sync.py {folder}" in out
        assert read_status(folder)["state"] == "finished" and len(server.run.rows()) > 20
        assert all(one.state == "PENDING" for one in server.artifacts.all.values())
        server.artifacts.is_full = False
        assert hfbsz("sync.py", folder, env=server.environment()).code == 0
        assert {one.type for one in server.artifacts.all.values() if one.state == "COMMITTED"} == {"model", "dataset"}


def test_weights_that_are_no_model_of_their_own_are_not_sent(train):
    words = ("log.wandb=offline", "log.artifacts=best", "optim.average=0.1")
    folder, out = train("run", *words)
    assert out.count("warning: ") == 1 and "only the saved model is sent" in out
    (copy,) = (folder / "wandb").glob("offline-run-*")
    (one,) = read_run(copy).artifacts
    assert "final_model" in one.aliases and not (folder / "pretrained").exists()


def test_a_folder_of_someone_else_sends_none_of_my_files(train, hfbsz, tmp_path):
    """status.json names the files of the model: those outside the folder are not sent, nor are links out of it."""
    folder, _ = train("run", "log.wandb=offline", "log.artifacts=end")
    (tmp_path / "secret.txt").write_text("hf_PLANTED")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    status = read_status(folder)
    status["saved"] |= dict.fromkeys(("../secret.txt", str(tmp_path / "secret.txt"), "link.txt", "gone.txt"), "0")
    (folder / "status.json").write_text(json.dumps(status))
    with fake_server() as server:
        assert hfbsz("sync.py", folder, env=server.environment()).code == 0
        (model,) = versions(server)
    assert "config.json" in model.files and not any(b"PLANTED" in body for body in model.files.values())


NEXT_STEP = "stopped in W&B: ending after this step"
STOPPED = """
import runpy, sys
from wandb.sdk.lib.run_stopping import RunStopChecker
RunStopChecker.__init__.__kwdefaults__["poll_interval"] = 0.2  # seconds; 15 otherwise
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_in_wandb_ends_at_its_next_step_with_a_checkpoint(
    processes, ragged, environment, hfbsz, tmp_path
):
    run, script = tmp_path / "run", tmp_path / "stopped.py"
    script.write_text(STOPPED.format(script=str(ROOT / "scripts" / "pretrain.py")))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs" / "cpu_2proc.yaml"]
    words = [TINY, f"data.files={ragged}", "duration=1000000steps", "threads=1", f"output_dir={run}"]
    words += ["log.wandb=online", "log.alerts=[preempted,failed]"]
    with fake_server() as server:
        env = environment | server.environment() | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, *(launcher if processes > 1 else ()), script, *words]
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not (server.runs and len(server.run.history) > 10):
            time.sleep(0.05)
        server.run.stopped = True
        _, err = process.communicate(timeout=120)
        assert process.returncode == (INTERRUPTED if processes == 1 else 1) and NEXT_STEP in err, err
        status = read_status(run)
        assert (status["state"], status["cause"], status["why"]) == ("preempted", "stopped", "stopped in W&B")
        assert status["step"] > 0 and (run / f"checkpoint-{status['step']}").is_dir()
        (alert,) = server.run.alerts
        assert alert["title"] == "Run preempted" and "cause: stopped" in alert["text"]
        assert server.run.exit_code == 1
        sent = hfbsz("sync.py", run, env=server.environment())  # it is still marked as stopped
        assert sent.code == 0, sent.err
