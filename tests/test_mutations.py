"""Recipes, words, data files and model folders with something wrong in them end right, or in a line, within 10 s."""

import io
import json
import shutil
import tempfile
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import ODD_TEXTS, damaged, edited, mutated
from transformers import LlamaConfig, LlamaForCausalLM

from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import check, resolve
from hfbsz.recipe.fields import Data, fields, leaves
from hfbsz.recipe.load import from_mapping, load
from hfbsz.recipe.tasks import TASKS
from hfbsz.train.inputs import prepare_inputs
from hfbsz.train.model import build_model

SECONDS = 10
RECIPES = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
FIELDS = [name for name, _ in fields()]


def many(count: int):
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@contextmanager
def one_line():
    """Inside, whatever does not fit is told in lines that a person can read, and soon."""
    began = time.monotonic()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except UserError as problem:
        assert problem.lines
        for line in problem.lines:
            assert 5 < len(line) < 2000 and "Traceback" not in line, line
    assert time.monotonic() - began < SECONDS


def planned(words: list[str]) -> None:
    with one_line():
        loaded = load(words)
        assert from_mapping(loaded.recipe.to_dict()) == loaded.recipe
        check(loaded.recipe, 1)
        plan = resolve(loaded.recipe, 2, Facts(rows=5000, tokens_per_row=100.0, parameters=10**6))
        explain(plan)
        for clock in (0, plan.total // 2, plan.total - 1):
            step = plan.step(clock, [])
            assert step.next_clock > clock and step.learning_rate >= 0


def a_recipe(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "replace"))
        planned([f"recipe={path}"])


def seen_values() -> dict[str, list[str]]:
    """What the recipes say, by field: together such values are right, or wrong in less obvious ways."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "recipes").glob("*.yaml"):
        for name, value in leaves(load([f"recipe={path}"]).recipe.to_dict()):
            found.setdefault(name, set()).add("null" if value is None else str(value))
    return {name: sorted(values) for name, values in found.items()}


SEEN = seen_values()
ODD_WORD = st.tuples(st.sampled_from(FIELDS), st.sampled_from(ODD_TEXTS) | st.text(max_size=20)).map("=".join)
SEEN_WORD = st.sampled_from(sorted(SEEN)).flatmap(lambda name: st.sampled_from(SEEN[name]).map(f"{name}={{}}".format))
WORDS = st.lists(SEEN_WORD, min_size=1, max_size=6) | st.lists(SEEN_WORD | ODD_WORD | st.text(max_size=30), max_size=4)


@many(250)
@given(st.sampled_from(RECIPES).flatmap(edited))
def test_mutated_recipes(text):
    a_recipe(text)


@many(150)
@given(WORDS)
def test_mutated_command_lines(words):
    planned(["recipe=large_batch", *words])


@pytest.mark.slow
@many(600)
@given(st.sampled_from(RECIPES).flatmap(edited))
def test_many_mutated_recipes(text):
    a_recipe(text)


@pytest.mark.slow
@many(400)
@given(WORDS)
def test_many_mutated_command_lines(words):
    planned(["recipe=small_batch", *words])


# data files

TEXTS = [f"The {number}th row of a small corpus, with words enough to be learned." for number in range(12)]
SPOKEN = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(12)
]


def of_jsonl(draw, rows):
    lines = [json.dumps(row) for row in rows]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = json.dumps(draw(mutated(json.loads(lines[place]))))
    text = "\n".join(lines)
    return draw(st.one_of(st.just(text), edited(text), damaged(text.encode()).map(lambda raw: raw.decode("latin-1"))))


@st.composite
def data_files(draw):
    """(task, its columns, name of a file, what it holds)."""
    kind = draw(st.sampled_from(["jsonl", "json", "csv", "txt", "parquet", "classes", "chat", "prompts"]))
    if kind in ("jsonl", "json"):
        return "language_modeling", {}, f"x.{kind}", of_jsonl(draw, [{"text": text} for text in TEXTS]).encode()
    if kind == "classes":
        rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(TEXTS)]
        return "classification", {"label": "label"}, "x.jsonl", of_jsonl(draw, rows).encode()
    if kind == "chat":
        return "instruction", {"messages": "messages"}, "x.jsonl", of_jsonl(draw, SPOKEN).encode()
    if kind == "prompts":
        rows = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(12)]
        return "instruction", {"prompt": "prompt", "response": "response"}, "x.jsonl", of_jsonl(draw, rows).encode()
    if kind == "csv":
        table = "text,label\n" + "".join(f'"{text}",{"ab"[n % 2]}\n' for n, text in enumerate(TEXTS))
        task = draw(st.sampled_from(["language_modeling", "classification"]))
        columns = {} if task == "language_modeling" else {"label": "label"}
        return task, columns, draw(st.sampled_from(["x.csv", "x.tsv", "x.tab"])), draw(edited(table)).encode()
    if kind == "txt":
        return "language_modeling", {}, "x.txt", draw(damaged("\n".join(TEXTS).encode()))
    rows = [draw(mutated({"text": text, "n": 1})) if draw(st.booleans()) else {"text": text, "n": 1} for text in TEXTS]
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), buffer)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError, ValueError):
        pq.write_table(pa.table({"text": TEXTS}), buffer)
    return "language_modeling", {}, "x.parquet", draw(st.one_of(st.just(buffer.getvalue()), damaged(buffer.getvalue())))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXTS, 300), folder)
    return folder


def prepared(tokenizer, case) -> None:
    task, columns, name, raw = case
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFBSZ_CACHE", f"{folder}/cache")
        path = Path(folder) / name
        path.write_bytes(raw)
        pack = {} if task == "language_modeling" else {"pack": False}
        with one_line():
            data = Data(
                files=str(path), tokenizer=str(tokenizer), sequence_length=32, validation="30%", **columns, **pack
            )
            found = prepare(data, {}, lambda *_: None, None, TASKS[task].rows)
            rows = [found.train[index] for index in range(len(found.train))]
            assert rows and len(found.validation)
            if name == "x.jsonl" and task == "language_modeling":  # nothing is left out without a word
                texts = [json.loads(line) for line in raw.decode().splitlines() if line.strip()]
                whole = sum(isinstance(row, dict) and bool(str(row.get("text") or "").strip()) for row in texts)
                read = found.manifest.train.documents + found.manifest.validation.documents
                assert whole <= read <= whole + 1  # of few documents one is cut in two


@many(80)
@given(case=data_files())
def test_mutated_data_files(tokenizer, case):
    prepared(tokenizer, case)


@pytest.mark.slow
@many(300)
@given(case=data_files())
def test_many_mutated_data_files(tokenizer, case):
    prepared(tokenizer, case)


# folders of models

CHANGED = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=64, **shape)).save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder


@st.composite
def model_folders(draw, folder: Path):
    """Files of the folder that change: {name: bytes, None: it is not there}."""
    changes = {}
    for name in draw(st.lists(st.sampled_from(CHANGED), min_size=1, max_size=2, unique=True)):
        raw = (folder / name).read_bytes() if (folder / name).is_file() else b"{}"
        kinds = [st.none(), damaged(raw)]
        if name.endswith(".json"):
            kinds += [mutated(json.loads(raw)).map(lambda value: json.dumps(value).encode())] * 4
        changes[name] = draw(st.one_of(kinds))
    return changes


def model_loaded(folder: Path, changes: dict) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFBSZ_CACHE", f"{place}/cache")
        copy, corpus = Path(place) / "model", Path(place) / "x.jsonl"
        shutil.copytree(folder, copy)
        corpus.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
        for name, raw in changes.items():
            (copy / name).unlink(missing_ok=True) if raw is None else (copy / name).write_bytes(raw)
        words = ["recipe=tests/tiny.yaml", f"model.path={copy}", f"data.files={corpus}", "data.validation=30%"]
        with one_line():
            recipe = load([*words, "data.sequence_length=16", "duration=8seq"]).recipe
            data = prepare_inputs(recipe, lambda *_: None)
            tokenizer = load_tokenizer(data.tokenizer_path)
            model = build_model(recipe.model, tokenizer, 0, 16, None, [])
            with torch.no_grad():
                assert model(torch.tensor([data.train[0][:-1].tolist()])).logits.isfinite().all()


@many(30)
@given(st.data())
def test_mutated_model_folders(model_folder, data):
    model_loaded(model_folder, data.draw(model_folders(model_folder)))


@pytest.mark.slow
@many(100)
@given(st.data())
def test_many_mutated_model_folders(model_folder, data):
    model_loaded(model_folder, data.draw(model_folders(model_folder)))


# what failed


def test_a_tokenizer_whose_ids_leave_gaps(model_folder):
    """Its greatest id is not one less than its length: the embeddings and counts are as large as the ids need."""
    whole = json.loads((model_folder / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    unused = next(token for token in vocabulary if len(token) == 1 and token not in "".join(TEXTS) + "Ġ")
    del vocabulary[unused]
    model_loaded(model_folder, {"tokenizer.json": json.dumps(whole).encode()})


def test_a_tokenizer_with_text_that_is_not_unicode(model_folder):
    odd = json.loads((model_folder / "tokenizer_config.json").read_text()) | {"x": "\ud800"}
    model_loaded(model_folder, {"tokenizer_config.json": json.dumps(odd).encode()})
