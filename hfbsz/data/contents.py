"""What the files of a cache entry hold: a size and an XXH3 hash of each, in `contents.json`, which is written last.

An entry is complete where that file is there, and is used only where every file is as it was written. A file that is
read through a memory map can be verified block by block as it is read: `NAME.blocks` holds a hash of each block.
"""

import errno
import json
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_hexdigest

CONTENTS = "contents.json"
BLOCK = 2**16  # bytes
_BY_BLOCK = ".blocks"  # after a file's name: the hash of each block, then a byte for each: 1 where rows' values fill it
_MARK = "damaged"  # holds the name of a file in which damage was found after the entry was opened
_ON_THE_DISK = {getattr(errno, name) for name in ("EIO", "EBADMSG", "EUCLEAN") if hasattr(errno, name)}


class Absent(Exception):
    """There is no such entry."""

    file = None


class Damaged(Exception):
    """A file of an entry that is not as it was written."""

    def __init__(self, file: str, block: int | None = None) -> None:
        self.file, self.block = file, block
        super().__init__(file)


def seal(folder: Path) -> None:
    """Write the contents of a folder whose files are all there. Raises OSError."""
    files = {name: [(folder / name).stat().st_size, _hash(folder / name)] for name in _names(folder)}
    (folder / CONTENTS).write_text(json.dumps({"files": files, "hash": _hash_of(files)}))


def verify(folder: Path, at_once: float = float("inf")) -> set[str]:
    """Raise Damaged for a file that is not as it was written, and Absent where there is no folder. Files with hashes by
    block that are larger than `at_once` bytes are left to Blocks: their names are returned. Raises OSError where a file
    cannot be read though nothing says that it is damaged."""
    if not folder.is_dir():
        raise Absent
    files = _contents(folder)
    if (marked := _marked(folder)) is not None:
        raise Damaged(marked or "its rows")
    for name in _names(folder):
        if "/" in name and name not in files:  # of a tokenizer or model, which are read as folders
            raise Damaged(name)
    large = {name for name, (size, _) in files.items() if f"{name}{_BY_BLOCK}" in files and size > at_once}
    for name, (size, known) in files.items():
        with _reading(name):
            if (folder / name).stat().st_size != size or (name not in large and _hash(folder / name) != known):
                raise Damaged(name)
    return large


def mark(path: Path, damage: Damaged) -> bool:
    """Have the next start find the entry that holds `path` damaged; returns whether that could be written."""
    try:
        (path.parent / _MARK).write_text(damage.file)
    except OSError:
        return False
    return True


def identity(folder: Path) -> tuple[Any, ...]:
    """What changes where a file of a folder is written again."""
    found = ((name, (folder / name).stat()) for name in (CONTENTS, *_names(folder)) if (folder / name).exists())
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def mapped(path: Path) -> tuple[Any, int]:
    """An Arrow stream's table, read in place through a memory map, and the address at which the file begins."""
    import pyarrow as pa

    with path.open("rb") as file:
        whole = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pa.ipc.open_stream(whole).read_all(), whole.address


def write_blocks(path: Path) -> None:
    """Write the hashes of an Arrow file's blocks beside it, and which of them values of lists fill. Raises OSError."""
    import pyarrow as pa

    hashes = b"".join(_hashes(path))
    filled = bytearray(len(hashes) // 8)
    table, begin = mapped(path)
    for column in (column for column in table.columns if pa.types.is_list(column.type)):
        for values in (chunk.values for chunk in column.chunks if len(chunk.values)):
            start = values.buffers()[1].address - begin
            first, last = -(-start // BLOCK), (start + values.nbytes) // BLOCK
            filled[first:last] = b"\1" * (last - first)
    path.with_name(path.name + _BY_BLOCK).write_bytes(hashes + filled)


class Blocks:
    """The blocks of an Arrow file of a verified entry, each verified before its first use: those that hold more than
    values of rows at once, the others as rows are read. Raises Damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        written = path.with_name(path.name + _BY_BLOCK).read_bytes()
        count = len(written) // 9
        self._hashes = written[: 8 * count]
        self._known = bytearray(count)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        for block in np.flatnonzero(np.frombuffer(written, np.uint8, count, 8 * count) == 0).tolist():
            self._verify(block)

    def verify(self, start: int, stop: int) -> None:
        """The blocks that hold the bytes start … stop−1."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        while (block := self._known.find(0, first, last)) >= 0:
            self._verify(block)

    def _verify(self, block: int) -> None:
        with _reading(self.path.name, block):
            content = os.pread(self._descriptor, BLOCK, block * BLOCK)
        if xxh3_64_digest(content) != self._hashes[8 * block : 8 * block + 8]:
            raise Damaged(self.path.name, block)
        self._known[block] = 1


def _names(folder: Path) -> list[str]:
    """The files of an entry, but for those of this module's own and hidden ones."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(p.as_posix() for p in found if p.as_posix() not in (CONTENTS, _MARK) and not p.name.startswith("."))


def _contents(folder: Path) -> dict[str, list[Any]]:
    with _reading(CONTENTS):
        text = (folder / CONTENTS).read_bytes()
    try:
        whole = json.loads(text)
        files: dict[str, list[Any]] = whole["files"]
        known = whole["hash"]
    except (ValueError, LookupError, TypeError):
        raise Damaged(CONTENTS) from None
    if known != _hash_of(files):
        raise Damaged(CONTENTS)
    return files


def _marked(folder: Path) -> str | None:
    path = folder / _MARK
    return path.read_text(errors="replace") if path.exists() else None


@contextmanager
def _reading(name: str, block: int | None = None) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Damaged(name, block) from None
    except OSError as problem:
        if problem.errno not in _ON_THE_DISK:
            raise
        raise Damaged(name, block) from None


def _hash_of(files: Any) -> str:
    return xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())


def _hash(path: Path) -> str:
    """A hash over the hashes of a file's blocks."""
    return xxh3_64_hexdigest(b"".join(_hashes(path)))


def _hashes(path: Path) -> Iterator[bytes]:
    """The hash of each block of a file."""
    content = memoryview(bytearray(BLOCK))
    with path.open("rb") as file:
        while count := file.readinto(content):
            yield xxh3_64_digest(content[:count])
