"""Sources: where records come from: files, a file of a package, or a Hub data set."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hfbsz.data.sources.find import SourceFile, find_files
from hfbsz.data.sources.formats import check_fields, format_of, parquet_classes, read_records
from hfbsz.data.sources.hub import Hub
from hfbsz.data.sources.open_file import Format
from hfbsz.data.sources.package import Package, Wanted, fetch_file
from hfbsz.data.sources.records import Columns, Record, Tally
from hfbsz.data.sources.tables import Read
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data, EvalSet, Origin

STDLIB = "{stdlib}/**/*.py"
_AUTO = Format()
STDLIB_EXCLUDE = ("test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__")


class Source(Protocol):
    """Records that can be read more than once, in the same order."""

    @property
    def where(self) -> str:
        """The field and its value, for messages."""
        ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def size(self) -> int:
        """About how many bytes of text; 0 where that is not known beforehand."""
        ...

    def stamp(self) -> Any:
        """Plain data that differs where the records may differ."""
        ...

    def class_names(self, column: str) -> list[str] | None:
        """The names of a column's classes, where the source has them; its records then hold these names."""
        ...

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        """Every record, with the needed columns at least; `tally` counts them. Raises UserError in one line."""
        ...


@dataclass(frozen=True)
class Files:
    """Local files that globs name."""

    where: str
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...] = ()
    form: Format = field(default_factory=Format)

    def size(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    def stamp(self) -> list[Any]:
        given = self.form.given()
        return [*(file.stamp() for file in self.files), *([given] if given else [])]

    def class_names(self, column: str) -> list[str] | None:
        """Of Parquet files that `datasets` wrote: the first one's, and what others add."""
        found: dict[str, None] = {}
        for file in self.files:
            if format_of(file.path, self.form) == "parquet":
                found.update(dict.fromkeys(parquet_classes(file.path).get(column, ())))
        return list(found) or None

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        reads: dict[str, list[tuple[str, Read]]] = {}
        for file in self.files:
            read = yield from read_records(file.path, file.name, columns, self.form, tally)
            if read is not None:
                reads.setdefault(read.how, []).append((file.name, read))
        for alike in reads.values():
            (first, read), *others = alike
            for _, other in others:
                read += other
            named = f"{len(alike):,} tables ({first} … {alike[-1][0]})" if others else first
            tally.note(f"{named}: {read}")


@dataclass(frozen=True)
class Opened:
    """A source, and which of its columns are read: those that `data` names. Messages call a field `part`.field."""

    source: Source
    data: Data
    part: str = "data"


def open_set(name: str, wanted: EvalSet, data: Data) -> Opened:
    """A further evaluation set; a Hub's is streamed where the training source is."""
    part = f"eval.sets.{name}"
    return Opened(_open(wanted, part, (), bool(data.stream)), data.read_as(wanted), part)


def open_source(data: Data) -> Source:
    """The source that a recipe trains on; raises UserError where it is not there."""
    if not data.sources():
        return open_files("data.files", STDLIB, data.exclude or STDLIB_EXCLUDE, Format.of(data, "data"))
    return _open(data, "data", data.exclude, bool(data.stream))


def _open(origin: Origin, part: str, exclude: Sequence[str], stream: bool) -> Source:
    form = Format.of(origin, part)
    if origin.package is not None:
        kept = fetch_file(Wanted(part, origin.package, origin.file or "", origin.sha256))
        check_fields([kept.path], form)
        return Package(kept, form)
    if origin.files is not None:
        return open_files(f"{part}.files", origin.files, exclude, form)
    if (given := form.given()) and getattr(origin, "validation_files", None) is None:
        raise UserError(f"{part}.{next(iter(given))} is for files: {part}.hub says itself how its rows are read")
    return Hub(origin.hub or "", origin.hub_config, origin.split, origin.revision, stream, part)


def open_validation(data: Data) -> Source | None:
    """The source that validation comes from, where it is not a share of the training source."""
    if data.validation_files is not None:
        return open_files("data.validation_files", data.validation_files, data.exclude, Format.of(data, "data"))
    if data.hub is not None and data.validation_split is not None:
        return Hub(data.hub, data.hub_config, data.validation_split, data.revision, bool(data.stream))
    return None


def mixed(source: Source) -> Source:
    """The source, with its files in an order that follows from a hash of their names: of a corpus that is not read to
    its end, the files that are read are then of all its folders. A Hub data set is left as it is."""
    if not isinstance(source, Files):
        return source
    order = sorted(source.files, key=lambda file: hashlib.sha256(file.name.encode()).digest())
    return replace(source, files=tuple(order))


def open_files(field: str, patterns: str | Sequence[str], exclude: Sequence[str] = (), form: Format = _AUTO) -> Files:
    files, notes = find_files(patterns, exclude, field)
    check_fields([file.path for file in files], form)
    return Files(f"{field}: {patterns!r}", tuple(files), tuple(notes), form)
