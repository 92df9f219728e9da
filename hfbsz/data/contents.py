"""Verification of cache entries: the size and XXH3 hash of every file, in `contents.json`, which is written last.

An entry is complete if it has that file, and is used only if every file is unchanged. A memory-mapped file can be
verified block by block as it is read: `NAME.blocks` holds the hash of each block.
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
_BY_BLOCK = ".blocks"  # suffix: 8 bytes of hash per block, then one byte per block: 1 if it holds values of rows only
_MARK = "damaged"  # holds the name of a file that was found damaged after the entry was opened
_DISK_ERRORS = {getattr(errno, name) for name in ("EIO", "EBADMSG", "EUCLEAN") if hasattr(errno, name)}


class Absent(Exception):
    """The entry does not exist."""

    file = None


class Damaged(Exception):
    """A file of an entry, or a block of it, is not as it was written."""

    def __init__(self, file: str, block: int | None = None) -> None:
        self.file, self.block = file, block
        super().__init__(file)


def seal(folder: Path) -> None:
    """Write `contents.json` for a folder whose files are complete. Raises OSError."""
    files = {name: [(folder / name).stat().st_size, _hash(folder / name)] for name in _names(folder)}
    (folder / CONTENTS).write_text(json.dumps({"files": files, "hash": _hash_of(files)}))


def verify(folder: Path, at_once: float = float("inf")) -> set[str]:
    """Raise Damaged if a file is not as it was written, and Absent if the folder does not exist.

    Returns the names of the files that are left to `Blocks`: those with block hashes that are larger than `at_once`
    bytes. Raises OSError if a file cannot be read for another reason, such as its permissions."""
    if not folder.is_dir():
        raise Absent
    files = _contents(folder)
    if (marked := _marked(folder)) is not None:
        raise Damaged(marked or "its rows")
    for name in _names(folder):
        if "/" in name and name not in files:  # tokenizers and models are read as folders
            raise Damaged(name)
    large = {name for name, (size, _) in files.items() if f"{name}{_BY_BLOCK}" in files and size > at_once}
    for name, (size, file_hash) in files.items():
        with _reading(name):
            if (folder / name).stat().st_size != size or (name not in large and _hash(folder / name) != file_hash):
                raise Damaged(name)
    return large


def mark(path: Path, damage: Damaged) -> bool:
    """Mark the entry of `path` as damaged for the next start; returns whether the mark could be written."""
    try:
        (path.parent / _MARK).write_text(damage.file)
    except OSError:
        return False
    return True


def identity(folder: Path) -> tuple[Any, ...]:
    """Inode, size and times of every file of a folder: they change if a file is rewritten."""
    stats = ((name, (folder / name).stat()) for name in (CONTENTS, *_names(folder)) if (folder / name).exists())
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


def mapped(path: Path) -> tuple[Any, int]:
    """A memory-mapped Arrow stream as a table, and the memory address at which the file begins."""
    import pyarrow as pa

    with path.open("rb") as file:
        buffer = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pa.ipc.open_stream(buffer).read_all(), buffer.address


def write_blocks(path: Path) -> None:
    """Write `NAME.blocks` next to an Arrow file: the hash of each block, and whether it holds only values of lists.
    Raises OSError."""
    import pyarrow as pa

    hashes = b"".join(_hashes(path))
    values_only = bytearray(len(hashes) // 8)
    table, begin = mapped(path)
    for column in (column for column in table.columns if pa.types.is_list(column.type)):
        for values in (chunk.values for chunk in column.chunks if len(chunk.values)):
            start = values.buffers()[1].address - begin
            first, last = -(-start // BLOCK), (start + values.nbytes) // BLOCK
            values_only[first:last] = b"\1" * (last - first)
    path.with_name(path.name + _BY_BLOCK).write_bytes(hashes + values_only)


class Blocks:
    """The blocks of an Arrow file, each verified before its first use. Raises Damaged.

    Blocks that hold anything but values of rows (such as offsets) are verified at once, the others as rows are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.with_name(path.name + _BY_BLOCK).read_bytes()
        count = len(content) // 9
        self._hashes = content[: 8 * count]
        self._verified = bytearray(count)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        for block in np.flatnonzero(np.frombuffer(content, np.uint8, count, 8 * count) == 0).tolist():
            self._verify(block)

    def verify(self, start: int, stop: int) -> None:
        """Verify the blocks that hold the bytes start … stop−1, except those already verified. Raises Damaged."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        while (block := self._verified.find(0, first, last)) >= 0:
            self._verify(block)

    def _verify(self, block: int) -> None:
        with _reading(self.path.name, block):
            content = os.pread(self._descriptor, BLOCK, block * BLOCK)
        if xxh3_64_digest(content) != self._hashes[8 * block : 8 * block + 8]:
            raise Damaged(self.path.name, block)
        self._verified[block] = 1


def _names(folder: Path) -> list[str]:
    """The files of an entry, except hidden ones and this module's own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(p.as_posix() for p in paths if p.as_posix() not in (CONTENTS, _MARK) and not p.name.startswith("."))


def _contents(folder: Path) -> dict[str, list[Any]]:
    with _reading(CONTENTS):
        text = (folder / CONTENTS).read_bytes()
    try:
        contents = json.loads(text)
        files: dict[str, list[Any]] = contents["files"]
        files_hash = contents["hash"]
    except (ValueError, LookupError, TypeError):
        raise Damaged(CONTENTS) from None
    if files_hash != _hash_of(files):
        raise Damaged(CONTENTS)
    return files


def _marked(folder: Path) -> str | None:
    path = folder / _MARK
    return path.read_text(errors="replace") if path.exists() else None


@contextmanager
def _reading(name: str, block: int | None = None) -> Iterator[None]:
    """Raise Damaged for errors that mean that the file is missing or that the disk cannot read it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Damaged(name, block) from None
    except OSError as problem:
        if problem.errno not in _DISK_ERRORS:
            raise
        raise Damaged(name, block) from None


def _hash_of(files: Any) -> str:
    return xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())


def _hash(path: Path) -> str:
    """The hash of the hashes of a file's blocks."""
    return xxh3_64_hexdigest(b"".join(_hashes(path)))


def _hashes(path: Path) -> Iterator[bytes]:
    """The hash of each block of a file."""
    content = memoryview(bytearray(BLOCK))
    with path.open("rb") as file:
        while count := file.readinto(content):
            yield xxh3_64_digest(content[:count])
