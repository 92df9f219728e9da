"""The lines of a table, and its rows in one of several readings of quotes."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hfbsz.data.sources.open_file import Format

_LONGEST_FIELD = 2**28  # characters: an open quote swallows the rest of a file
_READINGS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    "minimal": {"strict": True},
    "escaped": {"strict": True, "escapechar": "\\", "doublequote": False},
    "spaced": {"strict": True, "skipinitialspace": True},
}


@dataclass(frozen=True)
class Dialect:
    """How the rows of a table are read. `reading`: `none`, quotes are characters; `minimal`, fields may stand in
    quotes, doubled inside (RFC 4180); `escaped`, with backslashes before quotes inside; `spaced`, with spaces before
    the quotes. An empty delimiter leaves lines whole."""

    delimiter: str
    reading: str
    skipped: int = 0  # lines before the header
    after_header: int = 0  # and after it
    notes: tuple[str, ...] = ()


class Lines:
    """The lines of an open table, those left out that hold no row: skipped ones at its start, comments, blank lines.

    It counts them. Comments and blank lines are such between rows alone, so whoever makes rows says where one begins:
    `rows` does.
    """

    def __init__(
        self, file: Iterator[str], form: Format, skipped: int, watch: Callable[[str], None] | None = None
    ) -> None:
        self._file, self._watch = file, watch
        self._comment = form.comment
        self._skip = skipped
        self.number = self.comments = self.blank = self.skipped = 0
        self.begins = True  # whether the next line begins a row
        self.first = 0  # the line that began the row

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._file:
            self.number += 1
            if self.number <= self._skip:
                self.skipped += 1
            elif self.begins and self._comment is not None and line.startswith(self._comment):
                self.comments += 1
            elif self.begins and not line.strip(" \r\n\x1a"):  # \x1a ends files of DOS
                self.blank += 1
            else:
                if self.begins:
                    self.begins, self.first = False, self.number
                if self._watch is not None:
                    self._watch(line)
                return line
        raise StopIteration

    def skip(self, count: int) -> None:
        """Leave out the next lines, whatever they hold."""
        for _ in islice(self._file, count):
            self.number += 1
            self.skipped += 1


def rows(lines: Lines, dialect: Dialect) -> Iterator[list[str]]:
    """The fields of every row; raises csv.Error where quotes are broken."""
    for row in _split(lines, dialect):
        lines.begins = True
        yield row


def _split(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    if not dialect.delimiter:
        return ([line.rstrip("\r\n")] for line in lines)
    if len(dialect.delimiter) > 1:
        return (line.rstrip("\r\n").split(dialect.delimiter) for line in lines)
    csv.field_size_limit(_LONGEST_FIELD)
    return csv.reader(lines, delimiter=dialect.delimiter, **_READINGS[dialect.reading])
