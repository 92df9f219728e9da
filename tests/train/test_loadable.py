"""Damaged, missing and foreign files in a model folder: reported in one line before training starts."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import logits, small_model, small_tokenizer
from transformers import AutoModelForCausalLM

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.recipe.load import load
from hfbsz.train.inputs import prepare_inputs
from hfbsz.train.loadable import check
from hfbsz.train.model import build_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.fixture
def base(tmp_path):
    return small_model(tmp_path / "base")


def refused(path, **fields) -> str:
    lines = []
    for attempt in (lambda model: check(model, False), lambda model: build_model(model, small_tokenizer(), 0, 16)):
        with pytest.raises(UserError) as caught:
            attempt(Model(path=str(path), **fields))
        lines += caught.value.lines
    assert lines[0] == lines[1] and lines[0].startswith(f"model.path: '{path}'")
    return lines[0].removeprefix(f"model.path: '{path}'")


def shards(base):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="20KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    return sorted(path.name for path in base.glob("model-*.safetensors"))


def test_case_16_a_pointer_of_git_lfs(base):
    (base / "model.safetensors").write_text(POINTER)
    assert refused(base) == f": model.safetensors is a git-lfs pointer, not the file itself: git -C {base} lfs pull"
    (base / "config.json").write_text(POINTER)
    assert refused(base) == f": config.json is a git-lfs pointer, not the file itself: git -C {base} lfs pull"


def test_case_16_weights_are_checked_before_the_data(base):
    (base / "model.safetensors").write_text(POINTER)
    recipe = load([f"model.path={base}", "data.files=nowhere.jsonl"]).recipe
    with pytest.raises(UserError, match=r"model\.safetensors is a git-lfs pointer"):
        prepare_inputs(recipe, lambda *_: None)


def is_damaged(base, name):
    line = refused(base)
    return line.startswith(f": {name} is ") and "damaged (" in line


def test_case_16_a_truncated_file(base):
    content = (base / "model.safetensors").read_bytes()
    for length in (len(content) // 2, 100):
        (base / "model.safetensors").write_bytes(content[:length])
        assert is_damaged(base, "model.safetensors")
    (base / "model.safetensors").write_bytes(b"")
    assert refused(base).startswith(": model.safetensors is empty")
    (base / "model.safetensors").write_bytes(b"<!doctype html><title>404</title>" * 9)
    assert is_damaged(base, "model.safetensors")


def test_case_16_several_files(base):
    names = shards(base)
    assert len(names) > 2 and check(Model(path=str(base)), False).model_type == "llama"
    (base / names[1]).rename(base / "elsewhere")
    index = "model.safetensors.index.json"
    assert refused(base).startswith(f": {names[1]}, which {index} lists, is missing")
    (base / names[1]).write_text(POINTER)
    assert refused(base).startswith(f": {names[1]} is a git-lfs pointer")
    (base / index).write_text((base / index).read_text()[:99])
    assert is_damaged(base, index)
    (base / index).write_text("{}")
    assert refused(base).startswith(f": {index} lists no file (weight_map)")


def test_case_16_a_damaged_configuration(base):
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config[: len(config) // 2])
    assert is_damaged(base, "config.json")
    (base / "config.json").write_text("")
    assert refused(base).startswith(": config.json is empty")
    (base / "config.json").write_text(json.dumps({**json.loads(config), "model_type": "lama"}))
    line = refused(base)
    assert "`lama`" in line and "upgrade" not in line and "github" not in line
    (base / "config.json").unlink()
    assert refused(base) == " cannot be loaded: it holds no config.json"


def test_custom_code_is_not_run(base):
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnLM"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "own.py").write_text("raise SystemExit")
    assert "own Python code" in refused(base)


def test_pickled_weights_are_not_read_and_the_command_converts_them(base):
    exact = logits(AutoModelForCausalLM.from_pretrained(base))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    line = refused(base)
    assert line.startswith(" holds pickled weights (pytorch_model.bin), which are not read: convert them: python -c '")
    command = line.partition("convert them: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert torch.equal(logits(build_model(Model(path=str(base)), small_tokenizer(), 0, 16)), exact)


def test_weights_of_another_name(base):
    (base / "model.safetensors").rename(base / "consolidated.safetensors")
    assert refused(base) == " holds no model.safetensors; it holds consolidated.safetensors"
    assert refused(base / "config.json") == (
        " is a file: name the folder that holds it, with config.json and model.safetensors"
    )


def test_an_adapter_is_refused(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(tmp_path / "adapter")
    assert refused(tmp_path / "adapter").startswith(" is an adapter: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(base, value):
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        build_model(Model(path=str(base)), small_tokenizer(), 0, 16)
    (line,) = caught.value.lines
    assert line.startswith(
        f"model.path: '{base}': 1 of 2,048 values of model.layers.1.mlp.up_proj.weight are not finite"
    )


def test_weights_that_the_model_does_not_use_are_reported(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    notes = []
    build_model(Model(path=str(base)), small_tokenizer(), 0, 16, notes=notes)
    assert notes == [
        f"model.path: '{base}': 9 weights are not used by LlamaForCausalLM, such as "
        "model.layers.1.input_layernorm.weight"
    ]


def test_a_classifier_drops_a_language_model_head_silently(base):
    notes = []
    build_model(Model(path=str(base)), small_tokenizer(), 0, 16, ["a", "b"], notes)
    assert notes == []
