"""Read and write YAML files. Their content is not trusted: nothing in them is interpolated, and error messages never
quote it, since the file may be something other than a recipe."""

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

_INTERPOLATION = re.compile(r"(?<!\\)(\\\\)*\$\{")  # not preceded by a backslash that makes it literal
_MAX_DEPTH = 64  # levels of nesting


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file as plain data, typed by OmegaConf (`3e-3` is a number). Raises UserError."""
    return read_typed(path)[1]


def read_typed(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a YAML file, and its content as plain data. Raises UserError if it cannot be read or parsed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        _check_events(path, text)
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as problem:
        raise UserError(f"{path}: not valid YAML{_location(problem)}") from None
    assert isinstance(data, dict)
    return text, {str(key): value for key, value in data.items()}


def _check_events(path: Path, text: str) -> None:
    """Raise UserError if the file is not a mapping, contains `${…}`, or is nested too deeply.

    `${…}` could copy environment variables into the files of a run. OmegaConf has no limit on nesting and would exceed
    the recursion limit.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):  # not recursive, and aliases are not expanded
        if depth == 0 and isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent):
            kind = "text" if isinstance(event, yaml.ScalarEvent) else "list"
            raise UserError(f"{path}: this is a {kind}, but a recipe is a mapping of fields")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise UserError(f"{path}: not a recipe: nested deeper than {_MAX_DEPTH} levels")
        if isinstance(event, yaml.ScalarEvent) and _INTERPOLATION.search(event.value):
            raise UserError(
                f"{path}, line {event.start_mark.line + 1}: ${{…}} is only allowed on the command line, not in a file: "
                "write the value itself, or \\${…} for the literal text"
            )


def _location(problem: Exception) -> str:
    """Where in the file the problem is, and what it is, without any of the file's content."""
    mark, message = getattr(problem, "problem_mark", None), getattr(problem, "problem", None)
    position = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    reason = re.sub(r"['\"].*['\"]", "'…'", str(message).partition(". ")[0]) if message else type(problem).__name__
    return f"{position}: {reason}"


def write_yaml(data: Mapping[str, Any], path: Path) -> None:
    """Write plain data to a YAML file so that `read_yaml` returns the same data; an existing file is replaced."""
    write_text(path, yaml_text(data))


def yaml_text(data: Mapping[str, Any]) -> str:
    """Plain data as the text of a YAML file."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(data)))


def _escaped(data: Any) -> Any:
    """Plain data with `${` escaped in all texts."""
    if isinstance(data, Mapping):
        return {key: _escaped(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_escaped(value) for value in data]
    return as_text(data) if isinstance(data, str) else data


def as_text(text: str) -> str:
    """The text with a backslash before each `${`, so that `${…}` is read as literal text, not interpolated."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
