"""Where rows, files of packages and converted models are kept."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from hfbsz.errors import UserError
from hfbsz.interrupt import scratch


def cache_folder() -> Path:
    return Path(os.path.expanduser(os.environ.get("HFBSZ_CACHE", "~/.cache/hfbsz")))


def keep(path: Path, make: Callable[[Path], None]) -> None:
    """Have `make` write the cache's file or folder `path`, where it is not kept yet: whole or not at all, by whichever
    process takes the lock first. Raises UserError where the cache cannot be written."""
    if path.exists():
        return
    cache = cache_folder()
    name = path.relative_to(cache).as_posix().replace("/", "-")
    partial = cache / f".{name}.tmp"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            if path.exists():
                return
            with scratch(partial):
                make(partial)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.rename(path)
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"{cache}: the cache cannot be written: {reason}: set HFBSZ_CACHE") from None
