"""Records of a source, the columns to read from it, and the counts of one pass over it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hfbsz.errors import UserError, did_you_mean


class Record(NamedTuple):
    """A row of a source, or a piece of a text file's document."""

    name: str  # the same on every machine, because it decides which records are held out
    columns: Mapping[str, Any]
    more: bool = False  # whether the next record continues this document


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads."""

    needed: Mapping[str, str]  # recipe field (such as data.text) -> the column that it names
    optional: tuple[str, ...] = ()  # columns that are read if the source has them

    @property
    def read(self) -> list[str]:
        """Every column to read, without duplicates, needed columns first."""
        return list(dict.fromkeys([*self.needed.values(), *self.optional]))


@dataclass
class Tally:
    """The counts of one pass over a source. Readers add to it as they yield; it is complete once they are exhausted."""

    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)  # every column seen, in order
    notes: list[str] = field(default_factory=list)  # one line each: how files were read, and what was left out
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> number of rows

    def note(self, line: str) -> None:
        """Add a note, unless the same line is already there."""
        if line not in self.notes:
            self.notes.append(line)

    def used(self, columns: Columns) -> list[str]:
        """The columns of the source that are read."""
        return [name for name in columns.read if name in self.columns]

    def unused(self, columns: Columns) -> list[str]:
        """The columns of the source that are not read."""
        return [name for name in self.columns if name not in columns.read]


def check_columns(where: object, columns: Columns, names: Iterable[str]) -> None:
    """Raise UserError if a needed column is not among `names`, the columns of the source."""
    available = list(names)
    for field_name, column in columns.needed.items():
        if column not in available:
            suggestion = did_you_mean(column, available)
            listed = ", ".join(map(repr, available)) or "none"
            raise UserError(f"{where}: no column {column!r} ({field_name}){suggestion}; there are {listed}")
