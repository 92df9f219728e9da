"""Attention within documents: packed rows give exactly the loss and gradient of unpacked ones."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data
from hfbsz.train.tasks.language_modeling import IGNORED, LanguageModeling, check_attends_within, positions_within

END = 63
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SMALL = {
    "llama": LLAMA,
    "qwen3": LLAMA | {"head_dim": 16},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": END, "eos_token_id": END},
}
REFUSED = {
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
}


def small(kind, attention="sdpa", dtype=torch.float32):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | REFUSED)[kind])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()


def corpus():
    """Documents of 2 to 14 tokens and their end; packed into rows of 32+1 that start and end with whole documents."""
    random, documents, rows = np.random.default_rng(0), [], []
    for _ in range(6):
        row = [END]  # as the last target of the row before
        while len(row) < 33:
            left = 33 - len(row)
            length = int(random.integers(2, 15))
            length = left if left - length < 3 else length
            documents.append(np.array([*random.integers(0, END, length - 1), END], np.int32))
            row += documents[-1].tolist()
        rows.append(np.array(row, np.int32))
    return documents, rows


def loss_and_gradient(model, task, rows):
    model.zero_grad()
    batch = task.collate(rows)
    loss = task.loss_sum(model, batch)
    loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()]).double()
    return float(loss.detach()), gradient, batch.targets


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_packed_rows_equal_unpacked_documents(kind, attention, dtype, tolerance):
    if attention == "eager" and kind in ("llama", "qwen3"):
        tolerance = 1e-6  # transformers' eager attention takes their softmax in float32 whatever the model's type
    documents, rows = corpus()
    model = small(kind, attention, dtype)
    loss, gradient, targets = loss_and_gradient(model, LanguageModeling(END), documents)
    packed_loss, packed_gradient, packed_targets = loss_and_gradient(model, LanguageModeling(END, END), rows)
    assert targets == packed_targets == sum(len(document) - 1 for document in documents)
    assert packed_loss == pytest.approx(loss, rel=tolerance)
    assert float((packed_gradient - gradient).norm() / gradient.norm()) < tolerance
    across, across_gradient, _ = loss_and_gradient(model, LanguageModeling(END), rows)
    assert abs(across / loss - 1) > 1e-2  # it counts the first tokens of documents too
    assert float((across_gradient - gradient).norm() / gradient.norm()) > 1e-2


def test_masking_labels_alone_is_not_enough():
    """A wrong variant: the labels of `within` with the positions of `across` leak."""
    documents, rows = corpus()
    model = small("llama", dtype=torch.float64)
    _, gradient, _ = loss_and_gradient(model, LanguageModeling(END), documents)
    task = LanguageModeling(END, END)
    batch = task.collate(rows)
    del batch.inputs["position_ids"]
    model.zero_grad()
    task.loss_sum(model, batch).backward()
    leaked = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert float((leaked - gradient).norm() / gradient.norm()) > 1e-3


def test_positions_restart_after_every_end():
    inputs = np.array([[5, 6, END, 7, END, END, 8, 9], [END, 1, 2, 3, 4, 5, 6, 7]])
    assert positions_within(inputs, END).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    batch = LanguageModeling(END, END).collate([np.array([5, 6, END, 7, 8], np.int32), None])
    assert batch.inputs["position_ids"].dtype == torch.int64 and batch.targets == 3 and batch.tokens == 4
    assert batch.labels.tolist() == [[6, END, IGNORED, 8], [IGNORED] * 4]


@pytest.mark.parametrize("kind", SMALL)
def test_the_check_passes_models_that_keep_documents_apart_and_leaves_their_mode(kind):
    for training in (True, False):
        model = small(kind).train(training)
        check_attends_within(model)
        assert model.training is training


@pytest.mark.parametrize("kind", REFUSED)
def test_the_check_refuses_models_that_do_not(kind):
    model = small(kind, "eager").train()
    with pytest.raises(UserError) as caught:
        check_attends_within(model)
    (line,) = caught.value.lines
    assert kind in line and "'eager'" in line and "use data.attend=across, or data.pack=false" in line
    assert model.training


def test_the_check_refuses_a_model_without_position_ids():
    model = small("gpt2")
    inner = model.forward
    model.forward = lambda input_ids, use_cache: inner(input_ids, use_cache=use_cache)
    with pytest.raises(UserError, match="does not accept position_ids"):
        check_attends_within(model)


def test_bits_per_byte_count_the_same_bytes_and_targets_packed_or_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"text": f"{number}: " + "a short text. " * (1 + number % 4)}) for number in range(60)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    seen = {}
    for name, fields in {"ragged": {"pack": False}, "within": {"attend": "within"}, "across": {}}.items():
        data = Data(files=str(tmp_path / "x.jsonl"), vocab_size=300, sequence_length=64, **fields)
        prepared = prepare(data, {}, lambda *_: None)
        rows, end = prepared.validation, load_tokenizer(prepared.tokenizer_path).eos_token_id
        task = LanguageModeling(end, end if name == "within" else None)
        batch = task.collate([rows[number] for number in range(len(rows))])
        seen[name] = batch.targets, round(float(rows.text_bytes.sum()), 6)
    assert seen["ragged"] == seen["within"]
    assert all(across > within for across, within in zip(seen["across"], seen["within"], strict=True))
