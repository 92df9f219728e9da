"""Splits long documents into pieces, so that a document of any size is tokenized with little memory.

A piece ends between a letter and white space if there is such a position. Common pre-tokenizers (those of GPT-2, Llama
3, BERT, SentencePiece) always split there, so the tokens of the pieces are those of the full document. This is checked
when a piece is tokenized, with the end of the preceding piece as context.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONGEST = 2**20  # characters of a document that is not split
PIECE = 2**17  # characters of a piece: small, so that many pieces are tokenized in parallel
_CONTEXT = 64  # characters, approximately


@dataclass(frozen=True)
class Piece:
    """A part of a document's text, or all of it."""

    text: str
    more: bool  # whether the next piece continues the document
    before: str = ""  # the end of the preceding piece; empty at the beginning of the document


def pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """The text of `chunks` as one piece if it has at most LONGEST characters, otherwise as several pieces."""
    text, start, before, long = "", 0, "", False
    for chunk in _joined(chunks):
        text, start = text[start:] + chunk, 0
        long = long or len(text) > LONGEST
        while long and len(text) - start > 2 * PIECE:
            end = _split_position(text, start, start + PIECE)
            piece = text[start:end]
            yield Piece(piece, True, before)
            before, start = _context(piece), end
    yield Piece(text[start:], False, before)


def _joined(chunks: Iterable[str]) -> Iterator[str]:
    """Chunks (such as lines) joined to longer ones."""
    buffer: list[str] = []
    length = 0
    for chunk in chunks:
        buffer.append(chunk)
        length += len(chunk)
        if length >= PIECE:
            yield "".join(buffer)
            buffer, length = [], 0
    yield "".join(buffer)


def _split_position(text: str, start: int, end: int) -> int:
    """The last position up to `end` where white space follows a letter; else after a line break; else `end`."""
    lowest = max(start + 1, end - PIECE // 2)
    for position in range(end, lowest, -1):
        if text[position].isspace() and text[position - 1].isalpha():
            return position
    line = text.rfind("\n", lowest, end) + 1
    return line or end


def _context(text: str) -> str:
    """The end of a piece, beginning if possible where white space follows a letter."""
    start = max(0, len(text) - _CONTEXT)
    for position in range(start, max(0, start - _CONTEXT), -1):
        if text[position].isspace() and text[position - 1].isalpha():
            return text[position:]
    return text[start:]
