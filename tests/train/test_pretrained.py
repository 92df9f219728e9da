"""Models from wheels that pip downloads, folders and GGUF files: offline from a folder, and once from an index."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpora import wheel
from small_models import logits, small_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfbsz.data.sources import package
from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.recipe.load import load
from hfbsz.train.model import build_model, count_parameters
from hfbsz.train.pretrained import notes_of, tokenizer_of

PACKAGE = "tinycorpus==1.0"
FOLDER, GGUF = "tinycorpus/model", "tinycorpus/tiny.Q8_0.gguf"
TEXT = "def parse(self, *words): return None\n  # ünï"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def gguf_file(base, tmp_path_factory):
    """The same model in llama.cpp's format: rows of queries and keys permuted, one matrix quantized to 8 bits."""
    import gguf

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    config, path = model.config, tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        matrix, n = weight.detach().numpy(), heads.get(name.split(".")[-2])
        if n:
            half = matrix.shape[0] // n // 2
            matrix = matrix.reshape(n, 2, half, -1).swapaxes(1, 2).reshape(matrix.shape)
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if name.endswith("0.mlp.up_proj.weight"):
            quantized = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name, matrix.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


@pytest.fixture
def published(base, tmp_path):
    """A wheel with a model folder, and files that must never be cached."""
    files = {f"{FOLDER}/{path.name}": path.read_bytes() for path in base.iterdir()}
    extra = {
        "pytorch_model.bin": b"cos\nsystem\n(S'true'\ntR.",
        "modeling.py": b"raise SystemExit",
        "README.md": b"hi",
    }
    extra |= {"onnx/config.json": b"{}"}
    wheel(tmp_path / "wheels", files | {f"{FOLDER}/{name}": content for name, content in extra.items()})
    return Model(package=PACKAGE, file=FOLDER)


def built(spec, labels=None):
    return build_model(spec, load_tokenizer(tokenizer_of(spec)), 0, 16, labels)


def refused(**fields) -> str:
    with pytest.raises(UserError) as caught:
        tokenizer_of(Model(**{"package": PACKAGE, "file": FOLDER, **fields}))
    (line,) = caught.value.lines
    return line


def no_pip(*_):
    raise AssertionError("pip was called again")


def test_a_models_folder_is_fetched_once_without_code_or_pickles(published, base, monkeypatch):
    cached = Path(tokenizer_of(published))
    assert {path.name for path in cached.iterdir()} == {path.name for path in base.iterdir()}
    monkeypatch.setattr(package, "_download", no_pip)
    model = built(published)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(base)))
    assert built(published, ["no", "yes"]).config.id2label == {0: "no", 1: "yes"}
    assert count_parameters(published, 300) == count_parameters(Model(path=str(base)), 300)
    assert load_tokenizer(cached)(TEXT)["input_ids"] == load_tokenizer(base)(TEXT)["input_ids"]


def test_the_hash_is_that_of_the_weights(published, base):
    sha256 = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    (note,) = notes_of(published)
    assert FOLDER in note and PACKAGE in note and f"model.sha256={sha256}" in note
    pinned = published.model_copy(update={"sha256": sha256})
    assert notes_of(pinned) == () and tokenizer_of(pinned) == tokenizer_of(published)
    line = refused(sha256="0" * 64)
    assert line.startswith("model.sha256: ") and sha256 in line and "0" * 64 in line


def test_another_hash_is_refused_before_anything_is_cached(published, tmp_path):
    assert refused(sha256="0" * 64).startswith("model.sha256: ")
    assert not (tmp_path / "cache" / "packages").exists()


def test_what_a_wheel_lacks_is_reported_in_one_line(published, base, tmp_path):
    assert "holds no folder 'tinycorpus/mode'; there are tinycorpus/model, tinycorpus/model/onnx" in refused(
        file="tinycorpus/mode"
    )
    assert f"{FOLDER}/onnx' of tinycorpus-1.0-py3-none-any.whl holds no model.safetensors (pickled" in refused(
        file=f"{FOLDER}/onnx"
    )
    assert "model.file: tinycorpus-1.0-py3-none-any.whl holds no 'tinycorpus/x.gguf'" in refused(
        file="tinycorpus/x.gguf"
    )
    assert "model.package: pip cannot fetch 'tinycorpus==2.0'" in refused(package="tinycorpus==2.0")


def test_a_cache_that_cannot_be_written_is_reported_in_one_line(published, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "file" / "cache"))
    assert "the cache cannot be written: Not a directory: set HFBSZ_CACHE" in refused()


def test_a_gguf_file_is_a_model_that_can_be_trained_and_saved(gguf_file, base, tmp_path, monkeypatch):
    wheel(tmp_path / "wheels", {GGUF: gguf_file.read_bytes()})
    spec = Model(package=PACKAGE, file=GGUF)
    folder = tokenizer_of(spec)
    monkeypatch.setattr(package, "_download", no_pip)
    monkeypatch.setattr("hfbsz.train.pretrained._convert_gguf", no_pip)  # converted once
    model, original = built(spec), AutoModelForCausalLM.from_pretrained(base)
    quantized = "model.layers.0.mlp.up_proj.weight"
    for (name, weight), (other, exact) in zip(model.named_parameters(), original.named_parameters(), strict=True):
        assert name == other and weight.dtype == torch.float32
        assert torch.equal(weight, exact) is (name != quantized), name
    assert torch.allclose(model.get_parameter(quantized), original.get_parameter(quantized), atol=2e-3)
    assert torch.allclose(logits(model), logits(original), atol=2e-3)
    tokenizer, exact = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(base)
    assert tokenizer(TEXT)["input_ids"] == exact(TEXT)["input_ids"] and tokenizer.eos_token == exact.eos_token
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model))
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    assert built(spec, ["no", "yes"]).config.num_labels == 2


def test_a_gguf_file_that_cannot_be_read_is_reported_in_one_line(gguf_file, tmp_path, monkeypatch):
    wheel(tmp_path / "wheels", {GGUF: gguf_file.read_bytes()[:5000]})
    assert f"model.file: tiny.Q8_0.gguf of {PACKAGE} cannot be read: " in refused(file=GGUF)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else find(name, *more))
    line = refused(file=GGUF)
    assert line.startswith("model.file: ") and line.endswith("pip install 'gguf>=0.10,<1'")


@pytest.mark.index
@pytest.mark.parametrize("preset", ["minilm", pytest.param("smollm2_135m_package", marks=pytest.mark.slow)])
def test_presets_from_a_real_index(tmp_path, monkeypatch, request, preset):
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))  # half a gigabyte
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    spec = load([f"model={preset}"]).recipe.model
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries=0", "--timeout=10"]
    done = subprocess.run([*download, "--dest", str(tmp_path), spec.package], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip reaches no package index: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of(spec))
    if preset == "minilm":
        model = build_model(spec, tokenizer, 0, 128, ["rotten", "fresh"])
        assert model.num_parameters() == pytest.approx(22.7e6, rel=1e-2) and model.config.pad_token_id == 0
        return
    model = build_model(spec, tokenizer, 0, 128).eval()
    question = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**question, max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")
