"""The start-up times that design promises, and trainers that are compared as they are."""

import json

import pytest
import torch
from conftest import ROOT
from small_models import logits, small_model
from torch import nn


def test_startup(hfbsz):
    """Importing costs nothing, a plan and --help come within a second."""
    ended = hfbsz("bench.py", "startup", "repeats=3", process=True)
    assert ended.code == 0, ended.out


@pytest.fixture
def words(tmp_path):
    small_model(tmp_path / "model", "bert")
    rows = [{"text": f"return {number} * (value + {number % 7})", "label": str(number % 2)} for number in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "recipe=tests/finetune.yaml", "task=classification", f"model.path={tmp_path / 'model'}", "data.label=label",
        f"data.files={tmp_path / 'rows.jsonl'}", "data.validation=20%", "data.sequence_length=32", "batch.size=8seq",
        "batch.micro_max=8", "batch.by_length=true", "threads=1", "duration=12steps",
    ]  # fmt: skip


def test_other_trainers_train_the_model_of_transformers(words, monkeypatch):
    """Not the one that hfbsz changed: its last layer, and its dropout."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from trainer_speed import _plain_model, _setup

    threads = torch.get_num_threads()
    bundle = _setup(words)
    torch.set_num_threads(threads)
    plain = _plain_model(bundle)
    changed = {type(module) for module in bundle.model.modules()} - {type(module) for module in plain.modules()}
    assert len(changed) > 1 and all(module.__module__.startswith("hfbsz") for module in changed)
    assert {type(module) for module in plain.modules() if isinstance(module, nn.Dropout)} == {nn.Dropout}
    torch.testing.assert_close(logits(plain), logits(bundle.model))


@pytest.mark.process
def test_trainers_take_turns_and_the_numbers_are_saved(hfbsz, words, tmp_path):
    out = tmp_path / "speed.json"
    ended = hfbsz("bench.py", "finetune", *words, "repeats=2", "steps=3", f"out={out}", process=True)
    assert ended.code in (0, 1) and "after 1 block: hfbsz" in ended.out, ended.err
    assert "Traceback" not in ended.err, ended.err
    numbers = json.loads(out.read_text())
    assert list(numbers) == ["hfbsz", "Trainer, random", "Trainer, group_by_length"]
    assert numbers["hfbsz"]["ratio"] == 1 and all(one["speed"] > 0 for one in numbers.values())


@pytest.mark.process
def test_an_error_of_a_trainer_is_the_error_of_the_benchmark(hfbsz, words):
    ended = hfbsz("bench.py", "finetune", *words, "data.text=nothing", "repeats=1", "steps=1", process=True)
    assert ended.code == 2 and "Traceback" not in ended.err, ended.err
    assert ended.err.startswith("error: ") and "no column 'nothing' (data.text)" in ended.err
