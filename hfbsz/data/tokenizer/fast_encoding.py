"""Text to token ids at the rate of gigatoken where that is installed, else of the tokenizer's own library.

gigatoken (the optional dependency `hfbsz[fast]`) gives the tokens of byte-level and SentencePiece BPE tokenizers, many
times as fast. It is believed only as far as it is checked: at first on a sample, then on a part of every batch.
"""

from collections.abc import Sequence
from typing import Any

from hfbsz.data.tokenizer.encoding import encode_plain, is_of_rust
from hfbsz.errors import UserError

_SAMPLE = 2**16  # characters that are compared before it is used
_CHECKED = 2**11  # characters of every batch that are compared
_RENEWED = 2**26  # characters after which it is built anew: its cache of words grows without end


class PlainEncoder:
    """`encode_plain` of one tokenizer, for large amounts of text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._fast = _gigatoken(tokenizer)
        self._checked = False
        self._characters = self._batches = 0
        rust = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        added = rust.get_added_tokens_decoder().values() if rust is not None else ()
        self._special = [token.content for token in added if token.special]
        self._beginnings = {word[:2] for word in self._special}  # few, where there are hundreds of special tokens

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode_plain` gives them. Raises UserError where the fast library no longer does."""
        if self._fast is not None and not self._checked:
            self._check(texts)
        if self._fast is None:
            return encode_plain(self.tokenizer, texts)
        slowly = [place for place, text in enumerate(texts) if self._has_special(text)]  # there it is a control token
        found = self._fast.encode_batch_list(list(texts))
        for place, ids in zip(slowly, encode_plain(self.tokenizer, [texts[place] for place in slowly]), strict=True):
            found[place] = ids
        self._compare(texts[self._batches % len(texts)][:_CHECKED])
        self._batches += 1
        self._characters += sum(map(len, texts))
        if self._characters > _RENEWED:
            self._fast, self._characters = _gigatoken(self.tokenizer), 0
        return found

    def _check(self, texts: Sequence[str]) -> None:
        """Leave the fast library aside where it gives other tokens, or fails, on the first texts."""
        sample, left = [], _SAMPLE
        for text in texts:
            sample.append(text[:left])
            left -= len(text)
            if left <= 0:
                break
        plain = [text for text in sample if not self._has_special(text)]
        try:
            same = self._fast.encode_batch_list(plain) == encode_plain(self.tokenizer, plain)
        except BaseException as problem:  # whatever a tokenizer of a kind that it does not know raises
            if not isinstance(problem, Exception) and not is_of_rust(problem):
                raise
            same = False
        self._fast, self._checked = self._fast if same else None, True

    def _compare(self, text: str) -> None:
        if self._has_special(text):
            return
        if self._fast.encode_batch_list([text]) != encode_plain(self.tokenizer, [text]):
            raise UserError(
                f"gigatoken gives other tokens than the tokenizer, from {text[:40]!r} on: pip uninstall gigatoken"
            )

    def _has_special(self, text: str) -> bool:
        return any(start in text for start in self._beginnings) and any(word in text for word in self._special)


def _gigatoken(tokenizer: Any) -> Any:
    """gigatoken's own form of a tokenizer; None where it is not installed, or does not know the tokenizer's kind."""
    if not tokenizer.is_fast:
        return None
    try:
        import gigatoken

        return gigatoken.Tokenizer(tokenizer.backend_tokenizer)
    except BaseException as problem:  # each unknown kind of tokenizer has an error of its own
        if not isinstance(problem, Exception) and not is_of_rust(problem):
            raise
        return None
