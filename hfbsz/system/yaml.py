"""YAML files, which others may have written: they are data. Nothing in them is looked up in the environment, and an
error tells nothing of the content of a file that is no recipe."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfbsz.errors import UserError
from hfbsz.system.files import write_text

_INTERPOLATION = re.compile(r"(?<!\\)(\\\\)*\$\{")  # one that no backslash makes a text
_DEEPEST = 64  # levels of a file


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain data, as OmegaConf types it: `3e-3` is a number. Raises UserError."""
    return read_typed(path)[1]


def read_typed(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a YAML file, and what it holds as plain data. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        _check_events(path, text)
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text in UTF-8") from None
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as problem:
        raise UserError(f"{path}: not valid YAML{_place_of(problem)}") from None
    assert isinstance(data, dict)
    return text, {str(key): value for key, value in data.items()}


def _check_events(path: Path, text: str) -> None:
    """Raise UserError for what is no mapping; for `${…}`, which could put what the environment holds into the files of
    a run; and for nesting that OmegaConf's reader, which has no limit of its own, would not survive."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):  # neither recursive, nor does it expand aliases
        if depth == 0 and isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent):
            kind = "text" if isinstance(event, yaml.ScalarEvent) else "list"
            raise UserError(f"{path}: a recipe is a mapping of fields, this is a {kind}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{path}: not a recipe: it nests deeper than {_DEEPEST} levels")
        if isinstance(event, yaml.ScalarEvent) and _INTERPOLATION.search(event.value):
            raise UserError(
                f"{path}, line {event.start_mark.line + 1}: ${{…}} stands for another value on the command line alone, "
                "not in a file: write the value itself, or \\${…} for the text"
            )


def _place_of(problem: Exception) -> str:
    """Where a file cannot be read, and why, without any of its content."""
    mark, said = getattr(problem, "problem_mark", None), getattr(problem, "problem", None)
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    why = re.sub(r"['\"].*['\"]", "'…'", str(said).partition(". ")[0]) if said else type(problem).__name__
    return f"{place}: {why}"


def write_yaml(data: Mapping[str, Any], path: Path) -> None:
    """Write plain data so that `read_yaml` gives it back, in place of the file or link that is there."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(_escaped(data))))


def _escaped(data: Any) -> Any:
    """Plain data whose texts mean themselves: `${` is written as a text."""
    if isinstance(data, Mapping):
        return {key: _escaped(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_escaped(value) for value in data]
    return as_text(data) if isinstance(data, str) else data


def as_text(text: str) -> str:
    """A text as it is written where `${…}` is another value: with a backslash before it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
