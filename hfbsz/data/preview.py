"""A few training rows as readable text, with the part that the model learns marked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hfbsz.data import IGNORED
from hfbsz.data.manifest import Manifest
from hfbsz.data.rows import Pair, Prepared, Row, sample

_SHOWN = 240  # characters of a part; a longer one is shown as its beginning and end
_OPEN, _CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class ShownRow:
    """A row as parts of text, each learned or not; a classification row has its label instead of learned parts. Those
    of a preference pair are its prompt and chosen answer."""

    number: int
    parts: tuple[tuple[str, bool], ...]
    tokens: int
    learned: int  # tokens that the loss counts
    label: str | None = None
    rejected: str | None = None  # the learned text of the rejected answer

    def line(self) -> str:
        """The row as one line, with the learned parts in brackets."""
        text = "".join(f"{_OPEN}{part}{_CLOSE}" if learned else part for part, learned in self.parts)
        text = text.replace("\r", "").replace("\n", "⏎")
        if self.label is not None:
            return f"{text} → {_OPEN}{self.label}{_CLOSE}   ({self.tokens:,} tokens)"
        if self.rejected is not None:
            text += f" rather than {_OPEN}{self.rejected}{_CLOSE}".replace("\r", "").replace("\n", "⏎")
        return f"{text}   ({self.tokens:,} tokens, {self.learned:,} learned)"


@dataclass(frozen=True)
class Preview:
    """Sample rows, the columns that are read and those that are not, and what ends a text or an answer."""

    rows: tuple[ShownRow, ...]
    of: int  # training rows in total
    read: tuple[str, ...]
    unused: tuple[str, ...]
    end: str

    def lines(self) -> list[str]:
        """Lines for a console: each begins with a heading or ten spaces."""
        heading = f"rows      {len(self.rows)} of {self.of:,} training rows, what is learned in {_OPEN}{_CLOSE}:"
        rows = [f"          {row.number}: {row.line()}" for row in self.rows]
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else "; no other"
        columns = [f"columns   read: {', '.join(self.read)}{unused}"] if self.read != ("text",) or self.unused else []
        return [heading, *rows, *columns, *([f"end       {self.end}"] if self.end else [])]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON."""
        return asdict(self)


def preview(prepared: Prepared, tokenizer: Any, count: int = 3) -> Preview:
    """`count` training rows spread evenly over the set, decoded."""
    rows, manifest = prepared.train, prepared.manifest
    shown = tuple(_shown(rows[number], number, tokenizer, manifest.labels) for number in sample(len(rows), count))
    return Preview(shown, len(rows), manifest.columns, manifest.unused_columns, _end(manifest, tokenizer))


def _shown(row: Any, number: int, tokenizer: Any, labels: Sequence[str] | None) -> ShownRow:
    if isinstance(row, Pair):
        chosen, rejected = (_shown(side, number, tokenizer, None) for side in (row.chosen, row.rejected))
        answer = "".join(part for part, learned in rejected.parts if learned)
        total, learned = chosen.tokens + rejected.tokens, chosen.learned + rejected.learned
        return ShownRow(number, chosen.parts, total, learned, rejected=answer)
    tokens = row.tokens if isinstance(row, Row) else row
    if labels is not None:
        return ShownRow(number, ((_shortened(_text(tokens, tokenizer)), False),), len(tokens), 1, labels[row.labels[0]])
    counted = row.labels != IGNORED if isinstance(row, Row) else np.arange(len(tokens)) > 0
    boundaries = [0, *(np.flatnonzero(np.diff(counted)) + 1).tolist(), len(tokens)]
    spans = [(start, stop) for start, stop in pairwise(boundaries) if stop > start]
    parts = tuple((_shortened(_text(tokens[start:stop], tokenizer)), bool(counted[start])) for start, stop in spans)
    return ShownRow(number, parts, len(tokens), int(counted.sum()))


def _text(tokens: np.ndarray, tokenizer: Any) -> str:
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN * 2 // 3]} … {text[-_SHOWN // 3 :]}"


def _end(manifest: Manifest, tokenizer: Any) -> str:
    """What ends a text or an answer, and whether it is learned."""
    if manifest.labels is not None:
        return ""
    if manifest.end_ids is None:
        return f"{tokenizer.eos_token} ends every document, and is trained on"
    if manifest.end_token is None:
        return "no learned token ends generation: the tuned model does not stop by itself"
    return f"{manifest.end_token} ends an answer, and is trained on"
