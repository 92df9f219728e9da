"""Ends the process at one of its file operations, as a kill does, or as a power cut.

Counted are what Python tells of (files opened for writing, renames, removals, folders) and every sync, in one folder.
After a power cut only that is there which was synced: of each folder the names at its last sync, of each file the
bytes at its last sync. What was there at the start is taken as synced.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")


def crash_at(number: int, folder: Path, power_cut: bool, log: Path) -> None:
    """From now on, end this process before its file operation `number` inside `folder`; operations are logged."""
    synced = Synced(folder) if power_cut else None
    real_fsync, count, inside = os.fsync, 0, False

    def reached(what: str, path: object) -> None:
        nonlocal count, inside
        if inside or not is_inside(path, folder):
            return
        inside, count = True, count + 1
        with open(log, "a") as file:
            file.write(f"{count} {what} {os.path.relpath(os.fspath(path), folder)}\n")
        if count == number:
            if synced is not None:
                synced.restore()
            os.kill(os.getpid(), signal.SIGKILL)
        inside = False

    def hook(event: str, arguments: tuple) -> None:
        if event in WATCHED and not (event == "open" and not writes(arguments)):
            reached(event, arguments[0])

    def fsync(descriptor: int) -> None:
        nonlocal inside
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        reached("fsync", path)
        real_fsync(descriptor)
        if synced is not None and is_inside(path, folder):
            inside = True
            synced.keep(descriptor)
            inside = False

    os.fsync = fsync
    sys.addaudithook(hook)


def writes(arguments: tuple) -> bool:
    _, mode, flags = arguments
    return bool(set("wax+") & set(mode)) if mode else bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def is_inside(path: object, folder: Path) -> bool:
    try:
        whole = os.path.abspath(os.fsdecode(path))
    except TypeError:  # a descriptor
        return False
    return whole == str(folder) or whole.startswith(f"{folder}/")


class Synced:
    """What of a folder a power cut would leave. Descriptors stay open, so that no number of a file is used twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[int, dict[str, int]] = {}  # of folders, by inode
        self.bytes: dict[int, bytes] = {}  # of files, by inode
        self.held: list[int] = []
        self._each(folder, self.keep)

    def _each(self, path: Path, do: Callable[[int], None]) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        do(descriptor)
        if path.is_dir():
            for inner in path.iterdir():
                if not inner.is_symlink():
                    self._each(inner, do)
        os.close(descriptor)

    def keep(self, descriptor: int) -> None:
        """Take a file's bytes, or a folder's names, as synced."""
        self.held.append(os.dup(descriptor))
        number, path = os.fstat(descriptor).st_ino, Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.names[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False) and entry.inode() not in self.names:
                    self.names[entry.inode()] = {}
                    self.held.append(os.open(entry.path, os.O_RDONLY))
        else:
            self.bytes[number] = path.read_bytes()

    def restore(self) -> None:
        """Put what was synced in place of what is there."""
        root = self.folder.stat().st_ino
        aside = self.folder.with_name(f"{self.folder.name}.lost")
        self.folder.rename(aside)
        self._write(self.folder, root)
        shutil.rmtree(aside)

    def _write(self, path: Path, number: int) -> None:
        if number not in self.names:
            path.write_bytes(self.bytes.get(number, b""))
            return
        path.mkdir()
        for name, inner in self.names[number].items():
            self._write(path / name, inner)
