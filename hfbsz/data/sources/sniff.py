"""What the beginning of a file seems to hold, whatever its ending says: JSON lines, a JSON document, or a table."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

_OBJECT = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:')
_ARRAY = re.compile(r'\s*\[\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:')
_NAME = re.compile(r"[^\W\d][\w .:/()#%&?-]{0,39}")  # of a column
_SIGNS = {"\t": ("tab-separated", "tsv", 5), ",": ("comma-separated", "csv", 10)}
_SIGNS |= {";": ("semicolon-separated", "csv", 10), "|": ("bar-separated", "csv", 10)}  # and lines that are no chance
_WORDS_OF_A_NAME = 4
_ROWS_WITHOUT_HEADER = 20


@dataclass(frozen=True)
class Seeming:
    what: str
    fields: dict[str, str]  # of the recipe's part, that read it
    weak: bool = False  # what files of text may hold too: one JSON object (a notebook), columns without names

    def words(self, part: str) -> str:
        """What to type."""
        return " ".join(f"{part}.{field}={value}" for field, value in self.fields.items())


def seems(head: Iterable[str], wanted: Iterable[str], ended: bool) -> Seeming | None:
    """What the first lines of a file hold, where that is no text; `ended`: whether the last was read to its end."""
    lines = [line for line in head if line.strip()]
    if not lines:
        return None
    if _OBJECT.match(lines[0]):
        long = len(lines) == 1 and not ended  # longer than what was read
        if long or _is_object(lines[0]):
            return Seeming("JSON lines", {"format": "jsonl"}, weak=len(lines) == 1)
    start = "".join(lines[:20])
    if _ARRAY.match(start):
        return Seeming("a JSON array of objects", {"format": "json"})
    if _OBJECT.match(start) and lines[0].strip() != lines[0].strip().rstrip("{,["):
        return Seeming("a JSON object", {"format": "json"}, weak=True)
    return _table(lines if ended else lines[:-1], set(wanted))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _table(lines: list[str], wanted: set[str]) -> Seeming | None:
    for sign, (what, form, least) in _SIGNS.items():
        if sign not in lines[0] if lines else True:
            continue
        for rows in _readings(lines, sign):
            count = len(rows[0])
            if count < 2 or any(len(row) != count for row in rows):
                continue
            named = len(set(rows[0])) == count and all(map(_is_name, rows[0])) and rows[0] not in rows[1:]
            if (named and len(rows) >= least) or (len(rows) > 1 and wanted and wanted <= set(rows[0])):
                return Seeming(f"a {what} table", {"format": form})
            if sign == "\t" and len(rows) >= _ROWS_WITHOUT_HEADER and all(row[0].strip() for row in rows):
                fields = {"format": "tsv", "header": "false"}
                return Seeming("a tab-separated table without a header (columns 0, 1, …)", fields, weak=True)
    return None


def _is_name(cell: str) -> bool:
    cell = cell.strip()
    return bool(_NAME.fullmatch(cell)) and len(cell.split()) <= _WORDS_OF_A_NAME


def _readings(lines: list[str], sign: str) -> list[list[list[str]]]:
    found = [[line.rstrip("\r\n").split(sign) for line in lines]]
    try:
        quoted = list(csv.reader(lines, delimiter=sign, strict=True))
        found += [quoted] if quoted else []
    except csv.Error:
        pass
    return found
