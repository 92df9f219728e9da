"""Where rows, files of packages and converted models are kept: in entries, folders that are complete or absent."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from hfbsz.data.contents import Absent, Damaged, identity, seal, verify
from hfbsz.errors import UserError
from hfbsz.system.disk import FULL, settle, sync, system_errors
from hfbsz.system.signals import scratch

T = TypeVar("T")
_ENTRY = re.compile(r"([a-z]+-)?[0-9a-f]{16}[\w.-]*")  # how an entry is called
_remade: dict[Path, str] = {}  # by `keep` in this process: entries, and the file of theirs that was damaged
_verified: dict[Path, tuple[object, ...]] = {}  # by `keep` in this process: what the files then were


def cache_folder() -> Path:
    return Path(os.path.expanduser(os.environ.get("HFBSZ_CACHE", "~/.cache/hfbsz")))


def keep(entry: Path, make: Callable[[Path], None]) -> str | None:
    """Have `make` fill the folder `entry` of the cache, where it is not there or damaged. Returns the file that was
    damaged, where this process has made the entry again. Raises UserError as `obtain` does."""
    _, damaged = obtain(entry, lambda: _verify(entry), make)
    if damaged is not None:
        _remade[entry] = damaged
    return _remade.get(entry)


def _verify(entry: Path) -> None:
    """Raise Absent or Damaged; files that this process has verified are read again only where they have changed."""
    found = identity(entry)
    if _verified.get(entry) != found or not found:
        verify(entry)
        _verified[entry] = found


def obtain(entry: Path, open_entry: Callable[[], T], make: Callable[[Path], None]) -> tuple[T, str | None]:
    """What `open_entry` gives of an entry, and the file that was damaged where the entry was therefore made again.

    `open_entry` raises Absent or Damaged; `make` then fills a folder, in whichever process takes the lock first. A
    complete entry takes no lock. Raises UserError where the cache cannot be read or written.
    """
    damaged, doing = None, "read"
    try:
        _clear_leftovers(entry.parent)
        try:
            return open_entry(), None
        except (Absent, Damaged) as problem:
            damaged, doing = problem.file, "written"
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(entry)):
            try:
                return open_entry(), None
            except (Absent, Damaged) as problem:
                damaged = problem.file
            _write(entry, make)
            return open_entry(), damaged
    except OSError as problem:
        raise UserError(_still(entry, damaged, [_outage(entry.parent, doing, problem)])) from None
    except UserError as problem:
        if damaged is None:
            raise
        raise UserError(_still(entry, damaged, problem.lines)) from None


def _still(entry: Path, damaged: str | None, lines: Sequence[str]) -> Sequence[str]:
    if damaged is None:
        return lines
    return [f"{entry / damaged} is damaged, and cannot be made again: {line}" for line in lines]


def no_space(cache: Path) -> str:
    return f"{cache}: no disk space left for the cache: free some, or set HFBSZ_CACHE to a folder with more"


def _outage(cache: Path, doing: str, problem: OSError) -> str:
    """What a fault of the system means, in a line: room is asked for where that is what lacks."""
    if problem.errno in FULL:
        return no_space(cache)
    reason, named = problem.strerror or str(problem), os.fsdecode(problem.filename or cache)
    if not Path(named).is_relative_to(cache) and not cache.is_relative_to(named):
        return f"{named}: {reason}"
    return f"{cache}: the cache cannot be {doing}: {reason}: set HFBSZ_CACHE"


def _write(entry: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill an entry under a temporary name beside it; it is synced to the disk and renamed, and replaces a
    damaged one. Its files get the permissions that the umask leaves. Raises OSError."""
    partial = entry.with_name(f"{entry.name}.tmp")
    with scratch(partial), system_errors():
        partial.mkdir()
        make(partial)
        seal(partial)
        settle(partial)
        _remove(entry)
        partial.rename(entry)
        sync(entry.parent)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _clear_leftovers(cache: Path) -> None:
    """Remove what killed processes have left half made; what another process is at work on is locked."""
    for partial in cache.glob("*.tmp"):
        entry = partial.with_suffix("")
        if _ENTRY.fullmatch(entry.name):
            with suppress(OSError), FileLock(_lock_of(entry), timeout=0), scratch(partial):
                pass
