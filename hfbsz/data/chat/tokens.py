"""Rendered conversations as token ids: which tokens belong to an answer, and what each of them stands for."""

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
    """The tokens of a text."""

    text: str
    ids: np.ndarray
    ends: np.ndarray  # the character behind each token; a token begins where the one before it ends
    names: Mapping[str, str]  # characters of the text that stand for the name of a special token

    def within(self, spans: Sequence[Span]) -> np.ndarray:
        """Whether each token ends inside one of the spans: one that straddles a beginning is part of what is said.

        Starts of tokens are not asked for: tokenizers that trim offsets give runs of blanks a width of nothing.
        """
        inside = np.zeros(len(self.ids), bool)
        for start, end in spans:
            inside |= (self.ends > start) & (self.ends <= end)
        return inside

    def bytes_of(self, kept: np.ndarray) -> int:
        """Bytes of the text that the kept tokens stand for."""
        changes = np.flatnonzero(np.diff(kept, prepend=False, append=False))
        starts = np.concatenate([[0], self.ends])
        runs = (self.text[starts[first] : starts[last]] for first, last in changes.reshape(-1, 2))
        return sum(len(self._named(run).encode()) for run in runs)

    def last_of(self, span: Span) -> int | None:
        """The place of the token that holds the last character of a span, blanks at its end aside."""
        end = span[0] + len(self.text[span[0] : span[1]].rstrip())
        return int(np.searchsorted(self.ends, end)) if end > span[0] else None

    def _named(self, text: str) -> str:
        return "".join(self.names.get(character, character) for character in text) if self.names else text


class _Piece(NamedTuple):
    start: int
    end: int
    as_text: bool  # whether the names of special tokens are text in it


class Encoder:
    """Encodes rendered conversations by one tokenizer: what the template writes gives special tokens, what a message
    says gives none."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = special_pattern(tokenizer)
        self._newline = encode_plain(tokenizer, ["\n"])[0]

    def __call__(self, text: str, spans: Sequence[Span], names: Mapping[str, str]) -> Tokens:
        """Tokens of a text in which `names` stand for special tokens that a message names. Raises ValueError where the
        tokenizer does not tell which characters a token stands for, and no token border is known at a span's."""
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
        borders = sorted({border for span in spans for border in span})
        ids: list[int] = []
        ends: list[int] = []
        for piece in self._pieces(text, names):
            said = text[piece.start : piece.end]
            if not piece.as_text and self.tokenizer.is_fast:
                found, places = self._with_ends(said)
                ids, ends = ids + found, ends + [piece.start + place for place in places]
                continue
            cuts = [piece.start, *(border for border in borders if piece.start < border < piece.end), piece.end]
            parts = [self._part(text[start:end], piece.as_text, names) for start, end in pairwise(cuts)]
            if len(parts) > 1 and not piece.as_text and [*chain(*parts)] != self._part(said, False, names):
                raise ValueError(
                    "the tokenizer does not tell which characters its tokens stand for, and they reach across the "
                    "border of an answer: take the fast form of the tokenizer (tokenizer.json)"
                )
            for part, end in zip(parts, cuts[1:], strict=True):
                ids, ends = ids + part, ends + [end] * len(part)
        return Tokens(text, np.array(ids, np.int64), np.maximum.accumulate(np.array(ends, np.int64)), names)

    def _pieces(self, text: str, names: Mapping[str, str]) -> list[_Piece]:
        """A text cut at those of the template's special tokens between which a message names one."""
        if not names:
            return [_Piece(0, len(text), False)]
        borders = [0, *(border for match in self._special.finditer(text) for border in match.span()), len(text)]
        named = re.compile(f"[{''.join(map(re.escape, names))}]")
        pieces: list[_Piece] = []
        for number, (start, end) in enumerate(pairwise(borders)):
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
        # behind a line break, so that SentencePiece puts no blank before what is no beginning
        behind, alone = encode_plain(self.tokenizer, ["\n" + text, text])
        size = len(self._newline)
        return behind[size:] if behind[:size] == self._newline else alone
