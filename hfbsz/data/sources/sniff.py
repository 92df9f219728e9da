"""Guess from its first lines whether a file holds JSON lines, a JSON document or a table, regardless of its suffix."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

_OBJECT = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:')
_ARRAY = re.compile(r'\s*\[\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:')
_COLUMN_NAME = re.compile(r"[^\W\d][\w .:/()#%&?-]{0,39}")
# delimiter: (description, format, number of lines with the same number of fields that is unlikely to be chance)
_DELIMITERS = {"\t": ("tab-separated", "tsv", 5), ",": ("comma-separated", "csv", 10)}
_DELIMITERS |= {";": ("semicolon-separated", "csv", 10), "|": ("bar-separated", "csv", 10)}
_MAX_NAME_WORDS = 4
_MIN_ROWS_WITHOUT_HEADER = 20


@dataclass(frozen=True)
class Guess:
    """What a file seems to hold, and the recipe fields that read it."""

    what: str
    fields: dict[str, str]  # field of the recipe's part -> value
    weak: bool = False  # whether text files may look the same: one JSON object (a notebook), columns without names

    def words(self, part: str) -> str:
        """The command-line words that set the fields, such as `data.format=jsonl`."""
        return " ".join(f"{part}.{field}={value}" for field, value in self.fields.items())


def guess_format(head: Iterable[str], needed: Iterable[str], last_is_complete: bool) -> Guess | None:
    """What the first lines of a file hold; None for text.

    `needed` are the columns that the task reads; `last_is_complete` says whether the last line was read to its end.
    """
    lines = [line for line in head if line.strip()]
    if not lines:
        return None
    if _OBJECT.match(lines[0]):
        is_cut = len(lines) == 1 and not last_is_complete  # one line, longer than `head`
        if is_cut or _is_object(lines[0]):
            return Guess("JSON lines", {"format": "jsonl"}, weak=len(lines) == 1)
    start = "".join(lines[:20])
    if _ARRAY.match(start):
        return Guess("a JSON array of objects", {"format": "json"})
    if _OBJECT.match(start) and lines[0].strip() != lines[0].strip().rstrip("{,["):
        return Guess("a JSON object", {"format": "json"}, weak=True)
    return _guess_table(lines if last_is_complete else lines[:-1], set(needed))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _guess_table(lines: list[str], needed: set[str]) -> Guess | None:
    if not lines:
        return None
    for delimiter, (description, file_format, min_rows) in _DELIMITERS.items():
        if delimiter not in lines[0]:
            continue
        for rows in _parsed(lines, delimiter):
            count = len(rows[0])
            if count < 2 or any(len(row) != count for row in rows):
                continue
            has_header = len(set(rows[0])) == count and all(map(_is_name, rows[0])) and rows[0] not in rows[1:]
            if (has_header and len(rows) >= min_rows) or (len(rows) > 1 and needed and needed <= set(rows[0])):
                return Guess(f"a {description} table", {"format": file_format})
            if delimiter == "\t" and len(rows) >= _MIN_ROWS_WITHOUT_HEADER and all(row[0].strip() for row in rows):
                fields = {"format": "tsv", "header": "false"}
                return Guess("a tab-separated table without a header (columns 0, 1, …)", fields, weak=True)
    return None


def _is_name(cell: str) -> bool:
    cell = cell.strip()
    return bool(_COLUMN_NAME.fullmatch(cell)) and len(cell.split()) <= _MAX_NAME_WORDS


def _parsed(lines: list[str], delimiter: str) -> list[list[list[str]]]:
    """The rows with quotes as ordinary characters, and, where that is possible, with quoted fields."""
    parsed = [[line.rstrip("\r\n").split(delimiter) for line in lines]]
    try:
        quoted = list(csv.reader(lines, delimiter=delimiter, strict=True))
        parsed += [quoted] if quoted else []
    except csv.Error:
        pass
    return parsed
