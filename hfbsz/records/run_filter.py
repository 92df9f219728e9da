"""Filters and orders of the table of runs: `state=finished`, `loss<3.5`, `tokens>1M`, `optim.lr>=1e-3`, `-loss`."""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.amounts import Amount, parse_number, parse_seconds
from hfbsz.recipe.values import is_field, known_fields
from hfbsz.records.run_table import COLUMNS, ROW_STATES, Row

_FILTER = re.compile(r"([^<>=!]+)(<=|>=|!=|==?|<|>)(.*)", re.DOTALL)
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NULL = "null"  # as in a recipe; for a column: unknown
_UNITS = {"tokens": "tokens", "sequences": "sequences", "steps": "steps"}  # of a column that takes an amount


@dataclass(frozen=True)
class Option:
    """A value that a column is compared with; `number`: with its unit if it has one, None: text."""

    text: str
    number: float | Amount | None

    def equals(self, value: Any) -> bool:
        """Whether a value is this one; a text may contain wildcards."""
        if value is None or self.text == _NULL:
            return value is None and self.text == _NULL
        if (pair := _numbers(value, self.number)) is not None:
            return pair[0] == pair[1]
        return fnmatchcase(as_text(value), self.text)


@dataclass(frozen=True)
class Filter:
    """A condition on a column or a field of the recipe."""

    name: str
    sign: str  # = != < <= > >=
    options: tuple[Option, ...]  # = and !=: any of them; else one

    def keeps(self, row: Row) -> bool:
        """Whether a run meets the condition. A value that is unknown, or in another unit, meets only `!=`."""
        value = row.value(self.name)
        if self.sign in _ORDERS:
            pair = _numbers(value, self.options[0].number)
            return pair is not None and _ORDERS[self.sign](*pair)
        return any(option.equals(value) for option in self.options) == (self.sign == "=")


def parse_filter(word: str, others: Sequence[str] = ()) -> Filter | None:
    """The filter of a word such as `loss<3.5`; None if it is none. Raises UserError for an unknown column, a number
    that cannot be read, and an order of texts; `others`: names that are not columns, for the advice."""
    match = _FILTER.fullmatch(word)
    if match is None:
        return None
    name, sign, text = match[1].strip(), match[2].replace("==", "="), match[3].strip()
    check_column(name, others)
    texts = [text] if sign in _ORDERS else [part.strip() for part in text.split(",")]
    if not all(texts):
        raise UserError(f"{word}: a value is missing; {name}={_NULL} is for those that are unknown")
    options = tuple(Option(part, None if part == _NULL else _limit(name, part, word)) for part in texts)
    if sign in _ORDERS and options[0].number is None:
        raise UserError(f"{word}: {text!r} is not a number: write {name}=… or {name}!=… for text")
    if name == "state":
        for state in texts:
            if state not in (*ROW_STATES, _NULL) and not re.search(r"[*?\[]", state):
                near = did_you_mean(state, ROW_STATES)
                raise UserError(f"{word}: no such state{near}; there are {', '.join(ROW_STATES)}")
    return Filter(name, sign, options)


def check_column(name: str, others: Sequence[str] = ()) -> None:
    """Raise UserError if a name is neither a column nor a field of a recipe; `others`: further names for the advice."""
    if name in COLUMNS or is_field(name):
        return
    fields = known_fields(name)
    if inner := [field for field in fields if field.startswith(f"{name}.")]:
        raise UserError(f"{name}: no such column; fields of the recipe are {', '.join(inner)}")
    near = did_you_mean(name, [*COLUMNS, *others, *fields])
    listed = near or f"; the columns are {', '.join(COLUMNS)}"
    raise UserError(f"{name}: no such column or field of a recipe{listed}")


def in_order(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows ordered by columns or fields, the first name decides first; `-` before a name: descending. Unknown
    values are last in both directions. Raises UserError for an unknown name."""
    ordered = list(rows)
    for word in reversed(names):
        name = word.removeprefix("-")
        check_column(name)
        known = [row for row in ordered if row.value(name) is not None]
        known.sort(key=lambda row, name=name: _key(row.value(name)), reverse=word.startswith("-"))  # type: ignore[misc]
        ordered = [*known, *(row for row in ordered if row.value(name) is None)]
    return ordered


def as_text(value: Any) -> str:
    """A value as it is written in a recipe: `null`, `true`, a list or mapping as JSON."""
    if value is None or isinstance(value, bool | list | Mapping):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _limit(name: str, text: str, word: str) -> float | Amount | None:
    """The number that a value is compared with; None for text. Raises UserError if the column needs another one."""
    column = COLUMNS.get(name)
    if column is None:
        return _number(text)
    if column.is_text:
        return None
    try:
        if column.unit == "s" and not re.fullmatch(r"[\d.]+", text):
            return parse_seconds(text)
        if text.endswith("%") and name == "done":
            return parse_number(text[:-1]) / 100
        number = _number(text)
        if isinstance(number, Amount) and number.unit == _UNITS.get(column.unit):
            return number.value
        return number if isinstance(number, float) else parse_number(text)
    except ValueError as problem:
        unit = f" (its unit: {column.unit})" if column.unit else ""
        raise UserError(f"{word}: {problem}{unit}") from None


def _number(value: Any) -> float | Amount | None:
    """A number or an amount, from plain data or text; None if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    for parse in (parse_number, Amount.parse):
        try:
            return parse(value)
        except ValueError:
            pass
    return None


def _numbers(value: Any, limit: float | Amount | None) -> tuple[float, float] | None:
    """The numbers of a value and a limit; None if one is none, or their units differ."""
    number = _number(value)
    if isinstance(number, Amount) and isinstance(limit, Amount):
        return (number.value, limit.value) if number.unit == limit.unit else None
    return (number, limit) if isinstance(number, float) and isinstance(limit, float) else None


def _key(value: Any) -> tuple[int, float, str]:
    """Numbers first, then amounts by unit, then text."""
    number = _number(value)
    if isinstance(number, Amount):
        return 1, number.value, number.unit
    return (2, 0.0, as_text(value).casefold()) if number is None else (0, number, "")
