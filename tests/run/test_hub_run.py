"""Runs that are pushed to the Hub: read back from a local stand-in; a Hub that fails costs a warning, never a run."""

import json
import subprocess
import sys

import pytest
from conftest import TINY, records
from fake_hub import TOKEN, fake_hub
from huggingface_hub import ModelCard

from hfbsz.records.folder import read_status

pytestmark = pytest.mark.process
READ_BACK = """
import json, sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

def logits(name):
    model, tokenizer = (kind.from_pretrained(name) for kind in (AutoModelForCausalLM, AutoTokenizer))
    return model(tokenizer("def main(", return_tensors="pt")["input_ids"]).logits.sum().item()

rows = load_dataset("parquet", data_files="hf://me/tiny/records.parquet", split="train")
losses = [loss for loss in rows["train/loss"] if loss is not None]
print(json.dumps({"losses": losses, "pushed": logits("me/tiny"), "local": logits(sys.argv[1])}))
"""


@pytest.fixture
def words(ragged, tmp_path):
    return [TINY, f"data.files={ragged}", f"output_dir={tmp_path}/run", "threads=1", "hub.id=me/tiny"]


def read_back(run, environment):
    command = [sys.executable, "-c", READ_BACK, str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_is_pushed_and_read_back(hfbsz, words, environment, tmp_path):
    run = tmp_path / "run"
    with fake_hub() as hub:
        ended = hfbsz("pretrain.py", *words, "log.page=true", process=True, env=hub.environment())
        assert ended.code == 0, ended.err
        assert ended.out.splitlines()[-1] == f"on the Hub           {hub.url}/me/tiny" and "warning" not in ended.out
        read = read_back(run, environment | hub.environment() | {"HF_HOME": str(tmp_path / "home")})
        assert read["pushed"] == read["local"]
        assert read["losses"] == [record["train/loss"] for record in records(run, "step")]
        files = hub.repositories["me/tiny"].files
        assert (
            hub.repositories["me/tiny"].private
            and files["model.safetensors"] == (run / "model.safetensors").read_bytes()
        )
        results = ModelCard(files["README.md"].decode()).data.eval_results
        (final,) = records(run, "final")
        assert {entry.metric_value for entry in results if entry.metric_type == "loss"} == {final["full/loss"]}
        for name, content in files.items():
            assert str(tmp_path).encode() not in content and TOKEN.encode() not in content, name
        for path in run.rglob("*"):
            assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
        again = hfbsz("push.py", run, process=True, env=hub.environment())
        assert again.code == 0 and "nothing has changed" in again.out and len(hub.repositories["me/tiny"].commits) == 2


def test_a_hub_that_fails_costs_one_warning_and_the_run_is_pushed_later(hfbsz, words, tmp_path):
    run = tmp_path / "run"
    with fake_hub() as hub:
        hub.broken["commit"] = 507
        ended = hfbsz("pretrain.py", *words, "hub.every=20%", process=True, env=hub.environment())
        assert ended.code == 0 and ended.err == "" and ended.out.count("warning: ") == 1, ended.out
        assert "warning: not pushed to the Hub: HfHubHTTPError: Server error '507" in ended.out
        last = ended.out.splitlines()[-1]
        assert last == f"push to the Hub      python scripts/push.py {run}"
        assert read_status(run)["state"] == "finished" and (run / "model.safetensors").is_file()
        assert not list(run.glob(".*.tmp")) and len(hub.repositories["me/tiny"].commits) == 1
        hub.broken.clear()
        later = hfbsz("push.py", run, process=True, env=hub.environment())
        assert later.code == 0 and f"pushed to {hub.url}/me/tiny" in later.out
    ended = hfbsz("push.py", run, process=True, env=hub.environment())  # now it is down
    assert ended.code == 2 and ended.err.count("\n") == 1 and "not pushed to me/tiny: ConnectError" in ended.err


def test_offline_the_run_says_how_to_push_it_later(hfbsz, words, tmp_path):
    ended = hfbsz("pretrain.py", *words, "duration=4steps", "hub.every=50%")
    command = f"python scripts/push.py {tmp_path}/run"
    assert ended.code == 0, ended.err
    note = f"note      hub.id: HF_HUB_OFFLINE is set: the run is not pushed; {command} pushes it after its end"
    assert ended.out.count(note) == 1 and ended.out.splitlines()[-1] == f"push to the Hub      {command}"
    assert "warning" not in ended.out


def test_a_sharded_run_pushes_full_weights_during_training(hfbsz, words, tmp_path):
    with fake_hub() as hub:
        ended = hfbsz(
            "pretrain.py", *words, "hub.every=20%", config="fsdp2_cpu_2proc.yaml", launcher=True, env=hub.environment()
        )
        assert ended.code == 0, ended.err
        _, first, *_, last = hub.repositories["me/tiny"].commits
        assert hub.repositories["me/tiny"].messages[0] == "run: in training"
        assert first["README.md"].count(b"In training: these are the weights of step 10.") == 1
        assert len(first["model.safetensors"]) == len(last["model.safetensors"])
        assert (
            first["model.safetensors"] != last["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()
        )
