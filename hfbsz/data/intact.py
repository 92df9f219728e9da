"""Checks of model and tokenizer files: git-lfs pointers, and truncated or damaged files."""

import json
from collections.abc import Iterable
from pathlib import Path

from hfbsz.display import command
from hfbsz.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointers(field: str, paths: Iterable[Path]) -> None:
    """Raise UserError for the first file that is a git-lfs pointer. `field`: the recipe's field and its value."""
    for path in paths:
        if path.is_file() and (reason := _pointer(path)):
            raise UserError(f"{field}: {path.name} {reason}")


def damage_of(path: Path) -> str | None:
    """What is wrong with a file, as words that follow its name; None if it is readable. A .json file is parsed too."""
    try:
        if path.stat().st_size == 0:
            return "is empty: fetch it again"
        if reason := _pointer(path):
            return reason
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        return f"cannot be read: {problem.strerror or problem}"
    except (ValueError, RecursionError) as problem:  # invalid JSON or encoding
        return f"is cut or damaged ({problem}): fetch it again"
    return None


def _pointer(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return None
    return f"is a git-lfs pointer, not the file itself: {command('git', '-C', path.parent, 'lfs', 'pull')}"
