"""The ways to tokenize and pack documents that `scripts/bench.py data` times: hfbsz, and the steps of transformers'
language modeling example (examples/pytorch/language-modeling/run_clm.py) with `datasets`."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from hfbsz.recipe.load import load
from hfbsz.train.inputs import prepare_inputs
from hfbsz.train.setup import setup

Timed = Callable[[], float]  # prepares all documents; returns training tokens per second


@contextmanager
def preparations(words: list[str]) -> Iterator[Mapping[str, Timed]]:
    """The ways by name, on the documents of a recipe, written to one JSON-lines file, with its tokenizer."""
    recipe = load(words).recipe
    bundle = setup(recipe)
    length = recipe.data.sequence_length
    with tempfile.TemporaryDirectory() as place:
        documents = Path(place, "documents.jsonl")
        with documents.open("w", encoding="utf-8") as file:
            for text in _texts(bundle):
                file.write(json.dumps({"text": text}) + "\n")
        tokenizer = str(bundle.data.tokenizer_path)
        yield {
            "hfbsz": lambda: _ours(documents, tokenizer, length),
            "group_texts": lambda: _group_texts(documents, tokenizer, length),
        }


def _texts(bundle: Any) -> Iterator[str]:
    """The training documents of a recipe, from its packed rows: texts between end tokens."""
    end, document = bundle.tokenizer.eos_token_id, []
    for index in range(len(bundle.data.train)):
        for token in bundle.data.train[index][:-1].tolist():
            if token != end:
                document.append(token)
            elif document:
                yield bundle.tokenizer.decode(document)
                document = []
    if document:
        yield bundle.tokenizer.decode(document)


def _ours(documents: Path, tokenizer: str, length: int) -> float:
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get("HFBSZ_CACHE")
        os.environ["HFBSZ_CACHE"] = cache
        try:
            words = [f"data.files={documents}", f"data.tokenizer={tokenizer}", f"data.sequence_length={length}"]
            recipe = load(["recipe=small_batch_pretrain", *words]).recipe
            started = time.perf_counter()
            rows = prepare_inputs(recipe, lambda *_: None)
            seconds = time.perf_counter() - started
        finally:
            del os.environ["HFBSZ_CACHE"]
            if before is not None:
                os.environ["HFBSZ_CACHE"] = before
        return (len(rows.train) + len(rows.validation)) * length / seconds


def _group_texts(documents: Path, name: str, length: int) -> float:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(name)

    def group(examples: dict[str, Any]) -> dict[str, Any]:
        whole = {key: list(chain(*examples[key])) for key in examples}
        total = len(whole["input_ids"]) // length * length
        result = {key: [values[at : at + length] for at in range(0, total, length)] for key, values in whole.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        texts = datasets.load_dataset("json", data_files=str(documents), split="train", cache_dir=cache)
        tokens = texts.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
        packed = tokens.map(group, batched=True)
        return len(packed) * length / (time.perf_counter() - started)
