"""Rows: token sequences, memory-mapped through `datasets`, made once by one process and kept in a cache.

A packed row holds T+1 tokens at stride T, so that every token is predicted once; a ragged row holds one document, or a
piece of a long one.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from hfbsz.data.build import TRAIN, Builder, Progress
from hfbsz.data.cache import cache_folder
from hfbsz.data.examples import ExampleBuilder
from hfbsz.data.needed import Needed
from hfbsz.data.sources import Opened, open_set, open_source, open_validation
from hfbsz.data.tokenizer import tokenizer_files
from hfbsz.errors import RankError, UserError
from hfbsz.interrupt import scratch
from hfbsz.plan import Facts
from hfbsz.recipe import Data, EvalSet

_VERSION = 5  # of the cache's form


class Rows:
    """Token rows, memory-mapped. `rows[i]` is an int32 array of one row's tokens, inputs and the last target; of a
    fine-tuning task a Row of tokens and labels. Raises RankError where it holds a token that is not of the vocabulary:
    on a GPU it would end the process without a word."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        import datasets

        self.path, self.vocabulary = path, vocabulary
        self._dataset = datasets.Dataset.from_file(str(path))
        self._tokens = _Lists(self._dataset.data.column("input_ids").chunks)
        labelled = "labels" in self._dataset.column_names
        self._labels = _Lists(self._dataset.data.column("labels").chunks) if labelled else None
        self.text_bytes: np.ndarray = self._dataset.data.column("text_bytes").to_numpy()  # of each row's targets

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row (int32, shape [rows]), from the file's offsets: no token is read."""
        chunks = self._dataset.data.column("input_ids").chunks
        return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])

    def __getitem__(self, index: int) -> Any:
        row = self._tokens[index]
        if not (len(row) and row.min() >= 0 and row.max() < self.vocabulary):
            raise RankError(
                f"{self.path}: row {index} cannot be read (it must hold tokens from 0 to {self.vocabulary - 1}): "
                f"delete {self.path.parent}: it is rebuilt"
            )
        return row if self._labels is None else Row(row, self._labels[index])


class Row(NamedTuple):
    """A row of a fine-tuning task, in int32: labels are a class, or one for each token (−100: not counted)."""

    tokens: np.ndarray
    labels: np.ndarray


class _Lists:
    """A column of lists of numbers, read in place."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

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


def prepare(
    data: Data,
    sets: Mapping[str, EvalSet],
    progress: Progress,
    needed: Needed | None = None,
    task: str = "language_modeling",
    own_labels: Sequence[str] | None = None,
) -> Prepared:
    """Rows of the recipe's data, from the cache or made now (by whichever process takes the lock first).

    `needed` says how much of a stream is read; `own_labels` are those of the model's classifier. Raises UserError for
    sources that are missing, empty or no text, and for a full disk; the cache then stays as it was.
    """
    if data.stream and needed is None:
        raise ValueError("a stream is read only as far as it is needed: say how far")
    opened = {TRAIN: Opened(open_source(data), data)}
    if (validation := open_validation(data)) is not None:
        opened[""] = Opened(validation, data)
    opened |= {name: open_set(name, wanted, data) for name, wanted in sets.items()}
    sources = [part.source for part in opened.values()]
    entry = cache_folder() / _key(data, opened, needed, task, own_labels)
    builder: Any = (
        Builder(data, opened, needed, progress)
        if task == "language_modeling"
        else ExampleBuilder(task, data, opened, progress, own_labels)
    )
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not _is_whole(entry):
                _check_space(entry.parent, 0 if data.stream else sum(source.size() for source in sources))
                _build(builder, entry)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_no_space(entry.parent)) from None
        raise UserError(f"{entry.parent}: the cache cannot be written: {problem.strerror}: set HFBSZ_CACHE") from None
    return _open(entry, data, tuple(note for source in sources for note in source.notes))


def _key(
    data: Data, opened: Mapping[str, Opened], needed: Needed | None, task: str, own_labels: Sequence[str] | None
) -> str:
    """16 hex digits over all that decides the rows."""
    fields = data.model_dump(mode="json", exclude={"files", "validation_files", "sha256"})
    stamps = {name: part.source.stamp() for name, part in opened.items()}
    own = {name: other for name, part in opened.items() if (other := _other_columns(part.data, data))}
    made_by = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tokenizer_files(data.tokenizer)]
    read = [needed.sequences, needed.tokens] if data.stream and needed is not None else None
    whole = json.dumps(
        [_VERSION, task, fields, stamps, made_by, read, *([own] if own else []), own_labels], sort_keys=True
    )
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _other_columns(data: Data, usual: Data) -> dict[str, Any]:
    return {name: value for name in Data.COLUMNS if (value := getattr(data, name)) != getattr(usual, name)}


def _open(entry: Path, data: Data, notes: tuple[str, ...]) -> Prepared:
    meta = json.loads((entry / "meta.json").read_text())
    own = entry / "tokenizer"
    tokenizer = Path(data.tokenizer) if data.tokenizer and not own.is_dir() else own
    facts = Facts(meta["train"]["rows"], None if data.pack else meta["train"]["tokens_per_row"], meta["data_hash"])
    size = meta["vocab_size"]
    sets = {name: Rows(entry / f"eval-{number}.arrow", size) for number, name in enumerate(meta["sets"])}
    return Prepared(Rows(entry / "train.arrow", size), sets, tokenizer, facts, (*notes, *meta["notes"]), meta)


def _is_whole(entry: Path) -> bool:
    """Whether the cache's entry is there and its files have the length they were written with: reading past the end of
    a memory-mapped file ends a process without a word."""
    try:
        sizes = json.loads((entry / "sizes.json").read_text())
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _no_space(folder: Path) -> str:
    return f"{folder}: no disk space left for the token cache: free some, or set HFBSZ_CACHE to a folder with more"


def _check_space(folder: Path, text_bytes: int) -> None:
    """Tokens take 4 bytes and stand for 2 to 4 bytes of text: twice the text is enough."""
    free = shutil.disk_usage(folder).free
    if free < 2 * text_bytes:
        raise UserError(f"{_no_space(folder)} (about {2 * text_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free)")


def _build(builder: Any, entry: Path) -> None:
    """Write the cache's entry into a temporary folder and move it into place whole."""
    temporary = entry.with_name(f"{entry.name}.tmp")
    with scratch(temporary):
        temporary.mkdir()
        meta = builder.build(temporary)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir() if path.is_file()}
        (temporary / "sizes.json").write_text(json.dumps(sizes))
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        temporary.rename(entry)


def sample(rows: int, count: int) -> Sequence[int]:
    """`count` row numbers spread evenly over a set: the fixed part of an evaluation."""
    return [int(index) for index in np.linspace(0, rows, min(count, rows), endpoint=False)]
