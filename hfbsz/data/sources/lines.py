"""The lines of a delimited table, and its rows under one of several quoting rules."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hfbsz.data.sources.open_file import ReadOptions

_LONGEST_FIELD = 2**28  # characters; large, because an unclosed quote extends a field to the end of the file
_CSV_PARAMETERS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    "minimal": {"strict": True},
    "escaped": {"strict": True, "escapechar": "\\", "doublequote": False},
    "spaced": {"strict": True, "skipinitialspace": True},
}


@dataclass(frozen=True)
class Dialect:
    """How the rows of a table are parsed.

    `quoting` is `none` (quotes are ordinary characters), `minimal` (fields may be quoted, with inner quotes doubled, as
    in RFC 4180), `escaped` (inner quotes follow a backslash) or `spaced` (spaces may precede the opening quote).
    """

    delimiter: str  # empty: each line is one field
    quoting: str
    skip_lines: int = 0  # lines to skip before the header
    skip_after_header: int = 0  # lines to skip after the header
    notes: tuple[str, ...] = ()


class Lines:
    """The lines of an open table without those that hold no row: skipped lines at the start, comments, blank lines.

    It counts each kind. Comments and blank lines only count as such between rows, so the consumer must set
    `at_row_start` after each row; `rows` does this.
    """

    def __init__(
        self, file: Iterator[str], options: ReadOptions, skip_lines: int, watch: Callable[[str], None] | None = None
    ) -> None:
        self._file, self._watch = file, watch
        self._comment = options.comment
        self._skip_lines = skip_lines
        self.number = self.comments = self.blank = self.skipped = 0
        self.at_row_start = True  # whether the next line starts a row
        self.row_start = 0  # number of the line that started the current row

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._file:
            self.number += 1
            if self.number <= self._skip_lines:
                self.skipped += 1
            elif self.at_row_start and self._comment is not None and line.startswith(self._comment):
                self.comments += 1
            elif self.at_row_start and not line.strip(" \r\n\x1a"):  # DOS ends files with \x1a
                self.blank += 1
            else:
                if self.at_row_start:
                    self.at_row_start, self.row_start = False, self.number
                if self._watch is not None:
                    self._watch(line)
                return line
        raise StopIteration

    def skip(self, count: int) -> None:
        """Skip the next `count` lines, regardless of their content."""
        for _ in islice(self._file, count):
            self.number += 1
            self.skipped += 1


def rows(lines: Lines, dialect: Dialect) -> Iterator[list[str]]:
    """The fields of every row. Raises csv.Error for malformed quotes."""
    for row in _split(lines, dialect):
        lines.at_row_start = True
        yield row


def _split(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    if not dialect.delimiter:
        return ([line.rstrip("\r\n")] for line in lines)
    if len(dialect.delimiter) > 1:
        return (line.rstrip("\r\n").split(dialect.delimiter) for line in lines)
    csv.field_size_limit(_LONGEST_FIELD)
    return csv.reader(lines, delimiter=dialect.delimiter, **_CSV_PARAMETERS[dialect.quoting])
