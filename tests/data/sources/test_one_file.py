"""A corpus in one text file: bounded memory, the same tokens as of the complete file, documents by a separator."""

import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from hfbsz.data.prepare.pieces import LONGEST
from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer import fast_encoding
from hfbsz.data.tokenizer.encoding import encode_plain
from hfbsz.data.tokenizer.fast_encoding import PlainEncoder
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data

SOURCE = "".join(path.read_text(errors="ignore") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py")))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


def made(path, **fields):
    return prepare(
        Data(**{"files": str(path), "vocab_size": 400, "sequence_length": 64, **fields}), {}, lambda *_: None
    )


def stream(rows):
    """The tokens of packed rows, without the one that neighboring rows share."""
    return np.concatenate([rows[0][:1], *(rows[number][1:] for number in range(len(rows)))])


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "ragged"])
def test_the_tokens_are_those_of_the_complete_file(tmp_path, pack):
    text = (SOURCE * 6)[: 2 * LONGEST]
    (tmp_path / "corpus.txt").write_text(text)
    data = made(tmp_path / "corpus.txt", validation="10%", pack=pack)
    split = len(text) - round(0.1 * len(text))
    split = text.rfind("\n", 0, split) + 1
    tokenizer = load_tokenizer(data.tokenizer_path)
    expected = [*encode_plain(tokenizer, [text[:split]])[0], tokenizer.eos_token_id]
    if pack:
        tokens = stream(data.train)
        assert tokens.tolist() == expected[: len(tokens)] and len(expected) - len(tokens) < 64
    else:
        rows = [data.train[number] for number in range(len(data.train))]
        assert all(len(row) == 65 for row in rows[:-1]) and all(a[-1] == b[0] for a, b in pairwise(rows))
        assert np.concatenate([rows[0][:1], *(row[1:] for row in rows)]).tolist() == expected
    assert data.manifest.train.documents == 1 and data.manifest.train.tokens == len(expected)
    assert data.manifest.train.bytes + data.manifest.validation.bytes == len(text.encode())
    assert not any("pieces" in note for note in data.notes)


def test_documents_by_a_separator_and_complete_ones_in_validation(tmp_path):
    documents = [f"document {number}: " + SOURCE[number * 300 : number * 300 + 250] for number in range(60)]
    (tmp_path / "corpus.txt").write_text("<|endoftext|>".join(documents))
    data = made(tmp_path / "corpus.txt", separator="<|endoftext|>", validation="20%")
    counts = [data.manifest.train.documents, data.manifest.validation.documents]
    assert sum(counts) == 60 and counts[1] > 2 and not any("the last" in note for note in data.notes)
    alone = made(tmp_path / "corpus.txt", validation="20%")
    assert any("'<|endoftext|>' 59 times" in note for note in alone.notes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of Linux")
def test_case_s14_memory_does_not_grow_with_the_file(tmp_path, environment):
    code = (
        "import re, sys; from hfbsz.data.rows import prepare; from hfbsz.recipe.fields import Data\n"
        "prepare(Data(files=sys.argv[1], vocab_size=300, validation='5%'), {}, lambda *_: None)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"  # ru_maxrss counts the parent's
    )
    peaks = []
    for size in (2, 16):
        path = tmp_path / f"{size}.txt"
        path.write_text((SOURCE * (size * 10**6 // len(SOURCE) + 1))[: size * 10**6])
        env = {**environment, "HFBSZ_CACHE": str(tmp_path / "cache")}
        result = subprocess.run(
            [sys.executable, "-c", code, path], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        peaks.append(int(result.stdout) // 1024)
    assert peaks[1] < 600 and peaks[1] - peaks[0] < 200  # MiB; it once took 110 bytes per byte of text


class TestTheFastLibrary:
    def test_gives_the_same_tokens(self):
        pytest.importorskip("gigatoken", reason="the optional dependency hfbsz[fast]")
        tokenizer = train_tokenizer([SOURCE[:200_000]], 500)
        encode = PlainEncoder(tokenizer)
        texts = [SOURCE[start : start + 5000] for start in range(0, 100_000, 5000)] + [
            "",
            "a <|endoftext|> b",
            "日本 é\r\n",
        ]
        assert encode(texts) == encode_plain(tokenizer, texts) and encode.is_fast

    def test_is_not_used_if_it_gives_others(self, monkeypatch):
        tokenizer = train_tokenizer([SOURCE[:50_000]], 400)
        monkeypatch.setattr(fast_encoding, "_gigatoken", lambda tokenizer: Wrong(0))
        encode = PlainEncoder(tokenizer)
        assert encode(["some text"]) == encode_plain(tokenizer, ["some text"]) and not encode.is_fast

    def test_raises_if_it_gives_others_later(self, monkeypatch):
        tokenizer = train_tokenizer([SOURCE[:50_000]], 400)
        monkeypatch.setattr(fast_encoding, "_gigatoken", lambda tokenizer: Wrong(2, tokenizer))
        encode = PlainEncoder(tokenizer)
        with pytest.raises(UserError, match="gigatoken gives other tokens"):
            encode(["some text"])


class Wrong:
    """A library that gives the right tokens for the first `right` calls only."""

    def __init__(self, right, tokenizer=None):
        self.right, self.tokenizer = right, tokenizer

    def encode_batch_list(self, texts):
        self.right -= 1
        return [[1] for _ in texts] if self.right < 0 else encode_plain(self.tokenizer, texts)
