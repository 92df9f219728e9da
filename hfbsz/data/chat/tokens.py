"""Encoding of rendered conversations: token ids, and the characters that each token stands for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from hfbsz.data.chat.template import Span
from hfbsz.data.tokenizer.encoding import State, encode_plain, temporary_state
from hfbsz.data.tokenizer.special_tokens import special_pattern


@dataclass(frozen=True)
class Tokens:
    """A text, and its tokens."""

    text: str
    ids: np.ndarray
    ends: np.ndarray  # end offset of each token in characters; a token begins where the one before it ends
    names: Mapping[str, str]  # private-use character in the text: the name of a special token that it stands for

    def within(self, spans: Sequence[Span]) -> np.ndarray:
        """Whether each token (bool, shape [tokens]) ends inside one of the spans. A token that crosses the start of a
        span counts as inside.

        Start offsets are not used: tokenizers that trim offsets give white space a width of zero.
        """
        inside = np.zeros(len(self.ids), bool)
        for start, end in spans:
            inside |= (self.ends > start) & (self.ends <= end)
        return inside

    def bytes_of(self, selected: np.ndarray) -> int:
        """UTF-8 bytes of the text of the selected tokens (bool, shape [tokens])."""
        changes = np.flatnonzero(np.diff(selected, prepend=False, append=False))
        starts = np.concatenate([[0], self.ends])
        runs = (self.text[starts[first] : starts[last]] for first, last in changes.reshape(-1, 2))
        return sum(len(self._with_names(run).encode()) for run in runs)

    def last_of(self, span: Span) -> int | None:
        """Index of the token with the last character of a span, trailing white space aside; None for a blank span."""
        end = span[0] + len(self.text[span[0] : span[1]].rstrip())
        return int(np.searchsorted(self.ends, end)) if end > span[0] else None

    def _with_names(self, text: str) -> str:
        return "".join(self.names.get(character, character) for character in text) if self.names else text


class _Piece(NamedTuple):
    start: int
    end: int
    as_text: bool  # whether special tokens in it are encoded as text


class Encoder:
    """Encodes rendered conversations by one tokenizer. Special tokens of the template are encoded as such; their names
    in the text of messages are encoded as text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = special_pattern(tokenizer)
        self._newline = encode_plain(tokenizer, ["\n"])[0]

    def __call__(self, text: str, spans: Sequence[Span], names: Mapping[str, str]) -> Tokens:
        """Tokens of a text in which the characters in `names` stand for special tokens that a message names. Raises
        ValueError if the tokenizer has no offsets and a token crosses the start or end of a span."""
        if names or not self.tokenizer.is_fast:
            return self._in_pieces(text, spans, names)
        ids, ends = self._with_ends(text)
        return Tokens(text, np.array(ids, np.int64), np.maximum.accumulate(np.array(ends, np.int64)), names)

    def _with_ends(self, text: str) -> tuple[list[int], list[int]]:
        rust = self.tokenizer.backend_tokenizer
        with temporary_state(rust, State()):
            encoding = rust.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    def _in_pieces(self, text: str, spans: Sequence[Span], names: Mapping[str, str]) -> Tokens:
        boundaries = sorted({boundary for span in spans for boundary in span})
        ids: list[int] = []
        ends: list[int] = []
        for piece in self._pieces(text, names):
            content = text[piece.start : piece.end]
            if not piece.as_text and self.tokenizer.is_fast:
                piece_ids, piece_ends = self._with_ends(content)
                ids, ends = ids + piece_ids, ends + [piece.start + end for end in piece_ends]
                continue
            inside = [boundary for boundary in boundaries if piece.start < boundary < piece.end]
            cuts = [piece.start, *inside, piece.end]
            parts = [self._part(text[start:end], piece.as_text, names) for start, end in pairwise(cuts)]
            if len(parts) > 1 and not piece.as_text and [*chain(*parts)] != self._part(content, False, names):
                raise ValueError(
                    "the tokenizer has no character offsets, and a token crosses the start or end of an answer: "
                    "use the fast form of the tokenizer (tokenizer.json)"
                )
            for part, end in zip(parts, cuts[1:], strict=True):
                ids, ends = ids + part, ends + [end] * len(part)
        return Tokens(text, np.array(ids, np.int64), np.maximum.accumulate(np.array(ends, np.int64)), names)

    def _pieces(self, text: str, names: Mapping[str, str]) -> list[_Piece]:
        """The pieces of a text between special tokens of the template; those that name a special token are text."""
        if not names:
            return [_Piece(0, len(text), False)]
        matches = self._special.finditer(text)
        boundaries = [0, *(boundary for match in matches for boundary in match.span()), len(text)]
        named = re.compile(f"[{''.join(map(re.escape, names))}]")
        pieces: list[_Piece] = []
        for number, (start, end) in enumerate(pairwise(boundaries)):
            as_text = number % 2 == 0 and named.search(text, start, end) is not None
            if pieces and not as_text and not pieces[-1].as_text:
                pieces[-1] = pieces[-1]._replace(end=end)
            elif end > start:
                pieces.append(_Piece(start, end, as_text))
        return pieces

    def _part(self, text: str, as_text: bool, names: Mapping[str, str]) -> list[int]:
        if not as_text:
            return self.tokenizer.encode(text, add_special_tokens=False)
        text = "".join(names.get(character, character) for character in text)
        # after a line break, so that SentencePiece adds no space before a piece that is not the beginning
        after, alone = encode_plain(self.tokenizer, ["\n" + text, text])
        size = len(self._newline)
        return after[size:] if after[:size] == self._newline else alone
