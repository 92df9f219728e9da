"""Encode texts with gigatoken if it is installed, else with the tokenizer's own library.

gigatoken (the optional dependency `hfbsz[fast]`) is many times faster for byte-level and SentencePiece BPE tokenizers.
Its ids are compared with the tokenizer's own: first on a sample, then on a part of every batch.
"""

from collections.abc import Sequence
from typing import Any

from hfbsz.data.tokenizer.encoding import encode_plain, is_backend_error
from hfbsz.errors import UserError

_SAMPLE = 2**16  # characters that are compared before gigatoken is used
_COMPARED = 2**11  # characters of every batch that are compared
_RESET_AFTER = 2**26  # characters after which gigatoken's tokenizer is rebuilt, because its word cache has no limit


class PlainEncoder:
    """`encode_plain` of one tokenizer, for large amounts of text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._fast = _gigatoken(tokenizer)
        self._checked = False
        self._characters = self._batches = 0
        backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        added = backend.get_added_tokens_decoder().values() if backend is not None else ()
        self._special = [token.content for token in added if token.special]
        self._prefixes = {name[:2] for name in self._special}  # few, even if there are hundreds of special tokens

    @property
    def is_fast(self) -> bool:
        """Whether gigatoken is used."""
        return self._fast is not None

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, equal to those of `encode_plain`. Raises UserError if gigatoken later gives others."""
        if self._fast is not None and not self._checked:
            self._check(texts)
        if self._fast is None:
            return encode_plain(self.tokenizer, texts)
        # gigatoken encodes the names of special tokens as special tokens
        with_special = [index for index, text in enumerate(texts) if self._has_special(text)]
        encoded = self._fast.encode_batch_list(list(texts))
        replacements = encode_plain(self.tokenizer, [texts[index] for index in with_special])
        for index, ids in zip(with_special, replacements, strict=True):
            encoded[index] = ids
        self._compare(texts[self._batches % len(texts)][:_COMPARED])
        self._batches += 1
        self._characters += sum(map(len, texts))
        if self._characters > _RESET_AFTER:
            self._fast, self._characters = _gigatoken(self.tokenizer), 0
        return encoded

    def _check(self, texts: Sequence[str]) -> None:
        """Do not use gigatoken if it gives other ids, or fails, on the first texts."""
        sample, remaining = [], _SAMPLE
        for text in texts:
            sample.append(text[:remaining])
            remaining -= len(text)
            if remaining <= 0:
                break
        plain = [text for text in sample if not self._has_special(text)]
        try:
            same = self._fast.encode_batch_list(plain) == encode_plain(self.tokenizer, plain)
        except BaseException as problem:  # it raises errors of many types on tokenizers that it does not support
            if not isinstance(problem, Exception) and not is_backend_error(problem):
                raise
            same = False
        self._fast, self._checked = self._fast if same else None, True

    def _compare(self, text: str) -> None:
        if self._has_special(text):
            return
        if self._fast.encode_batch_list([text]) != encode_plain(self.tokenizer, [text]):
            raise UserError(
                f"gigatoken gives other tokens than the tokenizer on the text that starts with {text[:40]!r}: "
                "pip uninstall gigatoken"
            )

    def _has_special(self, text: str) -> bool:
        return any(prefix in text for prefix in self._prefixes) and any(name in text for name in self._special)


def _gigatoken(tokenizer: Any) -> Any:
    """gigatoken's form of a tokenizer; None if it is not installed or does not support the tokenizer."""
    if not tokenizer.is_fast:
        return None
    try:
        import gigatoken

        return gigatoken.Tokenizer(tokenizer.backend_tokenizer)
    except BaseException as problem:  # each unsupported kind of tokenizer raises another type of error
        if not isinstance(problem, Exception) and not is_backend_error(problem):
            raise
        return None
