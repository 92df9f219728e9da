"""How files get onto the disk: whole or not at all, synced, readable by whom the umask lets."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk without room
_SYSTEM = re.compile(r"\(os error (\d+)\)")  # how tokenizers and safetensors name an error of the system


@contextmanager
def writing_into(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files and folders replace those of the same names in `folder`, once all are written.

    Raises OSError; what is written so far is then removed.
    """
    partial = folder / ".saved.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with system_errors():
            yield partial
        settle(partial)
        for path in sorted(partial.iterdir()):
            target = folder / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            path.replace(target)
        sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def settle(folder: Path) -> None:
    """Sync all that a folder holds, with the permissions that the umask leaves: some writers keep files private."""
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
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def system_errors() -> Iterator[None]:
    """Inside, an error of the system that tokenizers or safetensors report becomes the OSError that it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as problem:
        if (error := system_error(str(problem))) is None:
            raise
        raise error from None


def system_error(message: str) -> OSError | None:
    """The error of the system that a message of tokenizers or safetensors names; None where it names none."""
    found = _SYSTEM.search(message)
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def clear_leftovers(folder: Path) -> None:
    """Delete what killed writers have left in a folder, in which nobody else writes now."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
