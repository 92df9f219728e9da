"""Rows: token sequences in memory-mapped Arrow files, built once by one process and cached.

A packed row holds T+1 tokens at stride T, so that every token is predicted once; a ragged row holds one document or
part of a long one.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hfbsz.data.cache import cache_folder, no_space, obtain
from hfbsz.data.contents import Blocks, Damaged, mapped, mark, verify, write_blocks
from hfbsz.data.manifest import TRAIN, VALIDATION, Manifest
from hfbsz.data.prepare.budget import Needed, enough_of, surplus
from hfbsz.data.prepare.corpus import Builder, Progress
from hfbsz.data.prepare.examples import ExampleBuilder
from hfbsz.data.sources.sources import Opened, open_set, open_source, open_validation, shuffled
from hfbsz.data.tokenizer.tokenizer import tokenizer_files
from hfbsz.errors import RankError, UserError, number_of
from hfbsz.plan.plan import Facts
from hfbsz.recipe.fields import Data, EvalSet
from hfbsz.recipe.tasks import RowKind

_VERSION = 8  # of the cache's format
_AT_ONCE = 2**30  # bytes: Arrow files up to this size are verified when they are opened, in 0.3 s


class Rows:
    """Memory-mapped token rows. `rows[i]` is an int32 array of one row's tokens, inputs and the last target; for a
    fine-tuning task, a Row of tokens and labels, or a Pair of two. With `blocks`, the blocks that a row is read from
    are verified first.

    Indexing raises RankError for a damaged row, and for one that holds a token outside the vocabulary: it would crash
    the process on a GPU without a message.
    """

    def __init__(self, path: Path, vocabulary: int, blocks: Blocks | None = None) -> None:
        self.path, self.vocabulary, self._blocks = path, vocabulary, blocks
        self._table, self._begin = mapped(path)
        self._tokens = _Lists(self._table.column("input_ids").chunks)
        labeled = "labels" in self._table.column_names
        self._labels = _Lists(self._table.column("labels").chunks) if labeled else None
        self.text_bytes: np.ndarray = self._table.column("text_bytes").to_numpy()  # of each row's targets
        is_pair = "chosen_length" in self._table.column_names
        self._chosen = self._table.column("chosen_length").to_numpy() if is_pair else None
        self.reference: np.ndarray | None = None  # of pairs: see `with_reference`

    def __len__(self) -> int:
        return len(self.text_bytes)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row (int32, shape [rows]), from the file's offsets: no token is read. Those of a pair are
        what it takes in a forward pass: twice the longer of its two sequences."""
        chunks = self._table.column("input_ids").chunks
        tokens = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
        return tokens if self._chosen is None else 2 * np.maximum(self._chosen, tokens - self._chosen)

    def with_reference(self, values: np.ndarray) -> "Rows":
        """These pairs with reference log-probabilities, of the chosen and the rejected answer (shape [rows, 2])."""
        rows = copy.copy(self)
        rows.reference = values
        return rows

    def __getitem__(self, index: int) -> Any:
        row = self._verified(index, self._tokens[index])
        if not (len(row) and row.min() >= 0 and row.max() < self.vocabulary):
            raise RankError(
                f"{self.path}: row {index} has tokens outside 0 to {self.vocabulary - 1}, which the tokenizer produced"
                ": use another data.tokenizer"
            )
        if self._labels is None:
            return row
        labels = self._verified(index, self._labels[index])
        if self._chosen is None:
            return Row(row, labels)
        length = int(self._chosen[index])
        reference = None if self.reference is None else self.reference[index]
        return Pair(Row(row[:length], labels[:length]), Row(row[length:], labels[length:]), reference)

    def _verified(self, index: int, values: np.ndarray) -> np.ndarray:
        if self._blocks is None:
            return values
        start = values.ctypes.data - self._begin
        try:
            self._blocks.verify(start, start + values.nbytes)
        except Damaged as problem:
            remedy = "" if mark(self.path, problem) else f"delete {self.path.parent}, or set HFBSZ_CACHE: "
            raise RankError(
                f"{self.path}: damaged: block {problem.block} of 64 KiB, read for row {index}: {remedy}the same "
                "command rebuilds the file and resumes"
            ) from None
        return values


class Row(NamedTuple):
    """A row of a fine-tuning task, in int32: `labels` is one class, or one label per token (−100: not a target)."""

    tokens: np.ndarray
    labels: np.ndarray


class Pair(NamedTuple):
    """A row of a preference task: the prompt with either answer. `reference`: their log-probabilities under the initial
    weights (float64, shape [2]); None: not computed."""

    chosen: Row
    rejected: Row
    reference: np.ndarray | None = None


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
    """The data of a run: its rows and their metadata."""

    train: Rows
    validation: Rows
    sets: dict[str, Rows]  # further evaluation sets, by name
    tokenizer_path: Path
    facts: Facts
    notes: tuple[str, ...]
    manifest: Manifest

    def evaluation_sets(self) -> dict[str | None, Rows]:
        """All evaluation sets by name; validation is first, under the name None."""
        return {None: self.validation} | dict[str | None, Rows](self.sets)


def prepare(
    data: Data,
    sets: Mapping[str, EvalSet],
    progress: Progress,
    needed: Needed | None = None,
    kind: RowKind = RowKind.TEXT,
    own_labels: Sequence[str] | None = None,
) -> Prepared:
    """Rows of the recipe's data: from the cache, or built now by the first process that takes the lock.

    `needed` is how much of the data the run uses; `own_labels` are the labels of the model's classifier. Raises
    UserError for sources that are missing, empty or not text, and for a full disk; the cache is then unchanged.
    """
    if data.stream and needed is None:
        raise ValueError("data.stream=True requires `needed`: a stream is read only as far as the run needs it")
    source = open_source(data)
    is_text = kind is RowKind.TEXT  # a task's labels, groups and duplicates depend on the complete source
    enough = enough_of(needed, source.size(), data.sequence_length, data.stream) if is_text else None
    opened = {TRAIN: Opened(source if enough is None else shuffled(source), data)}
    if (validation := open_validation(data)) is not None:
        opened[VALIDATION] = Opened(validation, data)
    opened |= {name: open_set(name, eval_set, data) for name, eval_set in sets.items()}
    sources = [part.source for part in opened.values()]
    entry = cache_folder() / _key(data, opened, enough, kind, own_labels)
    builder: Any = (
        Builder(data, opened, enough, progress) if is_text else ExampleBuilder(kind, data, opened, progress, own_labels)
    )

    def build(folder: Path) -> None:
        _check_space(entry.parent, 0 if enough else sum(source.size() for source in sources))
        (folder / "meta.json").write_text(json.dumps(builder.build(folder).to_dict(), indent=1))
        for path in folder.glob("*.arrow"):
            write_blocks(path)

    prepared, damaged = obtain(entry, lambda: _open(entry, data), build)
    rebuilt = [] if damaged is None else [f"the token cache was damaged ({damaged}): rebuilt"]
    excess = [] if is_text else surplus(needed, len(prepared.train))
    notes = (*rebuilt, *excess, *(note for source in sources for note in source.notes), *prepared.notes)
    return replace(prepared, notes=notes)


def _key(
    data: Data, opened: Mapping[str, Opened], enough: Needed | None, kind: RowKind, own_labels: Sequence[str] | None
) -> str:
    """16 hex digits: a hash of everything that determines the rows."""
    fields = data.model_dump(mode="json", exclude={"files", "validation_files", "sha256", "stream"})
    stamps = {name: part.source.stamp() for name, part in opened.items()}
    columns = {name: changed for name, part in opened.items() if (changed := _other_columns(part.data, data))}
    tokenizer = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tokenizer_files(data.tokenizer)]
    extent = None if enough is None else [enough.sequences, enough.tokens, bool(data.stream)]
    text = json.dumps(
        [_VERSION, kind, fields, stamps, tokenizer, extent, *([columns] if columns else []), own_labels], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _other_columns(data: Data, default: Data) -> dict[str, Any]:
    return {name: value for name in Data.COLUMNS if (value := getattr(data, name)) != getattr(default, name)}


def _open(entry: Path, data: Data) -> Prepared:
    """Open a cache entry, and verify its files. Raises Absent or Damaged.

    The first process of a machine, which runs before the others, verifies Arrow files of up to `_AT_ONCE` bytes
    completely. The others, and all processes for larger files, verify the blocks that they read.
    """
    by_block = verify(entry, _AT_ONCE if number_of("LOCAL_RANK", 0) == 0 else 0)
    manifest = Manifest.from_dict(json.loads((entry / "meta.json").read_text()))

    def rows(name: str) -> Rows:
        return Rows(entry / name, manifest.vocab_size, Blocks(entry / name) if name in by_block else None)

    train = manifest.train
    facts = Facts(train.rows, None if data.pack else train.tokens_per_row, manifest.data_hash)
    sets = {name: rows(f"eval-{number}.arrow") for number, name in enumerate(manifest.sets)}
    return Prepared(
        rows("train.arrow"), rows("validation.arrow"), sets, entry / "tokenizer", facts, manifest.notes, manifest
    )


def _check_space(folder: Path, text_bytes: int) -> None:
    """Raise UserError unless twice the text's size is free: a token takes 4 bytes, and encodes 2 to 4 bytes of text."""
    free = shutil.disk_usage(folder).free
    if free < 2 * text_bytes:
        raise UserError(f"{no_space(folder)} (about {2 * text_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free)")


def sample(rows: int, count: int) -> Sequence[int]:
    """`count` row numbers (at most `rows`), evenly spread over a set: the fixed part of an evaluation."""
    return [int(index) for index in np.linspace(0, rows, min(count, rows), endpoint=False)]
