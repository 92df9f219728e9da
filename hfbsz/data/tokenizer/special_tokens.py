"""Special tokens of a tokenizer, and their names inside of a user's texts, where they are text."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hfbsz.data.chat.marks import mapped, spare, texts_of


class Hidden(NamedTuple):
    """A value whose texts have one character in the place of each special token's name."""

    value: Any
    names: Mapping[str, str]  # character: the special token that it stands for


def special_names(tokenizer: Any) -> list[str]:
    """The special tokens that a text may name; what stands for unknown words, or blanks, is none of them."""
    named = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named |= set(tokenizer.all_special_tokens)
    return sorted((name for name in named if name.strip() and name != tokenizer.unk_token), key=len, reverse=True)


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches a special token, the longest first."""
    return re.compile("|".join(map(re.escape, special_names(tokenizer))) or "(?!)")


def hide(value: Any, pattern: re.Pattern[str]) -> Hidden:
    """A value without the names of special tokens in its texts."""
    texts = texts_of(value)
    met = {match for text in texts for match in pattern.findall(text)}
    if not met:
        return Hidden(value, {})
    signs = dict(zip(sorted(met), spare(texts), strict=False))
    return Hidden(
        mapped(value, lambda text: pattern.sub(lambda match: signs[match.group()], text)),
        {sign: name for name, sign in signs.items()},
    )
