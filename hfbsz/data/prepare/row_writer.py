"""Tokens of documents to rows in an Arrow file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfbsz.data.manifest import SetCounts
from hfbsz.recipe.fields import Data

_TOKENS_AT_ONCE = 2**20


@dataclass(frozen=True)
class _Part:
    """Tokens of a document, or of a piece of one; with the end-of-text token where it `ends`."""

    tokens: np.ndarray
    bytes: int
    begins: bool
    ends: bool


class RowWriter:
    """Rows of one set, packed or ragged, written a table at a time.

    `rows` and `inputs` count what the documents so far will give. `keep_tail` keeps the last, shorter row of a packed
    set.
    """

    def __init__(self, path: Path, data: Data, vocabulary: int, end: int, keep_tail: bool) -> None:
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({"input_ids": List(Value("int32")), "text_bytes": Value("float64")})
        self._arrow = ArrowWriter(path=str(path), features=features)
        self._stride, self._pack, self._end, self._keep_tail = data.sequence_length, data.pack, end, keep_tail
        self._within = data.pack and data.attend == "within"
        self._pending: list[_Part] = []  # what is not written
        self._left: tuple[np.ndarray, np.ndarray] = np.empty(0, np.int32), np.empty(0)  # tokens, shares: a row's start
        self._done = 0  # tokens of the document that goes on
        self._open = False  # whether one does
        self.documents = self.bytes = self.tokens = self.rows = self.inputs = 0
        self.frequencies, self.digest = np.zeros(vocabulary, np.int64), hashlib.sha256()

    def add(self, ids: Sequence[int], raw: bytes, more: bool = False) -> None:
        """A document's tokens, without the end-of-text token, and its text; or a piece of one, where `more` says
        whether the next call continues it."""
        tokens = np.empty(len(ids) + (not more), np.int32)
        tokens[: len(ids)] = ids
        if not more:
            tokens[-1] = self._end
        part = _Part(tokens, len(raw), begins=not self._open, ends=not more)
        self.digest.update(hashlib.sha256(raw).digest() + hashlib.sha256(tokens.tobytes()).digest())
        waiting = self.tokens // _TOKENS_AT_ONCE
        self.documents, self.bytes, self.tokens = (
            self.documents + part.ends,
            self.bytes + len(raw),
            self.tokens + len(tokens),
        )
        if self._pack:
            self.rows = (self.tokens - 1) // self._stride
            self.inputs = self.rows * self._stride
        else:
            done = self._done + len(ids)
            self.rows += -(-done // self._stride) - -(-self._done // self._stride)
            self.inputs, self._done = self.inputs + len(ids), 0 if part.ends else done
        self._open = more
        if self._pack or (part.begins and part.ends):
            self._pending.append(part)
        else:
            self._continue(part)
        if self.tokens // _TOKENS_AT_ONCE > waiting:
            self._flush()

    def close(self) -> SetCounts:
        """Write the remaining rows; returns the counts of the set."""
        self._flush()
        tokens, shares = self._left
        if self._pack and self._keep_tail and len(tokens) > 1:
            self._write(tokens, shares, np.array([0]), np.array([len(tokens)]))
            self.rows, self.inputs = self.rows + 1, self.inputs + len(tokens) - 1
        self._arrow.finalize()
        return SetCounts(
            rows=self.rows,
            tokens=self.tokens,
            tokens_per_row=self.inputs / self.rows if self.rows else 0.0,
            documents=self.documents,
            bytes=self.bytes,
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        lengths = np.array([len(part.tokens) for part in self._pending])
        tokens = np.concatenate([part.tokens for part in self._pending])
        shares = np.concatenate([self._shares(part) for part in self._pending])
        self.frequencies += np.bincount(tokens, minlength=len(self.frequencies))
        self._pending = []
        if self._pack:
            tokens, shares = np.concatenate([self._left[0], tokens]), np.concatenate([self._left[1], shares])
            starts = np.arange(0, (len(tokens) - 1) // self._stride * self._stride, self._stride)
            self._write(tokens, shares, starts, starts + self._stride + 1)
            whole = len(starts) * self._stride
            self._left = tokens[whole:].copy(), shares[whole:].copy()
        else:
            first = np.cumsum(lengths) - lengths
            places = [np.arange(0, length - 1, self._stride) for length in lengths]
            starts = np.concatenate([begin + place for begin, place in zip(first, places, strict=True)])
            last = np.repeat(first + lengths, [len(place) for place in places])
            self._write(tokens, shares, starts, np.minimum(starts + self._stride + 1, last))

    def _continue(self, part: "_Part") -> None:
        """Ragged rows of a document that comes in pieces: those that are whole, and at its end the last one too."""
        self._flush()  # documents before it
        self.frequencies += np.bincount(part.tokens, minlength=len(self.frequencies))
        tokens = np.concatenate([self._left[0], part.tokens])
        shares = np.concatenate([self._left[1], self._shares(part)])
        stop = len(tokens) - 1 if part.ends else max(0, len(tokens) - 1) // self._stride * self._stride
        starts = np.arange(0, stop, self._stride)
        self._write(tokens, shares, starts, np.minimum(starts + self._stride + 1, len(tokens)))
        self._left = (np.empty(0, np.int32), np.empty(0)) if part.ends else (tokens[stop:].copy(), shares[stop:].copy())

    def _shares(self, part: "_Part") -> np.ndarray:
        """Bytes of text that each token stands for: the part's mean; 0 for the end, and for a first token that no row
        counts because its target is masked."""
        shares = np.full(len(part.tokens), part.bytes / max(1, len(part.tokens) - part.ends))
        if part.ends:
            shares[-1] = 0
        if self._within and part.begins:
            shares[:1] = 0
        return shares

    def _write(self, tokens: np.ndarray, shares: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Rows tokens[start:end] as one table; the bytes of a row are those of its targets, all but the first token."""
        import pyarrow as pa

        if not len(starts):
            return
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        counted = shares[places]
        counted[offsets[:-1]] = 0
        rows = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens[places], pa.int32()))
        table = pa.table({"input_ids": rows, "text_bytes": np.add.reduceat(counted, offsets[:-1])})
        self._arrow.write_table(table, len(starts))
