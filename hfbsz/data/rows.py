"""Rows: token sequences, memory-mapped through `datasets`, made once by one process and kept in a cache.

A packed row holds T+1 tokens at stride T, so that every token is predicted once; a ragged row holds one document, or a
piece of a long one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from hfbsz.data.documents import (
    FEW_DOCUMENTS,
    Document,
    SourceFile,
    find_files,
    is_held_out,
    read_documents,
    split_tail,
)
from hfbsz.data.tokenizer import load_tokenizer, train_tokenizer
from hfbsz.errors import UserError
from hfbsz.plan import Facts
from hfbsz.recipe import Data

Progress = Callable[[str, int, int], None]  # (what is being done, done, of all)

_TRAIN = "train/"  # no evaluation set can have this name
_VERSION = 1  # of the cache's form
_TOKENIZER_TEXT = 200_000_000  # characters that train a tokenizer at most
_DOCUMENTS_AT_ONCE = 256


class Rows:
    """Token rows, memory-mapped; `rows[i]` is an int32 array of one row's tokens, inputs and the last target."""

    def __init__(self, path: Path) -> None:
        import datasets

        self._dataset = datasets.Dataset.from_file(str(path))
        chunks = self._dataset.data.column("input_ids").chunks
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])
        self.text_bytes: np.ndarray = self._dataset.data.column("text_bytes").to_numpy()  # of each row's targets

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        local = index - (int(self._ends[chunk - 1]) if chunk else 0)
        start, end = self._offsets[chunk][local : local + 2]
        return self._values[chunk][start:end]


@dataclass(frozen=True)
class Prepared:
    """The data of a run: training rows, evaluation sets by name ('' is validation), and what is known of them."""

    train: Rows
    sets: dict[str, Rows]
    tokenizer_path: Path
    facts: Facts
    notes: tuple[str, ...]
    counts: dict[str, Any]


def cache_folder() -> Path:
    return Path(os.environ.get("HFBSZ_CACHE", "~/.cache/hfbsz")).expanduser()


def prepare(data: Data, sets: dict[str, str | list[str]], progress: Progress) -> Prepared:
    """Rows of the recipe's data, from the cache or made now (by whichever process takes the lock first).

    Raises UserError for files that are missing, empty or no text, and for a full disk; the cache then stays as it was.
    """
    files = {_TRAIN: find_files(data.files, data.exclude)}
    if data.validation_files is not None:
        files[""] = find_files(data.validation_files, data.exclude)
    files |= {name: find_files(patterns) for name, patterns in sets.items()}
    stamps = {name: [file.stamp() for file in found] for name, found in files.items()}
    fields = data.model_dump(mode="json", exclude={"files", "validation_files"})
    own = find_files(f"{data.tokenizer}/*.json") if data.tokenizer and Path(data.tokenizer).is_dir() else []
    made_by = [hashlib.sha256(file.path.read_bytes()).hexdigest() for file in own]
    key = hashlib.sha256(json.dumps([_VERSION, fields, stamps, made_by], sort_keys=True).encode()).hexdigest()[:16]
    entry = cache_folder() / key
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not entry.is_dir():
                _check_space(entry.parent, sum(size for found in stamps.values() for _, size, _ in found))
                _build(data, files, entry, progress)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_no_space(entry.parent)) from None
        raise UserError(f"{entry.parent}: the cache cannot be written: {problem.strerror}: set HFBSZ_CACHE") from None
    return _open(entry, data)


def _open(entry: Path, data: Data) -> Prepared:
    meta = json.loads((entry / "meta.json").read_text())
    tokenizer = Path(data.tokenizer) if data.tokenizer else entry / "tokenizer"
    facts = Facts(meta["train"]["rows"], None if data.pack else meta["train"]["tokens_per_row"], meta["data_hash"])
    sets = {name: Rows(entry / f"eval-{number}.arrow") for number, name in enumerate(meta["sets"])}
    return Prepared(Rows(entry / "train.arrow"), sets, tokenizer, facts, tuple(meta["notes"]), meta)


def _no_space(folder: Path) -> str:
    return f"{folder}: no disk space left for the token cache: free some, or set HFBSZ_CACHE to a folder with more"


def _check_space(folder: Path, text_bytes: int) -> None:
    """Tokens take 4 bytes and stand for 2 to 4 bytes of text: twice the text is enough."""
    free = shutil.disk_usage(folder).free
    if free < 2 * text_bytes:
        raise UserError(f"{_no_space(folder)} (about {2 * text_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free)")


def _build(data: Data, files: dict[str, list[SourceFile]], entry: Path, progress: Progress) -> None:
    """Write the cache's entry into a temporary folder and move it into place whole."""
    temporary = entry.with_name(f"{entry.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        split = _Split(data, files)
        if data.tokenizer:
            tokenizer = load_tokenizer(data.tokenizer)
        else:
            progress("training the tokenizer", 0, 1)
            tokenizer = train_tokenizer(_some_text(split.train()), data.vocab_size)
            tokenizer.save_pretrained(temporary / "tokenizer")
        digest = hashlib.sha256()
        meta: dict[str, Any] = {"sets": {}}
        sizes = {name: sum(file.path.stat().st_size for file in found) for name, found in files.items()}
        writer = _Writer(data, tokenizer, digest, progress)
        meta["train"], frequencies = writer.write(
            split.train(), temporary / "train.arrow", sizes[_TRAIN], tail=not data.pack
        )
        sources = {"": split.validation} | {
            name: (lambda found=found: read_documents(found, data.text))
            for name, found in files.items()
            if name not in (_TRAIN, "")
        }
        for number, (name, documents) in enumerate(sources.items()):
            path = temporary / f"eval-{number}.arrow"
            counts, seen = writer.write(documents(), path, sizes.get(name, sizes[_TRAIN]), tail=True)
            counts["unigram_bits_per_byte"] = _unigram_bits(frequencies, seen) / max(1, counts["bytes"])
            meta["sets"][name] = counts
        _refuse_empty(data, meta)
        meta |= {"data_hash": digest.hexdigest(), "notes": split.notes, "vocab_size": len(tokenizer)}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_empty(data: Data, meta: dict[str, Any]) -> None:
    train = meta["train"]
    if not train["documents"]:
        raise UserError(f"data.files: {data.files!r} holds no text")
    if not train["rows"]:
        raise UserError(
            f"data: the corpus has {train['tokens']} training tokens, fewer than one row of "
            f"data.sequence_length={data.sequence_length}: take a larger corpus or shorter rows"
        )
    for name, counts in meta["sets"].items():
        if not counts["rows"]:
            where = f"eval.sets.{name}" if name else "data.validation"
            raise UserError(f"{where}: no text to evaluate on: take a larger share or more files")


def _unigram_bits(frequencies: np.ndarray, seen: np.ndarray) -> float:
    """Bits that the seen tokens cost under the training tokens' frequencies (each counted once more)."""
    chances = (frequencies + 1) / (frequencies.sum() + len(frequencies))
    return float(-(seen * np.log2(chances)).sum())


def _some_text(documents: Iterable[Document]) -> Iterator[str]:
    left = _TOKENIZER_TEXT
    for document in documents:
        if left <= 0:
            return
        yield document.text[:left]
        left -= len(document.text)


class _Split:
    """Which documents train and which validate."""

    def __init__(self, data: Data, files: dict[str, list[SourceFile]]) -> None:
        self.data, self.files = data, files
        self.share = data.validation.value / 100
        self.notes: list[str] = []
        self.few: tuple[list[Document], list[Document]] | None = None
        if "" in files:
            return
        if data.validation.unit != "%" or not 0 < self.share < 1:
            raise UserError(f"data.validation: '{data.validation}' is no share of the documents: write 1% to 99%")
        first = list(islice(self._all(), FEW_DOCUMENTS))
        if len(first) < FEW_DOCUMENTS:
            self.few = split_tail(first, self.share)
            self.notes.append(f"{len(first)} documents only: validation is the last {data.validation} of the text")

    def _all(self) -> Iterator[Document]:
        return read_documents(self.files[_TRAIN], self.data.text)

    def train(self) -> Iterator[Document]:
        if self.few is not None:
            return iter(self.few[0])
        if "" in self.files:
            return self._all()
        return (document for document in self._all() if not is_held_out(document.name, self.share))

    def validation(self) -> Iterator[Document]:
        if self.few is not None:
            return iter(self.few[1])
        if "" in self.files:
            return read_documents(self.files[""], self.data.text)
        return (document for document in self._all() if is_held_out(document.name, self.share))


class _Writer:
    """Documents to tokens to rows in an Arrow file."""

    def __init__(self, data: Data, tokenizer: Any, digest: Any, progress: Progress) -> None:
        self.data, self.tokenizer, self.digest, self.progress = data, tokenizer, digest, progress

    def write(
        self, documents: Iterable[Document], path: Path, size: int, tail: bool
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Write rows; returns counts, and how often each token came.

        `size` (bytes of the files) is what progress is measured against; `tail` keeps the last, shorter row of a packed
        set.
        """
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        self.documents = self.tokens = self.bytes = 0
        self.frequencies = np.zeros(len(self.tokenizer), np.int64)
        length = self.data.sequence_length + 1
        rows = inputs = 0
        pieces = self._packed(documents, size, tail) if self.data.pack else self._ragged(documents, size)
        features = Features({"input_ids": List(Value("int32")), "text_bytes": Value("float64")})
        with ArrowWriter(path=str(path), features=features) as writer:
            for tokens, text_bytes in pieces:
                writer.write({"input_ids": tokens[:length], "text_bytes": float(text_bytes)})
                rows, inputs = rows + 1, inputs + len(tokens) - 1
            writer.finalize()
        self.progress("tokenising", size, size)
        counts = {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "rows": rows,
            "tokens_per_row": inputs / rows if rows else 0.0,
        }
        return counts, self.frequencies

    def _tokenised(self, documents: Iterable[Document], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(tokens with the end-of-text token, bytes of text that each stands for: the document's mean; its end 0)."""
        end, iterator = self.tokenizer.eos_token_id, iter(documents)
        while batch := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
            texts = [document.text for document in batch]
            for text, ids in zip(texts, self.tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
                raw = text.encode()
                self.digest.update(hashlib.sha256(raw).digest())
                self.documents, self.tokens = self.documents + 1, self.tokens + len(ids) + 1
                self.bytes += len(raw)
                shares = np.full(len(ids) + 1, len(raw) / max(1, len(ids)))
                shares[-1] = 0
                tokens = np.array([*ids, end], dtype=np.int32)
                self.frequencies += np.bincount(tokens, minlength=len(self.frequencies))
                yield tokens, shares
            self.progress("tokenising", min(self.bytes, size), size)

    def _packed(self, documents: Iterable[Document], size: int, tail: bool) -> Iterator[tuple[np.ndarray, float]]:
        stride = self.data.sequence_length
        tokens, shares = np.empty(0, np.int32), np.empty(0)
        for ids, parts in self._tokenised(documents, size):
            tokens, shares = np.concatenate([tokens, ids]), np.concatenate([shares, parts])
            whole = (len(tokens) - 1) // stride
            for start in range(0, whole * stride, stride):
                yield tokens[start : start + stride + 1], shares[start + 1 : start + stride + 1].sum()
            tokens, shares = tokens[whole * stride :], shares[whole * stride :]
        if tail and len(tokens) > 1:
            yield tokens, shares[1:].sum()

    def _ragged(self, documents: Iterable[Document], size: int) -> Iterator[tuple[np.ndarray, float]]:
        stride = self.data.sequence_length
        for ids, parts in self._tokenised(documents, size):
            for start in range(0, len(ids) - 1, stride):
                yield ids[start : start + stride + 1], parts[start + 1 : start + stride + 1].sum()


def sample(rows: int, count: int) -> Sequence[int]:
    """`count` row numbers spread evenly over a set: the fixed part of an evaluation."""
    return [int(index) for index in np.linspace(0, rows, min(count, rows), endpoint=False)]
