"""Rows: token sequences, memory-mapped Arrow files, made once by one process and kept in a cache.

A packed row holds T+1 tokens at stride T, so that every token is predicted once; a ragged row holds one document, or a
piece of a long one.
"""

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

_VERSION = 7  # of the cache's form
_AT_ONCE = 2**30  # bytes of an Arrow file that is verified when it is opened: 0.3 s


class Rows:
    """Token rows, memory-mapped. `rows[i]` is an int32 array of one row's tokens, inputs and the last target; of a
    fine-tuning task a Row of tokens and labels. With `blocks`, what a row is read from is verified first. Raises
    RankError for a row that is damaged, and for one that holds a token which is not of the vocabulary: on a GPU it
    would end the process without a word."""

    def __init__(self, path: Path, vocabulary: int, blocks: Blocks | None = None) -> None:
        self.path, self.vocabulary, self._blocks = path, vocabulary, blocks
        self._table, self._begin = mapped(path)
        self._tokens = _Lists(self._table.column("input_ids").chunks)
        labelled = "labels" in self._table.column_names
        self._labels = _Lists(self._table.column("labels").chunks) if labelled else None
        self.text_bytes: np.ndarray = self._table.column("text_bytes").to_numpy()  # of each row's targets

    def __len__(self) -> int:
        return len(self.text_bytes)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row (int32, shape [rows]), from the file's offsets: no token is read."""
        chunks = self._table.column("input_ids").chunks
        return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])

    def __getitem__(self, index: int) -> Any:
        row = self._verified(index, self._tokens[index])
        if not (len(row) and row.min() >= 0 and row.max() < self.vocabulary):
            raise RankError(
                f"{self.path}: row {index} must hold tokens from 0 to {self.vocabulary - 1}, and the tokenizer gave "
                "others: take another data.tokenizer"
            )
        return row if self._labels is None else Row(row, self._verified(index, self._labels[index]))

    def _verified(self, index: int, values: np.ndarray) -> np.ndarray:
        if self._blocks is None:
            return values
        start = values.ctypes.data - self._begin
        try:
            self._blocks.verify(start, start + values.nbytes)
        except Damaged as problem:
            first = "" if mark(self.path, problem) else f"delete {self.path.parent}, or set HFBSZ_CACHE: "
            raise RankError(
                f"{self.path}: damaged: block {problem.block} of 64 KiB, read for row {index}: {first}the same command "
                "rebuilds the file and goes on"
            ) from None
        return values


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
    """The data of a run: its rows, and what is known of them."""

    train: Rows
    validation: Rows
    sets: dict[str, Rows]  # further evaluation sets, by name
    tokenizer_path: Path
    facts: Facts
    notes: tuple[str, ...]
    manifest: Manifest

    def evaluation_sets(self) -> dict[str | None, Rows]:
        """All evaluation sets by name, validation first; its name is None."""
        return {None: self.validation} | dict[str | None, Rows](self.sets)


def prepare(
    data: Data,
    sets: Mapping[str, EvalSet],
    progress: Progress,
    needed: Needed | None = None,
    kind: RowKind = RowKind.TEXT,
    own_labels: Sequence[str] | None = None,
) -> Prepared:
    """Rows of the recipe's data, from the cache or made now (by whichever process takes the lock first).

    `needed` says how much of the data the run takes; `own_labels` are those of the model's classifier. Raises UserError
    for sources that are missing, empty or no text, and for a full disk; the cache then stays as it was.
    """
    if data.stream and needed is None:
        raise ValueError("a stream is read only as far as it is needed: say how far")
    source = open_source(data)
    of_texts = kind is RowKind.TEXT  # labels, groups and duplicates of a task's rows are of the whole source
    enough = enough_of(needed, source.size(), data.sequence_length, data.stream) if of_texts else None
    opened = {TRAIN: Opened(source if enough is None else shuffled(source), data)}
    if (validation := open_validation(data)) is not None:
        opened[VALIDATION] = Opened(validation, data)
    opened |= {name: open_set(name, wanted, data) for name, wanted in sets.items()}
    sources = [part.source for part in opened.values()]
    entry = cache_folder() / _key(data, opened, enough, kind, own_labels)
    builder: Any = (
        Builder(data, opened, enough, progress)
        if of_texts
        else ExampleBuilder(kind, data, opened, progress, own_labels)
    )

    def make(folder: Path) -> None:
        _check_space(entry.parent, 0 if enough else sum(source.size() for source in sources))
        (folder / "meta.json").write_text(json.dumps(builder.build(folder).to_dict(), indent=1))
        for path in folder.glob("*.arrow"):
            write_blocks(path)

    prepared, damaged = obtain(entry, lambda: _open(entry, data), make)
    rebuilt = [] if damaged is None else [f"the token cache was damaged ({damaged}): rebuilt"]
    too_many = [] if of_texts else surplus(needed, len(prepared.train))
    notes = (*rebuilt, *too_many, *(note for source in sources for note in source.notes), *prepared.notes)
    return replace(prepared, notes=notes)


def _key(
    data: Data, opened: Mapping[str, Opened], enough: Needed | None, kind: RowKind, own_labels: Sequence[str] | None
) -> str:
    """16 hex digits over all that decides the rows."""
    fields = data.model_dump(mode="json", exclude={"files", "validation_files", "sha256", "stream"})
    stamps = {name: part.source.stamp() for name, part in opened.items()}
    own = {name: other for name, part in opened.items() if (other := _other_columns(part.data, data))}
    made_by = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tokenizer_files(data.tokenizer)]
    read = None if enough is None else [enough.sequences, enough.tokens, bool(data.stream)]
    whole = json.dumps(
        [_VERSION, kind, fields, stamps, made_by, read, *([own] if own else []), own_labels], sort_keys=True
    )
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _other_columns(data: Data, usual: Data) -> dict[str, Any]:
    return {name: value for name in Data.COLUMNS if (value := getattr(data, name)) != getattr(usual, name)}


def _open(entry: Path, data: Data) -> Prepared:
    """An entry whose files are as they were written. Raises Absent or Damaged.

    The first process of a machine verifies its Arrow files at once; it comes before the others, which verify what they
    read, as all do of large files."""
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
    """Tokens take 4 bytes and stand for 2 to 4 bytes of text: twice the text is enough."""
    free = shutil.disk_usage(folder).free
    if free < 2 * text_bytes:
        raise UserError(f"{no_space(folder)} (about {2 * text_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free)")


def sample(rows: int, count: int) -> Sequence[int]:
    """`count` row numbers spread evenly over a set: the fixed part of an evaluation."""
    return [int(index) for index in np.linspace(0, rows, min(count, rows), endpoint=False)]
