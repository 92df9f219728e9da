"""From presets, files and `key=value` words to a Recipe, with all that is wrong told at once.

Later wins: defaults, then the recipe's file (after its `base`, and after the presets that it names), then the command
line. `Loaded.sources` says for every field where its value came from.
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
from hfbsz.recipe.fields import PRESETS, Recipe, is_script, leaves
from hfbsz.recipe.misfits import explain_misfit
from hfbsz.recipe.presets import ROOTS, find_preset
from hfbsz.recipe.values import (
    SET,
    Null,
    TextLoader,
    in_parts,
    is_field,
    is_free,
    meaning,
    path_of,
    value_in_file,
)
from hfbsz.recipe.words import no_such_field, read_pairs
from hfbsz.system.yaml import read_typed

_TYPED = "command line"


@dataclass(frozen=True)
class Loaded:
    """A recipe, its name, for every field (dotted) where its value came from, and what a person should know of that."""

    recipe: Recipe
    name: str
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()


def load(words: Sequence[str]) -> Loaded:
    """The recipe that `recipe=NAME`, `model=PRESET`, `data=PRESET` and `key.path=value` words ask for.

    Raises UserError with all that is wrong, one line each.
    """
    draft = _Draft()
    pairs, draft.given = read_pairs(words, draft.errors)
    name = next((value for key, value in reversed(pairs) if key == "recipe"), None)
    if name is not None:
        with draft.collecting():
            draft.merge_file(find_preset(ROOTS, name, "recipe"))
    for key, value in pairs:
        with draft.collecting():
            if in_parts(key, value):
                draft.put_all(*_parts(key, value), _TYPED)
            elif key in PRESETS:
                draft.merge_preset(key, None if value == "null" else value, _TYPED)
            elif key != "recipe":
                draft.put(key, _typed(key, value) if is_field(key) else value, _TYPED)
    return Loaded(
        draft.recipe(), file_name(Path(name).stem) if name else "run", draft.sources, tuple(dict.fromkeys(draft.notes))
    )


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, such as a run's `recipe.yaml` or `plan.json`; raises UserError."""
    try:
        return Recipe(**values)
    except ValidationError as problem:
        raise UserError([explain_misfit(detail, {}) for detail in problem.errors()]) from None


def from_a_file(script: str, source: str) -> str:
    """The line for a metric's script that a file names."""
    return (
        f"eval.metrics: {script!r} ({source}) is a script, which runs here with all your rights: read it, and name it "
        "on the command line, not in a file"
    )


def _typed(key: str, text: str) -> Any:
    """The value of a word of the command line; `${…}` interpolates."""
    try:
        if is_free(key):
            return OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=True)["v"]  # type: ignore[call-overload,index]
        if "${" in text:
            text = str(OmegaConf.to_container(OmegaConf.create({"v": text}), resolve=True)["v"])  # type: ignore[call-overload,index]
    except Exception as problem:  # whatever the YAML reader makes of a user's text
        raise _unread(key, text, problem) from None
    return meaning(key, text)


def _parts(key: str, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A mapping in braces of the command line, as `_read_fields` gives a file."""
    whole = f"{': {'.join(key.split('.'))}: {text}{'}' * key.count('.')}"
    try:
        typed = OmegaConf.to_container(OmegaConf.create(whole), resolve=True)
        return _both(yaml.load(whole, TextLoader), typed)
    except Exception as problem:  # whatever the YAML readers make of a user's text
        raise _unread(key, text, problem) from None


def _unread(key: str, text: str, problem: Exception) -> UserError:
    plain = "; ${…} stands for another value: as text it is \\${…}" if "${" in text else ""
    return UserError(f"{key}: cannot read {quoted(text)}: {str(problem).splitlines()[0]}{plain}")


def _read_fields(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's file: its fields as they are written, and as YAML types them, by dotted names."""
    text, typed = read_typed(path)
    return _both(yaml.load(text, TextLoader) or {}, typed)


def _both(texts: Any, typed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    resolved = OmegaConf.to_container(OmegaConf.create(_without_nulls(texts)), resolve=True)
    return {str(key): value for key, value in _resolved(texts, resolved).items()}, dict(leaves(typed))


def _without_nulls(texts: Any) -> Any:
    if isinstance(texts, Mapping):
        return {key: _without_nulls(value) for key, value in texts.items()}
    if isinstance(texts, list):
        return [_without_nulls(value) for value in texts]
    return None if isinstance(texts, Null) else texts


def _resolved(texts: Any, resolved: Any) -> Any:
    """`texts`, with what `${…}` stands for in place of it."""
    if isinstance(texts, Mapping):
        return {key: _resolved(value, resolved[key]) for key, value in texts.items()}
    if isinstance(texts, list):
        return [_resolved(value, other) for value, other in zip(texts, resolved, strict=True)]
    return resolved if isinstance(texts, str) and "${" in texts else texts


@dataclass
class _Draft:
    """A recipe while it is put together; it changes with every file and word."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    given: Mapping[str, str] = field(default_factory=dict)  # the words of the command line

    @contextmanager
    def collecting(self) -> Iterator[None]:
        try:
            yield
        except UserError as problem:
            self.errors += problem.lines

    def recipe(self) -> Recipe:
        """The recipe; raises UserError with all that was found wrong on the way, and all that does not fit."""
        for part in ("data", *(f"eval.sets.{name}" for name in self.at("eval.sets"))):
            there = self.at(part)
            if there.get("messages") and (there.get("prompt") or there.get("response")):
                self.errors.append(f"{part}: messages and prompt are two forms of a conversation: name one")
        try:
            recipe = Recipe(**self.values)
        except ValidationError as problem:
            self.errors += [explain_misfit(detail, self.sources) for detail in problem.errors()]
        else:
            self.errors += self._untold(recipe)
        if self.errors:
            raise UserError(dict.fromkeys(self.errors))
        return recipe

    def _untold(self, recipe: Recipe) -> Iterator[str]:
        """What must not come from a file, and what must not be written into the run's."""
        if (source := self.sources.get("eval.metrics", _TYPED)) != _TYPED:
            for script in filter(is_script, recipe.eval.metrics):
                yield from_a_file(script, source)
        for key, value in leaves(recipe.to_dict()):
            if any(
                isinstance(text, str) and has_password(text) for text in (value if isinstance(value, list) else [value])
            ):
                yield (
                    f"{key}: its URL holds a password or token, which would stand in the run's files: leave it out "
                    "(netrc, HF_TOKEN and pip's settings are where it belongs)"
                )

    def at(self, key: str) -> Mapping[str, Any]:
        """The part of a dotted name; empty where there is none."""
        there: Any = self.values
        for name in key.split("."):
            there = there.get(name) if isinstance(there, Mapping) else None
        return there if isinstance(there, Mapping) else {}

    def merge_file(self, path: Path, seen: tuple[Path, ...] = ()) -> None:
        """Merge a recipe's file: first its `base`, then its presets, then its fields."""
        if path.resolve() in seen:
            raise UserError(f"{path}: `base` leads back to this file")
        data, typed = _read_fields(path)
        base = data.pop("base", None)
        if base is not None and not isinstance(base, Null):
            self.merge_file(find_preset(ROOTS, str(base), "base"), (*seen, path.resolve()))
        for key in PRESETS:
            part = data.get(key)
            preset = part if isinstance(part, str) else part.pop("preset", None) if isinstance(part, dict) else None
            if preset is not None:
                self.merge_preset(key, None if isinstance(preset, Null) else preset, path.name)
                if isinstance(part, str):
                    del data[key]
        self.put_all(data, typed, path.name)

    def merge_preset(self, kind: str, name: str | None, source: str) -> None:
        """A preset takes the place of the whole part; None leaves nothing there."""
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
        """The fields of a file: as they are written, and as YAML types them where fields are free."""
        for key, value in leaves(data):
            if is_free(key):
                value = typed.get(key, value)
            elif is_field(key):
                value = value_in_file(key, value)
            self.put(key, value, source)

    def put(self, key: str, value: Any, source: str) -> None:
        if not is_field(key):
            self.errors.append(no_such_field(key, value, source, self.given if source == _TYPED else {}))
            return
        *parents, last = path_of(key)
        part = self.values
        for depth, parent in enumerate(parents, 1):
            there = part.get(parent)
            if not isinstance(there, dict):
                whole = ".".join(parents[:depth])
                is_globs = there is not None and SET.fullmatch(whole)
                part[parent] = {"files": there} if is_globs else {}
                if is_globs:
                    self.sources[f"{whole}.files"] = self.sources.pop(whole)
            part = part[parent]
        if value is not None:
            self.displace(key, source)
        part[last] = value
        self.sources[key] = source
        if SET.fullmatch(key) and isinstance(value, dict):
            self.sources |= {f"{key}.{name}": source for name in value}

    def displace(self, key: str, source: str) -> None:
        """Take back what an earlier source gave and `key` replaces, with a note."""
        replaced: dict[str, list[str]] = {}
        for earlier, names_it in list(displaced(key, source, self.sources)):
            *parents, last = path_of(earlier)
            removed = self._remove(parents, last)
            origin = self.sources.pop(earlier, source)
            if removed is not None and names_it:
                replaced.setdefault(origin, []).append("model.shape" if is_free(earlier) else earlier)
        for origin, names in replaced.items():
            self.notes.append(f"{key} ({source}) replaces {', '.join(dict.fromkeys(names))} ({origin})")

    def _remove(self, parents: Sequence[str], last: str) -> Any:
        part: Any = self.values
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        removed = part.pop(last, None) if isinstance(part, dict) else None
        if isinstance(part, dict) and not part and parents[-1:] == ["shape"]:
            self._remove(parents[:-1], "shape")
        return removed
