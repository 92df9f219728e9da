"""Texts from the values of columns: what counts as text, and texts built from several columns."""

import math
import string
from collections.abc import Mapping
from typing import Any

from hfbsz.errors import UserError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def as_text(value: Any) -> str | None:
    """A value as text: None where it is null or not a number. Raises ValueError for lists, mappings and bytes."""
    if isinstance(value, str):
        return value
    if is_missing(value):
        return None
    if isinstance(value, list | tuple | Mapping | bytes):
        raise ValueError(f"it holds a {type(value).__name__}, not text")
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether a value is null: None, or NaN, which tables with missing numbers hold."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def unescape(text: str) -> str:
    r"""`\n`, `\t`, `\r` and `\\`, which a shell and a plain YAML scalar pass on as two characters, as one."""
    parts, start = [], 0
    while (place := text.find("\\", start)) >= 0:
        sign = text[place + 1 : place + 2]
        parts.append(text[start:place] + _ESCAPES.get(sign, "\\" + sign))
        start = place + 2
    return "".join([*parts, text[start:]])


class Template:
    """A text with column names in braces, `{instruction}\n{input}`; `{{` is a brace. Raises UserError for a pattern
    that is none."""

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
        """The text of a row. An empty column is left out with the words between it and the column before it."""
        text, any_yet = "", False
        for literal, name in self._parts:
            if name is None:
                text += literal
                continue
            value = as_text(row.get(name)) or ""
            if value.strip() or not any_yet:
                text += literal + value
            any_yet = any_yet or bool(value.strip())
        return text if any_yet else ""
