"""Messages for tables that cannot be read as the recipe says: what the file holds, and the fields that read it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hfbsz.data.sources.dialects import DELIMITER_NAMES, head_rows, read_head
from hfbsz.data.sources.lines import Dialect, Lines
from hfbsz.data.sources.open_file import ReadOptions
from hfbsz.data.sources.records import Columns
from hfbsz.data.sources.sniff import guess_format
from hfbsz.display import command

_SHOWN_CHARACTERS = 100  # of a row in a message
_MAX_NAME_WORDS = 4
_MAX_LINES_BEFORE_HEADER = 20
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_TEXT_FIELDS = ("text", "response", "messages")  # fields that usually name the column with the longest values


def missing_columns(path: Path, columns: Columns, options: ReadOptions, dialect: Dialect) -> str:
    """The advice if the first line does not name the needed columns: another format, or no header; may be empty."""
    head = read_head(path, options)
    guess = guess_format(head, (), last_is_complete=True)
    if guess is not None and "table" not in guess.what:
        return f"; it seems to hold {guess.what}: {guess.words(options.part)}"
    if options.header is True and (before := _lines_before_header(head, columns, options, dialect)) is not None:
        return f"; line {before + 1} names them: {options.part}.skip_lines={before}"
    rows = head_rows(head, options, dialect)
    if options.header is not True or len(rows) < 2 or not _is_data(rows[0], rows[1:]):
        return ""
    return f"; the first line seems to be a row: {_without_header(columns, options, rows)} reads it as one"


def _lines_before_header(head: list[str], columns: Columns, options: ReadOptions, dialect: Dialect) -> int | None:
    """The number of lines before one that names the needed columns; None if there is no such line."""
    needed = set(columns.needed.values())
    for before in range(1, min(len(head), _MAX_LINES_BEFORE_HEADER)):
        for delimiter in dict.fromkeys((dialect.delimiter, ",", ";", "\t", "|")):
            line_dialect = replace(dialect, delimiter=delimiter, skip_lines=0)
            row = head_rows(head[before : before + 1], options, line_dialect)
            if row and needed <= set(row[0]):
                return before
    return None


def _is_data(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether the first line holds values instead of names: numbers, sentences, or values that its column repeats."""
    for index, cell in enumerate(first):
        repeats = sum(index < len(row) and row[index] == cell for row in rest)
        if _NUMBER.fullmatch(cell.strip()) or len(cell.split()) > _MAX_NAME_WORDS or (cell.strip() and repeats):
            return True
    return False


def _without_header(columns: Columns, options: ReadOptions, rows: Sequence[Sequence[str]]) -> str:
    """The words that name the columns by index, guessed from their values: texts are long, labels have few values."""
    count = len(rows[0])
    even_rows = [row for row in rows if len(row) == count]
    indices = list(range(count))
    by_length = sorted(indices, key=lambda index: -sum(len(row[index]) for row in even_rows))
    by_distinct = sorted(indices, key=lambda index: len({row[index] for row in even_rows}))
    assigned: dict[str, int] = {}
    fields = [field for field in columns.needed if field.rpartition(".")[0] == options.part]
    for field in sorted(fields, key=lambda field: field.rpartition(".")[2] not in _TEXT_FIELDS):
        order = by_distinct if field.endswith(".label") else by_length if field not in assigned else indices
        free = [index for index in order if index not in assigned.values()]
        if free:
            assigned[field] = free[0]
    words = " ".join(f"{field}={index}" for field, index in assigned.items())
    return f"{options.part}.header=false {words}".strip()


def wrong_field_count(
    path: Path,
    lines: Lines,
    number: int,
    row: Sequence[str],
    names: Sequence[str],
    options: ReadOptions,
    dialect: Dialect,
) -> str:
    """The message for a row with another number of fields than the header: its line, its content and the likely cause.

    `number` is the row's number from 1, and `names` are those of the columns.
    """
    part = options.part
    has_more = len(row) > len(names)
    expected_by = "header" if options.header is True else f"first row ({part}.header=false)"
    expected_by = f"{part}.header" if isinstance(options.header, tuple) else expected_by
    content = repr(list(row))
    content = content if len(content) <= _SHOWN_CHARACTERS else f"{content[:_SHOWN_CHARACTERS]}…"
    message = (
        f"{path}:{lines.row_start}: row {number} has {'more' if has_more else 'fewer'} fields than the {len(names)} of "
        f"the {expected_by} (it has {len(row)}: {content}): "
    )
    if lines.number > lines.row_start:
        return message + (
            f"its quotes join lines {lines.row_start} to {lines.number}: set {part}.quoting=none if they are ordinary "
            "characters"
        )
    delimiter = dialect.delimiter
    if has_more and options.header is True and (all_names := _with_unnamed(path, names, options, dialect)) is not None:
        listed = ",".join(all_names)
        return (
            message
            + f"each row has one more: name it, {part}.skip_lines={lines.row_start - 1} "
            + command(f"{part}.header=[{listed}]")
        )
    if has_more and dialect.quoting == "none" and delimiter == "\t":
        return message + "remove tabs from the texts, or put quotes around them"
    if has_more:
        return message + f"put quotes around texts that hold {delimiter!r}, or set another {part}.delimiter"
    return message + (
        "a line break inside a text splits it, or the row is cut off; columns are separated by "
        f"{DELIMITER_NAMES.get(delimiter, repr(delimiter))} ({part}.delimiter)"
    )


def _with_unnamed(path: Path, names: Sequence[str], options: ReadOptions, dialect: Dialect) -> list[str] | None:
    """The names of all columns of a table whose rows each have one field more than the header: row names before the
    others, as R writes them, or an empty field after a delimiter at the end of the line. None if the additional field
    may be part of a text."""
    rows = head_rows(read_head(path, options), options, dialect)[1:]
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        return None
    name = next(name for name in ("row", "row_name", "unnamed") if name not in names)
    if not any(row[-1].strip() for row in rows):
        return [*names, name]
    if len({row[0] for row in rows}) == len(rows) and all(_NUMBER.fullmatch(row[0]) for row in rows):
        return [name, *names]
    return None


def malformed_quotes(path: Path, lines: Lines, options: ReadOptions, problem: Exception) -> str:
    """The message for a quote that is never closed, and for text after a closing quote."""
    part = options.part
    if "end of data" in str(problem):
        what = f"{path}:{lines.row_start}: a quote is never closed, up to line {lines.number}, the last"
    else:
        what = f"{path}:{lines.number}: broken csv: {problem}"
    return f"{what}: double the quotes inside fields, or set {part}.quoting=none if quotes are ordinary characters"
