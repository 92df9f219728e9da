"""Long documents in pieces: a document of any size is read, counted and tokenised with little memory.

A piece ends between a letter and white space where there is such a place. The pre-tokenizers in use (those of GPT-2,
Llama 3, BERT, SentencePiece) split there whatever follows, so the tokens of the pieces are those of the whole document.
Each piece brings the end of the one before it as context, by which that is checked when it is tokenised.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONGEST = 2**20  # characters of a document that is not cut
PIECE = 2**17  # characters of a piece of a longer one: many pieces are tokenised at once, on all cores
_CONTEXT = 64  # characters, about


@dataclass(frozen=True)
class Piece:
    """A part of a document's text; `before` is the end of the part before it, empty at the document's beginning."""

    text: str
    more: bool
    before: str = ""


def pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """The text that `chunks` make up, whole where it is no longer than LONGEST characters, else in pieces."""
    text, start, before, long = "", 0, "", False
    for chunk in _joined(chunks):
        text, start = text[start:] + chunk, 0
        long = long or len(text) > LONGEST
        while long and len(text) - start > 2 * PIECE:
            end = _cut(text, start, start + PIECE)
            piece = text[start:end]
            yield Piece(piece, True, before)
            before, start = _context(piece), end
    yield Piece(text[start:], False, before)


def _joined(chunks: Iterable[str]) -> Iterator[str]:
    """Short chunks, such as lines, joined to longer ones."""
    held: list[str] = []
    length = 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length >= PIECE:
            yield "".join(held)
            held, length = [], 0
    yield "".join(held)


def _cut(text: str, start: int, end: int) -> int:
    """The last place before `end` where white space follows a letter; else after a line's end; else `end`."""
    lowest = max(start + 1, end - PIECE // 2)
    for place in range(end, lowest, -1):
        if text[place].isspace() and text[place - 1].isalpha():
            return place
    line = text.rfind("\n", lowest, end) + 1
    return line or end


def _context(text: str) -> str:
    """The end of a piece, from where white space follows a letter."""
    start = max(0, len(text) - _CONTEXT)
    for place in range(start, max(0, start - _CONTEXT), -1):
        if text[place].isspace() and text[place - 1].isalpha():
            return text[place:]
    return text[start:]
