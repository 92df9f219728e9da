"""What is told where a table does not fit: what stands there, and the words that read it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hfbsz.data.sources.dialects import NAMES, head_rows, read_head
from hfbsz.data.sources.lines import Dialect, Lines
from hfbsz.data.sources.open_file import Format
from hfbsz.data.sources.records import Columns
from hfbsz.data.sources.sniff import seems
from hfbsz.display import command

_SHOWN = 100  # characters of a row in a message
_WORDS_OF_A_NAME = 4
_LINES_BEFORE = 20  # lines that may stand before those of a table
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_OF_A_TEXT = ("text", "response", "messages")  # fields whose columns are the longest


def missing(path: Path, columns: Columns, form: Format, dialect: Dialect) -> str:
    """What to type where the first line does not name the columns: another format, or no header."""
    head = read_head(path, form)
    other = seems(head, (), ended=True)
    if other is not None and "table" not in other.what:
        return f"; it seems to hold {other.what}: {other.words(form.part)}"
    if form.header is True and (line := _naming(head, columns, form, dialect)) is not None:
        return f"; line {line + 1} names them: {form.part}.skip_lines={line}"
    rows = head_rows(head, form, dialect)
    if form.header is not True or len(rows) < 2 or not _is_data(rows[0], rows[1:]):
        return ""
    return f"; the first line seems to be a row: {_without_header(columns, form, rows)} reads it as one"


def _naming(head: list[str], columns: Columns, form: Format, dialect: Dialect) -> int | None:
    """The number of lines before one that names the columns."""
    wanted = set(columns.needed.values())
    for before in range(1, min(len(head), _LINES_BEFORE)):
        for sign in dict.fromkeys((dialect.delimiter, ",", ";", "\t", "|")):
            row = head_rows(head[before : before + 1], form, replace(dialect, delimiter=sign, skipped=0))
            if row and wanted <= set(row[0]):
                return before
    return None


def _is_data(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether a first line holds values and no names: numbers, sentences, or what stands in its column again."""
    for place, cell in enumerate(first):
        again = sum(place < len(row) and row[place] == cell for row in rest)
        if _NUMBER.fullmatch(cell.strip()) or len(cell.split()) > _WORDS_OF_A_NAME or (cell.strip() and again):
            return True
    return False


def _without_header(columns: Columns, form: Format, rows: Sequence[Sequence[str]]) -> str:
    """Words that name the columns by their places, guessed by their values: texts are long, labels are few."""
    count = len(rows[0])
    even = [row for row in rows if len(row) == count]
    places = list(range(count))
    by_length = sorted(places, key=lambda place: -sum(len(row[place]) for row in even))
    by_values = sorted(places, key=lambda place: len({row[place] for row in even}))
    guessed: dict[str, int] = {}
    fields = [field for field in columns.needed if field.rpartition(".")[0] == form.part]
    for field in sorted(fields, key=lambda field: field.rpartition(".")[2] not in _OF_A_TEXT):
        order = by_values if field.endswith(".label") else by_length if field not in guessed else places
        free = [place for place in order if place not in guessed.values()]
        if free:
            guessed[field] = free[0]
    words = " ".join(f"{field}={place}" for field, place in guessed.items())
    return f"{form.part}.header=false {words}".strip()


def miscounted(
    path: Path, lines: Lines, number: int, row: Sequence[str], names: Sequence[str], form: Format, dialect: Dialect
) -> str:
    """A row of another number of fields than the columns: its lines, what it holds, and why that may be."""
    more = len(row) > len(names)
    of = "header" if form.header is True else f"first row ({form.part}.header=false)"
    of = of if not isinstance(form.header, tuple) else f"{form.part}.header"
    held = repr(list(row))
    held = held if len(held) <= _SHOWN else f"{held[:_SHOWN]}…"
    told = (
        f"{path}:{lines.first}: row {number} has {'more' if more else 'fewer'} fields than the {len(names)} of the {of}"
    )
    told += f" (it has {len(row)}: {held}): "
    if lines.number > lines.first:
        return told + (
            f"its quotes join lines {lines.first} to {lines.number}: where they are characters, "
            f"{form.part}.quoting=none"
        )
    sign = dialect.delimiter
    if more and form.header is True and (column := _unnamed(path, names, form, dialect)) is not None:
        listed = ",".join(column)
        return (
            told
            + f"each row has one more: name it, {form.part}.skip_lines={lines.first - 1} "
            + command(f"{form.part}.header=[{listed}]")
        )
    if more and dialect.reading == "none" and sign == "\t":
        return told + "take tabs out of the texts, or put quotes around them"
    if more:
        return told + f"put quotes around texts that hold {sign!r}, or name another {form.part}.delimiter"
    return told + (
        "it breaks inside a text, or its end is cut off; columns are separated by "
        f"{NAMES.get(sign, repr(sign))} ({form.part}.delimiter)"
    )


def _unnamed(path: Path, names: Sequence[str], form: Format, dialect: Dialect) -> list[str] | None:
    """The names of a table whose rows have each a column more: R's row names before the others, or an empty one that a
    delimiter at the end of a line makes. None where it may be part of a text."""
    rows = head_rows(read_head(path, form), form, dialect)[1:]
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        return None
    name = next(name for name in ("row", "row_name", "unnamed") if name not in names)
    if not any(row[-1].strip() for row in rows):
        return [*names, name]
    if len({row[0] for row in rows}) == len(rows) and all(_NUMBER.fullmatch(row[0]) for row in rows):
        return [name, *names]
    return None


def broken(path: Path, lines: Lines, form: Format, problem: Exception) -> str:
    """Quotes that no row ends with."""
    part = form.part
    if "end of data" in str(problem):
        what = f"{path}:{lines.first}: a quote is left open: nothing closes it up to line {lines.number}, the last"
    else:
        what = f"{path}:{lines.number}: broken csv: {problem}"
    return f"{what}: write quotes inside fields twice, or {part}.quoting=none where quotes are characters"
