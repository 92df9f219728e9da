"""Delimited tables: the records of a .csv, .tsv or .tab file, with every line accounted for."""

import csv
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hfbsz.data.sources import table_advice
from hfbsz.data.sources.dialects import NAMES, dialect_of
from hfbsz.data.sources.lines import Dialect, Lines, rows
from hfbsz.data.sources.open_file import Format, encoding_of, open_text
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.errors import UserError

DELIMITERS = {"csv": ",", "tsv": "\t"}  # formats, and what their names mean


@dataclass(frozen=True)
class Read:
    """How a table was read: rows + header + skipped + comments + blank + breaks = lines."""

    how: str
    lines: int = 0
    rows: int = 0
    header: int = 0
    skipped: int = 0
    comments: int = 0
    blank: int = 0
    breaks: int = 0  # of lines, inside quotes

    def __add__(self, other: "Read") -> "Read":
        counts = ("lines", "rows", "header", "skipped", "comments", "blank", "breaks")
        return Read(self.how, *(getattr(self, name) + getattr(other, name) for name in counts))

    def __str__(self) -> str:
        parts = (
            (self.header, "header" if self.header == 1 else "headers"),
            (self.skipped, "skipped"),
            (self.comments, "comment" if self.comments == 1 else "comments"),
            (self.blank, "blank"),
            (self.breaks, "inside quotes"),
        )
        listed = ", ".join(f"{count:,} {name}" for count, name in parts if count)
        return f"{self.rows:,} rows of {self.lines:,} lines{f' ({listed})' if listed else ''}, {self.how}"


def read_table(
    path: Path, name: str, columns: Columns, form: Format, own: str, tally: Tally
) -> Generator[Record, None, Read]:
    """The records of a table whose ending means the delimiter `own`; returns how it was read.

    Raises UserError, in one line, for columns that are not there, for rows of another number of fields, and for quotes
    that can be read in two ways or in none.
    """
    dialect = dialect_of(path, form, own, list(columns.needed.values()))
    encoding = encoding_of(path, form)
    for note in (*dialect.notes, *([encoding.note] if encoding.note else [])):
        tally.note(f"{name}: {note}")
    number = nul = 0
    with open_text(path, form) as file:
        lines = Lines(file, form, dialect.skipped)
        found = rows(lines, dialect)
        try:
            first = next(found, None)
            names = _header(path, name, columns, form, dialect, first, lines.number, tally)
            breaks = lines.number - lines.first if form.header is True and first is not None else 0
            lines.skip(dialect.after_header)
            places = {column: names.index(column) for column in columns.read if column in names}
            for row in found if form.header is True or first is None else chain([first], found):
                number += 1
                if len(row) != len(names):
                    raise UserError(table_advice.miscounted(path, lines, number, row, names, form, dialect))
                breaks += lines.number - lines.first
                values = {column: row[place] for column, place in places.items()}
                nul += any("\0" in value for value in values.values())
                yield Record(f"{name}:{number}", values)
        except csv.Error as problem:
            raise UserError(table_advice.broken(path, lines, form, problem)) from None
    if nul:
        tally.note(f"{name}: {nul:,} {'row holds' if nul == 1 else 'rows hold'} NUL characters, which are kept")
    how = _how(form, dialect, own, encoding.label)
    header = int(form.header is True and first is not None)
    return Read(how, lines.number, number, header, lines.skipped, lines.comments, lines.blank, breaks)


def _header(
    path: Path,
    name: str,
    columns: Columns,
    form: Format,
    dialect: Dialect,
    first: list[str] | None,
    line: int,
    tally: Tally,
) -> list[str]:
    """The names of the columns; `line` is the last one of the first row."""
    if isinstance(form.header, tuple):
        names = list(form.header)
        if first == names:
            raise UserError(f"{path}:{line}: it names the columns as {form.part}.header does: leave that out")
    elif first is None:
        return []
    else:
        names = first if form.header else [str(place) for place in range(len(first))]
    try:
        check_columns(path, columns, names)
    except UserError as problem:
        raise UserError(f"{problem}{table_advice.missing(path, columns, form, dialect)}") from None
    for twice in dict.fromkeys(column for column in names if names.count(column) > 1):
        if twice in columns.read:
            listed = ",".join(_told_apart(names))
            raise UserError(
                f"{path}: {names.count(twice)} columns have the name {twice!r}: name them apart: "
                f"{form.part}.skip_lines={line + dialect.after_header} {form.part}.header=[{listed}]"
            )
        tally.note(f"{name}: {names.count(twice)} columns have the name {twice!r}; they are not read")
    tally.columns.update(dict.fromkeys(names))
    return names


def _told_apart(names: Sequence[str]) -> Iterator[str]:
    for place, name in enumerate(names):
        before = names[:place].count(name)
        yield f"{name}_{before + 1}" if before else name


def _how(form: Format, dialect: Dialect, own: str, encoding: str) -> str:
    sign = dialect.delimiter
    separated = f"{NAMES.get(sign, repr(sign))}-separated" if sign else "a line each"
    if sign and sign != own and form.delimiter is None:
        separated += f" (found in place of the {NAMES[own]})"
    return f"{separated}, {encoding}"
