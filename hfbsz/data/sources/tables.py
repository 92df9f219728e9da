"""Delimited tables: the records of a .csv, .tsv or .tab file, with a count that accounts for every line."""

import csv
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hfbsz.data.sources import table_advice
from hfbsz.data.sources.dialects import DELIMITER_NAMES, dialect_of
from hfbsz.data.sources.lines import Dialect, Lines, rows
from hfbsz.data.sources.open_file import ReadOptions, encoding_of, open_text
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.errors import UserError
from hfbsz.recipe.amounts import counted

DELIMITERS = {"csv": ",", "tsv": "\t"}  # format -> its usual delimiter


@dataclass(frozen=True)
class TableCounts:
    """The counts of a table's lines: rows + header + skipped + comments + blank + breaks = lines."""

    description: str  # delimiter and encoding
    lines: int = 0
    rows: int = 0
    header: int = 0
    skipped: int = 0
    comments: int = 0
    blank: int = 0
    breaks: int = 0  # line breaks inside quoted fields

    def __add__(self, other: "TableCounts") -> "TableCounts":
        names = ("lines", "rows", "header", "skipped", "comments", "blank", "breaks")
        return TableCounts(self.description, *(getattr(self, name) + getattr(other, name) for name in names))

    def __str__(self) -> str:
        parts = (
            (self.header, "header" if self.header == 1 else "headers"),
            (self.skipped, "skipped"),
            (self.comments, "comment" if self.comments == 1 else "comments"),
            (self.blank, "blank"),
            (self.breaks, "inside quotes"),
        )
        listed = ", ".join(f"{count:,} {name}" for count, name in parts if count)
        rows = f"{counted(self.rows, 'row')} of {counted(self.lines, 'line')}"
        return f"{rows}{f' ({listed})' if listed else ''}, {self.description}"


def read_table(
    path: Path, name: str, columns: Columns, options: ReadOptions, default_delimiter: str, tally: Tally
) -> Generator[Record, None, TableCounts]:
    """The records of a table, named `name:row`; returns the counts of its lines.

    `default_delimiter` is the one that the file's format stands for. Raises UserError, in one line, for missing
    columns, for rows with another number of fields than the header, and for quotes that are ambiguous or malformed.
    """
    dialect = dialect_of(path, options, default_delimiter, list(columns.needed.values()))
    encoding = encoding_of(path, options)
    for note in (*dialect.notes, *([encoding.note] if encoding.note else [])):
        tally.note(f"{name}: {note}")
    number = rows_with_nul = 0
    with open_text(path, options) as file:
        lines = Lines(file, options, dialect.skip_lines)
        remaining = rows(lines, dialect)
        try:
            first = next(remaining, None)
            names = _header(path, name, columns, options, dialect, first, lines.number, tally)
            breaks = lines.number - lines.row_start if options.header is True and first is not None else 0
            lines.skip(dialect.skip_after_header)
            indices = {column: names.index(column) for column in columns.read if column in names}
            for row in remaining if options.header is True or first is None else chain([first], remaining):
                number += 1
                if len(row) != len(names):
                    raise UserError(table_advice.wrong_field_count(path, lines, number, row, names, options, dialect))
                breaks += lines.number - lines.row_start
                values = {column: row[index] for column, index in indices.items()}
                rows_with_nul += any("\0" in value for value in values.values())
                yield Record(f"{name}:{number}", values)
        except csv.Error as problem:
            raise UserError(table_advice.malformed_quotes(path, lines, options, problem)) from None
    if rows_with_nul:
        holds = "row holds" if rows_with_nul == 1 else "rows hold"
        tally.note(f"{name}: {rows_with_nul:,} {holds} NUL characters, which are not removed")
    description = _description(options, dialect, default_delimiter, encoding.label)
    header = int(options.header is True and first is not None)
    return TableCounts(description, lines.number, number, header, lines.skipped, lines.comments, lines.blank, breaks)


def _header(
    path: Path,
    name: str,
    columns: Columns,
    options: ReadOptions,
    dialect: Dialect,
    first: list[str] | None,
    line: int,
    tally: Tally,
) -> list[str]:
    """The names of the columns. `first` is the first row of the file, and `line` the number of its last line."""
    if isinstance(options.header, tuple):
        names = list(options.header)
        if first == names:
            raise UserError(
                f"{path}:{line}: this line already names the columns as {options.part}.header does: leave "
                f"{options.part}.header out"
            )
    elif first is None:
        return []
    else:
        names = first if options.header else [str(index) for index in range(len(first))]
    try:
        check_columns(path, columns, names)
    except UserError as problem:
        raise UserError(f"{problem}{table_advice.missing_columns(path, columns, options, dialect)}") from None
    for duplicate in dict.fromkeys(column for column in names if names.count(column) > 1):
        if duplicate in columns.read:
            listed = ",".join(_numbered(names))
            raise UserError(
                f"{path}: {names.count(duplicate)} columns have the name {duplicate!r}: give them different names: "
                f"{options.part}.skip_lines={line + dialect.skip_after_header} {options.part}.header=[{listed}]"
            )
        tally.note(f"{name}: {names.count(duplicate)} columns have the name {duplicate!r}; they are not read")
    tally.columns.update(dict.fromkeys(names))
    return names


def _numbered(names: Sequence[str]) -> Iterator[str]:
    """The names, with _2, _3, … appended to repeated ones."""
    for index, name in enumerate(names):
        before = names[:index].count(name)
        yield f"{name}_{before + 1}" if before else name


def _description(options: ReadOptions, dialect: Dialect, default_delimiter: str, encoding: str) -> str:
    delimiter = dialect.delimiter
    separated = f"{DELIMITER_NAMES.get(delimiter, repr(delimiter))}-separated" if delimiter else "one text per line"
    if delimiter and delimiter != default_delimiter and options.delimiter is None:
        separated += f" (detected, not {DELIMITER_NAMES[default_delimiter]}-separated)"
    return f"{separated}, {encoding}"
