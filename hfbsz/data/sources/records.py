"""Records of a source, the columns that are asked for, and what a pass over a source counted."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hfbsz.errors import UserError, did_you_mean


class Record(NamedTuple):
    """A row of a source, or a piece of a text file's document."""

    name: str  # the same on every machine: it decides what is held out
    columns: Mapping[str, Any]
    more: bool = False  # whether the next record continues this document


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads."""

    needed: Mapping[str, str]  # a field of the recipe, such as data.text, to the column that it names
    optional: tuple[str, ...] = ()  # columns that are read where they are there

    @property
    def read(self) -> list[str]:
        """Every column once, the needed ones first."""
        return list(dict.fromkeys([*self.needed.values(), *self.optional]))


@dataclass
class Tally:
    """What one pass over a source saw. Readers add to it while they are read; it is whole once they are exhausted."""

    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)  # every column that was seen, in order
    notes: list[str] = field(default_factory=list)  # how files were read, and what of them was not: a line each
    left_out: Counter[str] = field(default_factory=Counter)  # reason: rows

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def used(self, columns: Columns) -> list[str]:
        """The columns that are there and are read."""
        return [name for name in columns.read if name in self.columns]

    def unused(self, columns: Columns) -> list[str]:
        """The columns that are there and are not read."""
        return [name for name in self.columns if name not in columns.read]


def check_columns(where: object, columns: Columns, known: Iterable[str]) -> None:
    """Raise UserError where a needed column is not among the known ones."""
    known = list(known)
    for named_by, column in columns.needed.items():
        if column not in known:
            near = did_you_mean(column, known)
            listed = ", ".join(map(repr, known)) or "none"
            raise UserError(f"{where}: no column {column!r} ({named_by}){near}; there are {listed}")
