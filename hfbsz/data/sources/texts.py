"""Texts from column values: what counts as text, and templates that combine several columns."""

import math
import string
from collections.abc import Mapping
from typing import Any

from hfbsz.errors import UserError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def as_text(value: Any) -> str | None:
    """A value as text; None for null and NaN. Raises ValueError for lists, tuples, mappings and bytes."""
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    if isinstance(value, list | tuple | Mapping | bytes):
        raise ValueError(f"it holds a {type(value).__name__}, not text")
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN, which stands for a missing value in numeric columns."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def unescape(text: str) -> str:
    r"""The text with `\n`, `\t`, `\r` and `\\` replaced by the characters that they stand for.

    A shell and a plain YAML scalar pass each of them on as two characters.
    """
    parts, start = [], 0
    while (index := text.find("\\", start)) >= 0:
        character = text[index + 1 : index + 2]
        parts.append(text[start:index] + _ESCAPES.get(character, "\\" + character))
        start = index + 2
    return "".join([*parts, text[start:]])


class Template:
    """A text with column names in braces, such as `{instruction}\n{input}`; `{{` is a literal brace.

    Raises UserError for a pattern that is not valid or names no column.
    """

    def __init__(self, pattern: str, field: str) -> None:
        try:
            parts = list(string.Formatter().parse(unescape(pattern)))
        except ValueError as problem:
            raise UserError(f"{field}: {pattern!r}: {problem}: write {{column}}, and {{{{ for a brace") from None
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.columns = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        if not self.columns or "" in self.columns or any(spec or kind for _, _, spec, kind in parts):
            raise UserError(f"{field}: {pattern!r} names no column: write column names in braces, {{instruction}}")

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text of a row. An empty column is dropped together with the literal text between it and the column
        before it; the result is empty if all columns are."""
        text, has_value = "", False
        for literal, name in self._parts:
            if name is None:
                text += literal
                continue
            value = as_text(row.get(name)) or ""
            if value.strip() or not has_value:
                text += literal + value
            has_value = has_value or bool(value.strip())
        return text if has_value else ""
