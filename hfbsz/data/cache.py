"""The cache of rows, package files and converted models. An entry is a folder that is either complete or absent."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from hfbsz.data.contents import Absent, Damaged, identity, seal, verify
from hfbsz.errors import UserError
from hfbsz.system.disk import FULL, new_folder
from hfbsz.system.signals import scratch

T = TypeVar("T")
_ENTRY = re.compile(r"([a-z]+-)?[0-9a-f]{16}[\w.-]*")  # names of entries
_rebuilt: dict[Path, str] = {}  # entries that `keep` rebuilt in this process, and the damaged file of each
_verified: dict[Path, tuple[object, ...]] = {}  # identities of the entries that `keep` verified in this process


def cache_folder() -> Path:
    """The folder of the cache: HFBSZ_CACHE, or ~/.cache/hfbsz."""
    return Path(os.path.expanduser(os.environ.get("HFBSZ_CACHE", "~/.cache/hfbsz")))


def keep(entry: Path, make: Callable[[Path], None]) -> str | None:
    """Make sure that the folder `entry` of the cache is complete: `make` fills it where it is absent or damaged.

    Returns the name of the damaged file where this process rebuilt the entry, else None. Raises UserError like
    `obtain`."""
    _, damaged = obtain(entry, lambda: _verify(entry), make)
    if damaged is not None:
        _rebuilt[entry] = damaged
    return _rebuilt.get(entry)


def _verify(entry: Path) -> None:
    """Raise Absent or Damaged. Files that this process has already verified are read again only if they changed."""
    current = identity(entry)
    if _verified.get(entry) != current or not current:
        verify(entry)
        _verified[entry] = current


def obtain(entry: Path, open_entry: Callable[[], T], make: Callable[[Path], None]) -> tuple[T, str | None]:
    """Open an entry, and build it first where it is absent or damaged.

    Returns what `open_entry` returns, and the name of the damaged file where the entry was rebuilt because of one, else
    None. `open_entry` raises Absent or Damaged; `make` then fills a folder, in the process that takes the lock first. A
    complete entry takes no lock. Raises UserError where the cache cannot be read or written.
    """
    damaged, action = None, "read"
    try:
        _clear_leftovers(entry.parent)
        try:
            return open_entry(), None
        except (Absent, Damaged) as problem:
            damaged, action = problem.file, "written"
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(entry)):
            try:
                return open_entry(), None
            except (Absent, Damaged) as problem:
                damaged = problem.file
            _write(entry, make)
            return open_entry(), damaged
    except OSError as problem:
        raise UserError(_rebuild_errors(entry, damaged, [_system_error(entry.parent, action, problem)])) from None
    except UserError as problem:
        if damaged is None:
            raise
        raise UserError(_rebuild_errors(entry, damaged, problem.lines)) from None


def _rebuild_errors(entry: Path, damaged: str | None, lines: Sequence[str]) -> Sequence[str]:
    if damaged is None:
        return lines
    return [f"{entry / damaged} is damaged and cannot be rebuilt: {line}" for line in lines]


def no_space(cache: Path) -> str:
    """The message that the disk of the cache is full."""
    return f"{cache}: no disk space left for the cache: free some, or set HFBSZ_CACHE to a folder with more"


def _system_error(cache: Path, action: str, problem: OSError) -> str:
    """The message for a system error: about disk space, another file, or the cache that cannot be read or written."""
    if problem.errno in FULL:
        return no_space(cache)
    reason, path = problem.strerror or str(problem), os.fsdecode(problem.filename or cache)
    if not Path(path).is_relative_to(cache) and not cache.is_relative_to(path):
        return f"{path}: {reason}"
    return f"{cache}: the cache cannot be {action}: {reason}: set HFBSZ_CACHE"


def _write(entry: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a temporary folder next to the entry, sync it to the disk and rename it; a damaged entry is
    replaced. The files get the permissions that the umask leaves. Raises OSError."""
    temporary = entry.with_name(f"{entry.name}.tmp")
    with scratch(temporary), new_folder(entry, temporary) as partial:
        make(partial)
        seal(partial)


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _clear_leftovers(cache: Path) -> None:
    """Remove incomplete entries that killed processes left behind; those of running processes are locked."""
    for partial in cache.glob("*.tmp"):
        entry = partial.with_suffix("")
        if _ENTRY.fullmatch(entry.name):
            with suppress(OSError), FileLock(_lock_of(entry), timeout=0), scratch(partial):
                pass
