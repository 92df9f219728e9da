"""From presets, files and `key=value` words to a Recipe, with all that is wrong told at once.

Later wins: defaults, then the recipe's file (after its `base`, and after the presets that it names), then the command
line. `Loaded.sources` says for every field where its value came from.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe import PRESETS, EvalSet, Recipe, fields

ROOTS = (Path("recipes"), Path(__file__).resolve().parent.parent / "recipes")
_SET = re.compile(r"eval\.sets\.[^.]+")
_FREE = re.compile(rf"(model\.shape|(data|{_SET.pattern})\.skip)\..+")  # mappings whose keys are the user's


@dataclass(frozen=True)
class Loaded:
    """A recipe, its name, and for every field (dotted) where its value came from."""

    recipe: Recipe
    name: str
    sources: Mapping[str, str]


def load(words: Sequence[str]) -> Loaded:
    """The recipe that `recipe=NAME`, `model=PRESET`, `data=PRESET` and `key.path=value` words ask for.

    Raises UserError with all that is wrong, one line each.
    """
    errors: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    pairs = _pairs(words, errors)
    name = next((value for key, value in reversed(pairs) if key == "recipe"), None)
    if name is not None:
        with _collect(errors):
            _merge_file(find_preset(ROOTS, name, "recipe"), values, sources, errors)
    for key, value in pairs:
        with _collect(errors):
            if key in PRESETS:
                _merge_preset(key, value, values, sources, errors)
            elif key != "recipe":
                _put(values, key, value, "command line", sources, errors)
    try:
        recipe = Recipe(**values)
    except ValidationError as problem:
        errors += [_explain(detail, sources) for detail in problem.errors()]
    if errors:
        raise UserError(dict.fromkeys(errors))
    return Loaded(recipe, Path(name).stem if name else "run", sources)


@contextmanager
def _collect(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as problem:
        errors += problem.lines


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, such as a run's `recipe.yaml` or `plan.json`; raises UserError."""
    try:
        return Recipe(**values)
    except ValidationError as problem:
        raise UserError([_explain(detail, {}) for detail in problem.errors()]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain data (OmegaConf's reader: `3e-3` is a number, `${…}` interpolates); raises UserError."""
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, ValueError, OSError) as problem:
        raise UserError(f"{path}: {problem}".replace("\n", " ")) from None
    except Exception as problem:  # PyYAML's own errors share no base with OmegaConf's
        raise UserError(f"{path}: not valid YAML: {problem}".replace("\n", " ")) from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of fields, this is a {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def write_yaml(data: Mapping[str, Any], path: Path) -> None:
    OmegaConf.save(OmegaConf.create(dict(data)), path)


def find_preset(roots: Sequence[Path], name: str, kind: str) -> Path:
    """The file of a preset by name, or by path; raises UserError with the nearest name."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"{kind}={name}: no such file")
    for root in roots:
        if (root / f"{name}.yaml").is_file():
            return root / f"{name}.yaml"
    known = sorted({path.stem for root in roots for path in root.glob("*.yaml")})
    raise UserError(f"{kind}={name}: no such preset{did_you_mean(name, known)}; there are {', '.join(known) or 'none'}")


def list_recipes() -> list[tuple[str, str]]:
    """(name, first line of the file's head) of every recipe."""
    found = {path.stem: path for root in reversed(ROOTS) for path in root.glob("*.yaml")}
    return [(name, path.read_text().splitlines()[0].lstrip("# ")) for name, path in sorted(found.items())]


def _pairs(words: Sequence[str], errors: list[str]) -> list[tuple[str, Any]]:
    pairs = []
    for word in words:
        key, equals, text = word.lstrip("-").partition("=")
        if not equals or not key:
            errors.append(f"{word!r} is not key=value")
            continue
        try:
            value = (
                text
                if key in ("recipe", *PRESETS)
                else OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=True)
            )
            pairs.append((key, value["v"] if isinstance(value, dict) else value))
        except Exception as problem:  # whatever the YAML reader makes of a user's text
            errors.append(f"{key}: cannot read {text!r}: {str(problem).splitlines()[0]}")
    return pairs


def _merge_file(path: Path, values: dict, sources: dict, errors: list[str], seen: tuple[Path, ...] = ()) -> None:
    """Merge a recipe's file over `values`: first its `base`, then its presets, then its fields."""
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` leads back to this file")
    data = read_yaml(path)
    if (base := data.pop("base", None)) is not None:
        _merge_file(find_preset(ROOTS, str(base), "base"), values, sources, errors, (*seen, path.resolve()))
    for key in PRESETS:
        part = data.get(key)
        preset = part if isinstance(part, str) else part.pop("preset", None) if isinstance(part, dict) else None
        if preset is not None:
            _merge_preset(key, preset, values, sources, errors)
            if isinstance(part, str):
                del data[key]
    for key, value in _leaves(data):
        _put(values, key, value, path.name, sources, errors)


def _merge_preset(kind: str, name: str, values: dict, sources: dict, errors: list[str]) -> None:
    """A preset replaces the whole part."""
    path = find_preset([root / kind for root in ROOTS], name, kind)
    values[kind] = {}
    for key in [key for key in sources if key.startswith(f"{kind}.")]:
        del sources[key]
    for key, value in _leaves(read_yaml(path)):
        _put(values, f"{kind}.{key}", value, f"{kind}/{path.name}", sources, errors)


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(values: dict, key: str, value: Any, source: str, sources: dict, errors: list[str]) -> None:
    known = _known(key)
    if key not in known and not (_SET.fullmatch(key) or _FREE.fullmatch(key)):
        inside = [name for name in known if name.startswith(f"{key}.")]
        hint = (
            f"; its fields are {', '.join(inside)}"
            if inside
            else did_you_mean(key, {*known, *(name.split(".")[0] for name in known)})
        )
        errors.append(f"{key}: no such field ({source}){hint}")
        return
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, 1):
        there = values.get(parent)
        if not isinstance(there, dict):
            is_globs = there is not None and _SET.fullmatch(".".join(parents[:depth]))
            values[parent] = {"files": there} if is_globs else {}
        values = values[parent]
    values[last] = value
    sources[key] = source


def _known(key: str) -> list[str]:
    """Every field, and those of the further evaluation set that a dotted name belongs to."""
    own = _SET.match(key)
    return [name for name, _ in (*fields(), *(fields(EvalSet, f"{own[0]}.") if own else ()))]


def _explain(detail: ErrorDetails, sources: Mapping[str, str]) -> str:
    place = [str(part) for part in detail["loc"]]
    name = ".".join(place)
    known = _known(name)
    if detail["type"] == "extra_forbidden":
        return f"{name}: no such field{did_you_mean(name, known)}"
    while len(place) > 1 and name not in known and not _SET.fullmatch(name):
        place.pop()
        name = ".".join(place)
    where = f" ({sources[name]})" if name in sources else ""
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    given = "" if shown in message or isinstance(detail["input"], dict) else f", not {shown}"
    return f"{name}: {message}{given}{where}".removeprefix(": ")
