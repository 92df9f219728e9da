"""Models and lineage in W&B: against the fake server, in the offline file, and sent later by `sync`."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, records
from fake_wandb import FakeServer, fake_server
from wandb_reader import read_run

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
        assert model.used_by == [read_identity(second).id] and len(data.used_by) == 1  # another tokenizer's tokens
        parents = server.runs[read_identity(second).id].config["parents"]["value"]
        assert parents["model"] == f"hfbsz/model-{first_id}:final_model" and parents["run"] == f"hfbsz/{first_id}"
