"""Small files of a run: atomic writing, and reading of files whose content is not trusted."""

import json
import os
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.system.disk import sync

_HEAD = 4096  # bytes


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and sync it; an existing file or link is replaced. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8", errors="replace") as file:  # x: never follow a link
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def refuse_others(option: str, path: Path, *marks: bytes) -> None:
    """Raise UserError if an output path is a folder, or a file that hfbsz did not write and that would be overwritten.

    A file written by hfbsz has one of `marks` in its first 4096 bytes; an empty file may be replaced too. `option` is
    the name of the option that gives the path.
    """
    if path.is_dir():
        raise UserError(f"{option}={path}: this is a folder: name a file")
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head and not any(mark in head for mark in marks):
            raise UserError(
                f"{option}={path}: another file is there, and would be lost: choose another name, or remove it"
            )


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; None if the text is not JSON, is nested too deeply, or is not an object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file does not exist or contains no JSON object."""
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # ValueError: not UTF-8
        return None
