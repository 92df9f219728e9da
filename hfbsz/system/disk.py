"""Write files atomically: completely or not at all, synced to disk, with the permissions of the umask."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a full disk or quota
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of the Rust libraries tokenizers and safetensors


@contextmanager
def new_folder(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` (`temporary`: its path); at the end it replaces what is there.

    Raises OSError if something cannot be written; the temporary folder is removed and `path` is unchanged.
    """
    with _complete(temporary or path.with_name(f".{path.name}.tmp")) as partial:
        yield partial
        _sync_all(partial)
        _remove(path)
        partial.rename(path)
        sync(path.parent)


@contextmanager
def writing_into(folder: Path) -> Iterator[Path]:
    """A temporary folder; at the end its files and folders replace those of the same names in `folder`.

    Raises OSError if something cannot be written; the temporary folder is removed and `folder` is unchanged.
    """
    with _complete(folder / ".saved.tmp") as partial:
        yield partial
        _sync_all(partial)
        for path in sorted(partial.iterdir()):
            target = folder / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            path.replace(target)
        sync(folder)


@contextmanager
def _complete(partial: Path) -> Iterator[Path]:
    """A new folder, which does not outlive the context; errors of libraries inside become OSError."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with system_errors():
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    """Sync all files in a folder, and set their permissions by the umask: some libraries write private files."""
    probe = folder / ".mode.tmp"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the directory entries of a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def system_errors() -> Iterator[None]:
    """Convert operating-system errors raised inside by tokenizers or safetensors to OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as problem:
        if (error := system_error(str(problem))) is None:
            raise
        raise error from None


def system_error(message: str) -> OSError | None:
    """The OSError named in an error message of tokenizers or safetensors; None if it names none."""
    match = _OS_ERROR.search(message)
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes from a folder; no other process may be writing to it."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
