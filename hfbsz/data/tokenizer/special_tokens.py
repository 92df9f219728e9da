"""Special tokens of a tokenizer, and their names inside user texts, where they are ordinary text."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hfbsz.data.chat.marks import mapped, spare, texts_of


class Hidden(NamedTuple):
    """A value in whose texts each name of a special token is replaced by a single character."""

    value: Any
    names: Mapping[str, str]  # character -> the name that it replaces


def special_names(tokenizer: Any) -> list[str]:
    """The names of the special tokens that a text may contain, longest first, without blank ones and the unknown
    token."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return sorted((name for name in names if name.strip() and name != tokenizer.unk_token), key=len, reverse=True)


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """A pattern that matches the name of any special token, preferring longer names."""
    return re.compile("|".join(map(re.escape, special_names(tokenizer))) or "(?!)")


def hide(value: Any, pattern: re.Pattern[str]) -> Hidden:
    """The value with each match of the pattern in its texts replaced by a character that occurs in none of them."""
    texts = texts_of(value)
    names = {match for text in texts for match in pattern.findall(text)}
    if not names:
        return Hidden(value, {})
    characters = dict(zip(sorted(names), spare(texts), strict=False))
    return Hidden(
        mapped(value, lambda text: pattern.sub(lambda match: characters[match.group()], text)),
        {character: name for name, character in characters.items()},
    )
