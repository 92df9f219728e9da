"""Sources of records: local files, a file of a package, or a Hub data set."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hfbsz.data.sources.find import SourceFile, find_files
from hfbsz.data.sources.formats import check_fields, format_of, parquet_classes, read_records
from hfbsz.data.sources.hub import Hub
from hfbsz.data.sources.open_file import ReadOptions
from hfbsz.data.sources.package import Package, PackageFile, fetch_file
from hfbsz.data.sources.records import Columns, Record, Tally
from hfbsz.data.sources.tables import TableCounts
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data, EvalSet, Origin

STDLIB = "{stdlib}/**/*.py"
STDLIB_EXCLUDE = ("test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__")
_DEFAULTS = ReadOptions()


class Source(Protocol):
    """Records that can be read repeatedly, in the same order."""

    @property
    def where(self) -> str:
        """The recipe field and its value, for messages."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the source, one line each."""
        ...

    def size(self) -> int:
        """The approximate size of the text in bytes; 0 if it is unknown."""
        ...

    def stamp(self) -> Any:
        """Plain data that differs if the records may differ."""
        ...

    def class_names(self, column: str) -> list[str] | None:
        """The names of a column's classes, if the source defines them; its records then hold these names."""
        ...

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        """Every record, with at least the needed columns; `tally` counts them. Raises UserError in one line."""
        ...


@dataclass(frozen=True)
class Files:
    """Local files that paths and globs match: a `Source`."""

    where: str
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...] = ()
    options: ReadOptions = field(default_factory=ReadOptions)

    def size(self) -> int:
        """The total size of the files in bytes."""
        return sum(file.path.stat().st_size for file in self.files)

    def stamp(self) -> list[Any]:
        """The stamps of the files and the read options that are set, as plain data."""
        changed = self.options.changed()
        return [*(file.stamp() for file in self.files), *([changed] if changed else [])]

    def class_names(self, column: str) -> list[str] | None:
        """The class names of Parquet files written by `datasets`: those of the first, then new ones of the others."""
        names: dict[str, None] = {}
        for file in self.files:
            if format_of(file.path, self.options) == "parquet":
                names.update(dict.fromkeys(parquet_classes(file.path).get(column, ())))
        return list(names) or None

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        """The records of all files; one note for all tables that are read in the same way. Raises UserError."""
        tables: dict[str, list[tuple[str, TableCounts]]] = {}
        for file in self.files:
            counts = yield from read_records(file.path, file.name, columns, self.options, tally)
            if counts is not None:
                tables.setdefault(counts.description, []).append((file.name, counts))
        for group in tables.values():
            (first, total), *others = group
            for _, counts in others:
                total += counts
            name = f"{len(group):,} tables ({first} … {group[-1][0]})" if others else first
            tally.note(f"{name}: {total}")


@dataclass(frozen=True)
class Opened:
    """A source, and the fields that name the columns to read; messages call a field `part.field`."""

    source: Source
    data: Data
    part: str = "data"


def open_set(name: str, evaluation_set: EvalSet, data: Data) -> Opened:
    """An additional evaluation set; one from the Hub is streamed if the training source is. Raises UserError if it
    cannot be found."""
    part = f"eval.sets.{name}"
    return Opened(_open(evaluation_set, part, (), bool(data.stream)), data.read_as(evaluation_set), part)


def open_source(data: Data) -> Source:
    """The training source of a recipe, by default Python's standard library. Raises UserError if it cannot be found."""
    if not data.sources():
        return open_files("data.files", STDLIB, data.exclude or STDLIB_EXCLUDE, ReadOptions.of(data, "data"))
    return _open(data, "data", data.exclude, bool(data.stream))


def _open(origin: Origin, part: str, exclude: Sequence[str], stream: bool) -> Source:
    options = ReadOptions.of(origin, part)
    if origin.package is not None:
        file = fetch_file(PackageFile(part, origin.package, origin.file or "", origin.sha256))
        check_fields([file.path], options)
        return Package(file, options)
    if origin.files is not None:
        return open_files(f"{part}.files", origin.files, exclude, options)
    if (changed := options.changed()) and getattr(origin, "validation_files", None) is None:
        raise UserError(
            f"{part}.{next(iter(changed))} is for files, and {part}.hub names a data set that defines how its rows are "
            "read: leave it out"
        )
    return Hub(origin.hub or "", origin.hub_config, origin.split, origin.revision, stream, part)


def open_validation(data: Data) -> Source | None:
    """The validation source; None if validation is a share of the training source. Raises UserError if it cannot be
    found."""
    if data.validation_files is not None:
        return open_files("data.validation_files", data.validation_files, data.exclude, ReadOptions.of(data, "data"))
    if data.hub is not None and data.validation_split is not None:
        return Hub(data.hub, data.hub_config, data.validation_split, data.revision, bool(data.stream))
    return None


def shuffled(source: Source) -> Source:
    """The source with its files in the order of the hashes of their names; a Hub data set is unchanged.

    If only the beginning of a corpus is read, it then holds files from all of its folders.
    """
    if not isinstance(source, Files):
        return source
    order = sorted(source.files, key=lambda file: hashlib.sha256(file.name.encode()).digest())
    return replace(source, files=tuple(order))


def open_files(
    field: str, patterns: str | Sequence[str], exclude: Sequence[str] = (), options: ReadOptions = _DEFAULTS
) -> Files:
    """The files that paths and globs match. Raises UserError as `find_files` does, and for fields that do not apply to
    their formats."""
    files, notes = find_files(patterns, exclude, field)
    check_fields([file.path for file in files], options)
    return Files(f"{field}: {patterns!r}", tuple(files), tuple(notes), options)
