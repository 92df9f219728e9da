"""Build a Recipe from presets, files and `key=value` words, and report all mistakes at once.

Later values win: defaults, then the recipe's file (after its `base` and the presets that it names), then the command
line. `LoadedRecipe.sources` records for every field where its value comes from.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

from hfbsz.display import file_name, has_password, quoted
from hfbsz.errors import UserError
from hfbsz.recipe.alternatives import displaced
from hfbsz.recipe.fields import PRESETS, Recipe, code_of, leaves
from hfbsz.recipe.presets import ROOTS, find_preset
from hfbsz.recipe.validation_errors import error_line
from hfbsz.recipe.values import (
    SET,
    Null,
    TextLoader,
    is_field,
    is_free,
    is_section_mapping,
    parse_text,
    path_of,
    value_in_file,
)
from hfbsz.recipe.words import COMMAND_LINE, no_such_field, read_pairs
from hfbsz.system.yaml import read_typed


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, its name, where each value comes from (by dotted field name), and notes for the user about that."""

    recipe: Recipe
    name: str
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()


def load(words: Sequence[str]) -> LoadedRecipe:
    """The recipe that the words `recipe=NAME`, `model=PRESET`, `data=PRESET` and `key.path=value` describe.

    Raises UserError with one line for each mistake.
    """
    draft = _Draft()
    pairs, draft.words = read_pairs(words, draft.errors)
    name = next((value for key, value in reversed(pairs) if key == "recipe"), None)
    if name is not None:
        with draft.collecting():
            draft.merge_file(find_preset(ROOTS, name, "recipe"))
    for key, value in pairs:
        with draft.collecting():
            if is_section_mapping(key, value):
                draft.put_all(*_read_mapping(key, value), COMMAND_LINE)
            elif key in PRESETS:
                draft.merge_preset(key, None if value == "null" else value, COMMAND_LINE)
            elif key != "recipe":
                draft.put(key, _read_value(key, value) if is_field(key) else value, COMMAND_LINE)
    return LoadedRecipe(
        draft.recipe(), file_name(Path(name).stem) if name else "run", draft.sources, tuple(dict.fromkeys(draft.notes))
    )


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, such as a run's `recipe.yaml`; raises UserError with one line for each mistake."""
    try:
        return Recipe(**values)
    except ValidationError as problem:
        raise UserError([error_line(detail, {}) for detail in problem.errors()]) from None


def script_in_file(field: str, script: str, source: str) -> str:
    """The error line for a script that is named in a file, which must not start code."""
    return (
        f"{field}: {script!r} ({source}) runs code with your permissions: read it, then name it "
        "on the command line, not in a file"
    )


def _read_value(key: str, text: str) -> Any:
    """The value of a word of the command line; `${…}` is interpolated."""
    try:
        if is_free(key):
            return OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=True)["v"]  # type: ignore[call-overload,index]
        if "${" in text:
            text = str(OmegaConf.to_container(OmegaConf.create({"v": text}), resolve=True)["v"])  # type: ignore[call-overload,index]
    except Exception as problem:  # the YAML reader raises errors of many types
        raise _unreadable(key, text, problem) from None
    return parse_text(key, text)


def _read_mapping(key: str, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A mapping in braces from the command line, in the form that `_read_fields` returns for a file."""
    nested = f"{': {'.join(key.split('.'))}: {text}{'}' * key.count('.')}"
    try:
        typed = OmegaConf.to_container(OmegaConf.create(nested), resolve=True)
        return _texts_and_typed(yaml.load(nested, TextLoader), typed)
    except Exception as problem:  # the YAML readers raise errors of many types
        raise _unreadable(key, text, problem) from None


def _unreadable(key: str, text: str, problem: Exception) -> UserError:
    advice = "; ${…} is replaced by another value: for the literal text write \\${…}" if "${" in text else ""
    return UserError(f"{key}: cannot read {quoted(text)}: {str(problem).splitlines()[0]}{advice}")


def _read_fields(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a YAML file twice: as texts (nested), and as YAML types them (by dotted name)."""
    text, typed = read_typed(path)
    return _texts_and_typed(yaml.load(text, TextLoader) or {}, typed)


def _texts_and_typed(texts: Any, typed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    resolved = OmegaConf.to_container(OmegaConf.create(_without_nulls(texts)), resolve=True)
    return {str(key): value for key, value in _resolved(texts, resolved).items()}, dict(leaves(typed))


def _without_nulls(texts: Any) -> Any:
    if isinstance(texts, Mapping):
        return {key: _without_nulls(value) for key, value in texts.items()}
    if isinstance(texts, list):
        return [_without_nulls(value) for value in texts]
    return None if isinstance(texts, Null) else texts


def _resolved(texts: Any, resolved: Any) -> Any:
    """`texts`, with each text that contains `${…}` replaced by its interpolated value."""
    if isinstance(texts, Mapping):
        return {key: _resolved(value, resolved[key]) for key, value in texts.items()}
    if isinstance(texts, list):
        return [_resolved(value, other) for value, other in zip(texts, resolved, strict=True)]
    return resolved if isinstance(texts, str) and "${" in texts else texts


@dataclass
class _Draft:
    """The values of a recipe while files and words are merged, with their sources, errors and notes."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: Mapping[str, str] = field(default_factory=dict)  # of the command line, by key

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Add the lines of a UserError raised inside to `errors`, and continue."""
        try:
            yield
        except UserError as problem:
            self.errors += problem.lines

    def recipe(self) -> Recipe:
        """The validated recipe; raises UserError with the collected errors and those of the validation."""
        for name in ("data", *(f"eval.sets.{name}" for name in self.section("eval.sets"))):
            columns = self.section(name)
            if columns.get("messages") and (columns.get("prompt") or columns.get("response")):
                self.errors.append(f"{name}: messages and prompt are two forms of a conversation: set only one")
        try:
            recipe = Recipe(**self.values)
        except ValidationError as problem:
            self.errors += [error_line(detail, self.sources) for detail in problem.errors()]
        else:
            self.errors += self._forbidden(recipe)
        if self.errors:
            raise UserError(dict.fromkeys(self.errors))
        return recipe

    def _forbidden(self, recipe: Recipe) -> Iterator[str]:
        """Errors about values that must not come from a file (scripts), or must not be written to one (passwords)."""
        for name, script in code_of(recipe):
            if (source := self.sources.get(name, COMMAND_LINE)) != COMMAND_LINE:
                yield script_in_file(name, script, source)
        for key, value in leaves(recipe.to_dict()):
            if any(
                isinstance(text, str) and has_password(text) for text in (value if isinstance(value, list) else [value])
            ):
                yield (
                    f"{key}: it contains a password or token, which would be written to the run's files: remove "
                    "it, and use netrc, HF_TOKEN or pip's settings instead"
                )

    def section(self, key: str) -> Mapping[str, Any]:
        """The values of a section, or of a mapping, by its dotted name; empty if nothing is set there."""
        section: Any = self.values
        for name in key.split("."):
            section = section.get(name) if isinstance(section, Mapping) else None
        return section if isinstance(section, Mapping) else {}

    def merge_file(self, path: Path, seen: tuple[Path, ...] = ()) -> None:
        """Merge a recipe's file: first its `base`, then its presets, then its fields."""
        if path.resolve() in seen:
            raise UserError(f"{path}: `base` leads back to this file")
        data, typed = _read_fields(path)
        base = data.pop("base", None)
        if base is not None and not isinstance(base, Null):
            self.merge_file(find_preset(ROOTS, str(base), "base"), (*seen, path.resolve()))
        for key in PRESETS:
            section = data.get(key)
            is_name = isinstance(section, str)
            preset = section if is_name else section.pop("preset", None) if isinstance(section, dict) else None
            if preset is not None:
                self.merge_preset(key, None if isinstance(preset, Null) else preset, path.name)
                if is_name:
                    del data[key]
        self.put_all(data, typed, path.name)

    def merge_preset(self, kind: str, name: str | None, source: str) -> None:
        """Replace a complete section, `model` or `data`, by a preset; None empties it."""
        lost = [key for key, origin in self.sources.items() if key.startswith(f"{kind}.") and origin == source]
        if lost:
            self.notes.append(f"{kind}={name or 'null'} comes after {', '.join(lost)} and replaces it: put it before")
        self.values[kind] = {}
        for key in [key for key in self.sources if key.startswith(f"{kind}.")]:
            del self.sources[key]
        if name is not None:
            path = find_preset([root / kind for root in ROOTS], name, kind)
            data, typed = _read_fields(path)
            self.put_all({kind: data}, {f"{kind}.{key}": value for key, value in typed.items()}, f"{kind}/{path.name}")

    def put_all(self, data: Mapping[str, Any], typed: Mapping[str, Any], source: str) -> None:
        """Set the fields of a file: from their texts in `data`, or from `typed` where fields are free (`is_free`)."""
        for key, value in leaves(data):
            if is_free(key):
                value = typed.get(key, value)
            elif is_field(key):
                value = value_in_file(key, value)
            self.put(key, value, source)

    def put(self, key: str, value: Any, source: str) -> None:
        """Set one field; a name that is not a field is added to `errors`."""
        if not is_field(key):
            self.errors.append(no_such_field(key, value, source, self.words if source == COMMAND_LINE else {}))
            return
        *parents, last = path_of(key)
        section = self.values
        for depth, parent in enumerate(parents, 1):
            inner = section.get(parent)
            if not isinstance(inner, dict):
                name = ".".join(parents[:depth])
                is_globs = inner is not None and SET.fullmatch(name)
                section[parent] = {"files": inner} if is_globs else {}
                if is_globs:
                    self.sources[f"{name}.files"] = self.sources.pop(name)
            section = section[parent]
        if value is not None:
            self.displace(key, source)
        section[last] = value
        self.sources[key] = source
        if SET.fullmatch(key) and isinstance(value, dict):
            self.sources |= {f"{key}.{name}": source for name in value}

    def displace(self, key: str, source: str) -> None:
        """Unset the fields from earlier sources that `key` is an alternative to, with a note."""
        replaced: dict[str, list[str]] = {}
        for earlier, is_head in list(displaced(key, source, self.sources)):
            *parents, last = path_of(earlier)
            removed = self._remove(parents, last)
            origin = self.sources.pop(earlier, source)
            if removed is not None and is_head:
                replaced.setdefault(origin, []).append("model.shape" if is_free(earlier) else earlier)
        for origin, names in replaced.items():
            self.notes.append(f"{key} ({source}) replaces {', '.join(dict.fromkeys(names))} ({origin})")

    def _remove(self, parents: Sequence[str], last: str) -> Any:
        section: Any = self.values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        removed = section.pop(last, None) if isinstance(section, dict) else None
        if isinstance(section, dict) and not section and parents[-1:] == ["shape"]:
            self._remove(parents[:-1], "shape")
        return removed
