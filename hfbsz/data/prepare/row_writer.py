"""Writes tokens of documents as rows to an Arrow file."""

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
    """Tokens of a document or of a piece of it."""

    tokens: np.ndarray  # with the end-of-text token if the part ends the document
    bytes: int  # of text
    begins: bool  # whether it is the beginning of the document
    ends: bool  # whether it is the end of the document


class RowWriter:
    """Writes the rows of one set, packed or ragged, one table at a time.

    `rows` and `inputs` (input tokens) include rows that are not written yet. With `keep_tail`, a packed set keeps its
    last, shorter row. `vocabulary` is the number of tokens, `end` the id of the end-of-text token.
    """

    def __init__(self, path: Path, data: Data, vocabulary: int, end: int, keep_tail: bool) -> None:
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({"input_ids": List(Value("int32")), "text_bytes": Value("float64")})
        self._arrow = ArrowWriter(path=str(path), features=features)
        self._stride, self._pack, self._end, self._keep_tail = data.sequence_length, data.pack, end, keep_tail
        self._masks_starts = data.pack and data.attend == "within"
        self._pending: list[_Part] = []  # not written yet
        # tokens and shares of a row that is not complete
        self._remainder: tuple[np.ndarray, np.ndarray] = np.empty(0, np.int32), np.empty(0)
        self._document_tokens = 0  # tokens so far of the document that continues
        self._in_document = False  # whether the next part continues a document
        self.documents = self.bytes = self.tokens = self.rows = self.inputs = 0
        self.frequencies, self.digest = np.zeros(vocabulary, np.int64), hashlib.sha256()

    def add(self, ids: Sequence[int], raw: bytes, more: bool = False) -> None:
        """Add a document or a piece of it: its tokens without the end-of-text token, and its text (UTF-8). `more`:
        whether the next call continues the document."""
        tokens = np.empty(len(ids) + (not more), np.int32)
        tokens[: len(ids)] = ids
        if not more:
            tokens[-1] = self._end
        part = _Part(tokens, len(raw), begins=not self._in_document, ends=not more)
        self.digest.update(hashlib.sha256(raw).digest() + hashlib.sha256(tokens.tobytes()).digest())
        tables = self.tokens // _TOKENS_AT_ONCE
        self.documents, self.bytes, self.tokens = (
            self.documents + part.ends,
            self.bytes + len(raw),
            self.tokens + len(tokens),
        )
        if self._pack:
            self.rows = (self.tokens - 1) // self._stride
            self.inputs = self.rows * self._stride
        else:
            length = self._document_tokens + len(ids)
            self.rows += -(-length // self._stride) - -(-self._document_tokens // self._stride)
            self.inputs, self._document_tokens = self.inputs + len(ids), 0 if part.ends else length
        self._in_document = more
        if self._pack or (part.begins and part.ends):
            self._pending.append(part)
        else:
            self._write_piece(part)
        if self.tokens // _TOKENS_AT_ONCE > tables:
            self._flush()

    def close(self) -> SetCounts:
        """Write the remaining rows; returns the counts of the set."""
        self._flush()
        tokens, shares = self._remainder
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
            tokens, shares = np.concatenate([self._remainder[0], tokens]), np.concatenate([self._remainder[1], shares])
            starts = np.arange(0, (len(tokens) - 1) // self._stride * self._stride, self._stride)
            self._write(tokens, shares, starts, starts + self._stride + 1)
            written = len(starts) * self._stride
            self._remainder = tokens[written:].copy(), shares[written:].copy()
        else:
            begins = np.cumsum(lengths) - lengths
            offsets = [np.arange(0, length - 1, self._stride) for length in lengths]
            starts = np.concatenate([begin + offset for begin, offset in zip(begins, offsets, strict=True)])
            ends = np.repeat(begins + lengths, [len(offset) for offset in offsets])
            self._write(tokens, shares, starts, np.minimum(starts + self._stride + 1, ends))

    def _write_piece(self, part: "_Part") -> None:
        """Write the complete ragged rows of a document in pieces, and at its end the last, shorter one."""
        self._flush()  # preceding documents
        self.frequencies += np.bincount(part.tokens, minlength=len(self.frequencies))
        tokens = np.concatenate([self._remainder[0], part.tokens])
        shares = np.concatenate([self._remainder[1], self._shares(part)])
        stop = len(tokens) - 1 if part.ends else max(0, len(tokens) - 1) // self._stride * self._stride
        starts = np.arange(0, stop, self._stride)
        self._write(tokens, shares, starts, np.minimum(starts + self._stride + 1, len(tokens)))
        self._remainder = (
            (np.empty(0, np.int32), np.empty(0)) if part.ends else (tokens[stop:].copy(), shares[stop:].copy())
        )

    def _shares(self, part: "_Part") -> np.ndarray:
        """Bytes of text per token: the part's mean; 0 for the end-of-text token, and for the first token of a document
        if its label is masked (data.attend=within)."""
        shares = np.full(len(part.tokens), part.bytes / max(1, len(part.tokens) - part.ends))
        if part.ends:
            shares[-1] = 0
        if self._masks_starts and part.begins:
            shares[:1] = 0
        return shares

    def _write(self, tokens: np.ndarray, shares: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Write rows tokens[start:end] as one table. A row's bytes are those of its targets: all but the first."""
        import pyarrow as pa

        if not len(starts):
            return
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        indices = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        row_shares = shares[indices]
        row_shares[offsets[:-1]] = 0
        rows = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens[indices], pa.int32()))
        table = pa.table({"input_ids": rows, "text_bytes": np.add.reduceat(row_shares, offsets[:-1])})
        self._arrow.write_table(table, len(starts))
