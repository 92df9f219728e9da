"""Small files of a run: written whole or not at all; read, where others may have written them, without trust."""

import json
import os
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.system.disk import sync

_HEAD = 4096  # bytes


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, in place of the file or link that is there, and sync it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8", errors="replace") as file:  # x: not through a link
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def refuse_others(option: str, path: Path, *marks: bytes) -> None:
    """Raise UserError where an option names a folder, or a file that is not of ours, for these have one of `marks` near
    their beginning: it would be replaced."""
    if path.is_dir():
        raise UserError(f"{option}={path}: a folder: name a file")
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head and not any(mark in head for mark in marks):
            raise UserError(
                f"{option}={path}: another file is there, and would be lost: choose another name, or remove it"
            )


def json_object(text: str) -> dict[str, Any] | None:
    """The object that a text holds; None where it is not JSON, nests too deep, or holds something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The object that a file holds; None where there is none, or no such file."""
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of the file, of its encoding
        return None
