"""Tokens of documents to rows in an Arrow file."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.recipe import Data

_TOKENS_AT_ONCE = 2**20


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
        self._pending: list[np.ndarray] = []  # tokens of documents that are not written
        self._bytes: list[int] = []  # and their bytes of text
        self._left: tuple[np.ndarray, np.ndarray] = np.empty(0, np.int32), np.empty(0)  # tokens, shares: a row's start
        self.documents = self.bytes = self.tokens = self.rows = self.inputs = 0
        self.frequencies, self.digest = np.zeros(vocabulary, np.int64), hashlib.sha256()

    def add(self, ids: list[int], raw: bytes) -> None:
        """A document's tokens, without the end-of-text token, and its text."""
        tokens = np.empty(len(ids) + 1, np.int32)
        tokens[:-1], tokens[-1] = ids, self._end
        self._pending.append(tokens)
        self._bytes.append(len(raw))
        self.digest.update(hashlib.sha256(raw).digest() + hashlib.sha256(tokens.tobytes()).digest())
        waiting = self.tokens // _TOKENS_AT_ONCE
        self.documents, self.bytes, self.tokens = self.documents + 1, self.bytes + len(raw), self.tokens + len(tokens)
        if self._pack:
            self.rows = (self.tokens - 1) // self._stride
            self.inputs = self.rows * self._stride
        else:
            self.rows, self.inputs = self.rows + -(-len(ids) // self._stride), self.inputs + len(ids)
        if self.tokens // _TOKENS_AT_ONCE > waiting:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Write what is left; returns counts."""
        self._flush()
        tokens, shares = self._left
        if self._pack and self._keep_tail and len(tokens) > 1:
            self._write(tokens, shares, np.array([0]), np.array([len(tokens)]))
            self.rows, self.inputs = self.rows + 1, self.inputs + len(tokens) - 1
        self._arrow.finalize()
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "rows": self.rows,
            "tokens_per_row": self.inputs / self.rows if self.rows else 0.0,
        }

    def _flush(self) -> None:
        if not self._pending:
            return
        lengths = np.array([len(tokens) for tokens in self._pending])
        tokens, shares = np.concatenate(self._pending), self._shares(lengths)
        self.frequencies += np.bincount(tokens, minlength=len(self.frequencies))
        self._pending, self._bytes = [], []
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

    def _shares(self, lengths: np.ndarray) -> np.ndarray:
        """Bytes of text that each token stands for: its document's mean; 0 for the end, and for a first token that no
        row counts because its target is masked."""
        shares = np.repeat(np.array(self._bytes) / np.maximum(1, lengths - 1), lengths)
        shares[np.cumsum(lengths) - 1] = 0
        if self._within:
            shares[np.cumsum(lengths) - lengths] = 0
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
