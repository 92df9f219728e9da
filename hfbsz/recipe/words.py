"""The words of a command line as pairs of field and value, and what to type instead of words that are none."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import PRESETS
from hfbsz.recipe.foreign import to_type
from hfbsz.recipe.foreign_words import TABLE, answer, is_foreign
from hfbsz.recipe.presets import ROOTS, find_preset, names_of, seems_data
from hfbsz.recipe.values import is_field, known_fields, misfit

_LISTS = ("target_modules", "lora_target_modules")  # whose flag takes several words
_VALUE = "VALUE"  # stands for what is to be typed
_FILES = ("recipe", *PRESETS)  # words that name a file of recipes/


class Word(NamedTuple):
    """A field and its value as they were written; `key` is empty where the word names no field."""

    key: str
    value: str
    written: str
    proper: bool  # key=value in one word


def read_pairs(
    words: Sequence[str], errors: list[str], options: Collection[str] = ()
) -> tuple[list[tuple[str, str]], Mapping[str, str]]:
    """(key, value) of every `key=value` word, and all values by their keys, also of words that are written otherwise:
    `errors` gets a line for each of those. `options` are names of a command that are no fields."""
    found = list(_words(words, options))
    given = {word.key: word.value for word in found if word.key}
    errors += [_instead(word, given, options) for word in found if not word.proper]
    return [(word.key, word.value) for word in found if word.proper], given


def no_such_field(key: str, value: object, source: str, given: Mapping[str, str]) -> str:
    """The line for a name that is no field: ours for another tool's word, else the nearest one."""
    known = known_fields(key)
    inside = [name for name in known if name.startswith(f"{key}.")]
    if (said := answer(key, value, given)) is not None and (not inside or not _is_mapping(value)):
        return f"{key}: {said} ({source})" if source != "command line" else f"{key}={value}: {said}"
    if inside:
        return f"{key}: no such field ({source}); its fields are {', '.join(inside)}"
    near = did_you_mean(key, {*known, *(name.split(".")[0] for name in known)})
    return f"{key}: no such field ({source}){near}"


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and value.startswith("{"))


def _words(words: Sequence[str], options: Collection[str]) -> Iterator[Word]:
    def is_name(word: str) -> bool:
        return word in options or _is_name(word)

    place = 0
    while place < len(words):
        word, rest = words[place], words[place + 1 : place + 3]
        place += 1
        key, equals, value = word.partition("=")
        key = key.lstrip("-")
        if not equals and len(rest) == 2 and rest[0] == "=":  # lr = 1e-3
            yield Word(key, rest[1], f"{word} = {rest[1]}", False)
            place += 2
        elif not equals and rest and len(rest[0]) > 1 and rest[0][0] == "=":  # lr =1e-3
            yield Word(key, rest[0][1:], f"{word} {rest[0]}", False)
            place += 1
        elif equals and key and not value and rest and _is_value(rest[0]):  # lr= 1e-3
            yield Word(key, rest[0], f"{word} {rest[0]}", False)
            place += 1
        elif not equals and word.startswith(("--no-", "--no_")) and key.replace("-", "_") not in TABLE:  # --no-pack
            yield Word(key[3:], "false", word, False)
        elif not equals and rest and is_name(word) and _is_value(rest[0]) and not is_name(rest[0]):  # lr 1e-3
            yield Word(key, rest[0], f"{word} {rest[0]}", False)
            place += 1
        elif not equals and word.startswith("-") and key:  # --lr 1e-3
            count = 0
            while place + count < len(words) and _is_value(words[place + count]) and (count == 0 or key in _LISTS):
                count += 1
            values = words[place : place + count]
            yield Word(key, " ".join(values), " ".join([word, *values]), False)
            place += count
        elif equals and key:
            spaced = key != key.strip()  # 'lr = 1e-3' in one word
            yield Word(key.strip(), value.strip() if spaced else value, word, not spaced)
        else:
            yield Word("", "", word, False)


def _is_value(word: str) -> bool:
    if word.startswith("-"):
        return word[1:2].isdigit() or word[1:2] == "."  # a number, no flag
    return "=" not in word


def _is_name(word: str) -> bool:
    return is_field(word) or word in _FILES or (is_foreign(word) and not word.startswith("-"))


def _instead(word: Word, given: Mapping[str, str], options: Collection[str]) -> str:
    """What to type instead of a word that is not key=value."""
    if not word.key:
        return f"{word.written!r} is not key=value{_meant(word.written, given)}"
    if word.key in options:
        return f"{word.written}: {to_type(f'{word.key}={word.value or _VALUE}')}"
    if is_field(word.key):
        return f"{word.written}: {_typed(word.key, word.value)}"
    if word.key in _FILES:
        return f"{word.written}: {_named(word.key, word.value or 'NAME')}"
    if (said := answer(word.key, word.value, given)) is not None:
        return f"{word.written}: {said}"
    near = did_you_mean(word.key, known_fields(word.key))
    return f"{word.written}: no such field{near}; a field is written key=value"


def _typed(key: str, value: str) -> str:
    """What to type for a field."""
    if not value:
        value = "true" if misfit(key, _VALUE) is not None and misfit(key, "true") is None else _VALUE
    elif (wrong := misfit(key, value)) is not None:
        return f"write {key}=VALUE; {value!r} does not fit: {wrong}"
    return to_type(f"{key}={value}")


def _named(key: str, name: str) -> str:
    """What to type for a recipe or preset; or why there is none of that name."""
    try:
        if name != "NAME":
            find_preset([root / ("" if key == "recipe" else key) for root in ROOTS], name, key)
    except UserError as problem:
        return problem.lines[0]
    return to_type(f"{key}={name}")


def _meant(word: str, given: Mapping[str, str]) -> str:
    """What a bare word could be."""
    if not word.strip("=- "):
        return ""
    path = Path(os.path.expanduser(word))
    key, colon, value = word.partition(":")
    if colon and value and (is_field(key) or key in _FILES):
        meant = f"{key}={value}"
    elif is_field(word):
        meant = f"{word}=VALUE"
    elif word in names_of(ROOTS) or (os.path.isfile(path) and path.suffix in (".yaml", ".yml")):
        meant = f"recipe={word}"
    elif kind := next((kind for kind in PRESETS if word in names_of([root / kind for root in ROOTS])), None):
        meant = f"{kind}={word}"
    elif os.path.isfile(path / "config.json"):
        meant = f"model.path={word}"
    elif os.path.isdir(path):
        meant = f"data.files={word.rstrip('/')}/*"
    elif seems_data(word) and "data.files" in given:  # a glob that the shell has expanded
        meant = f"data.files=[{given['data.files'].strip('[]')},{word}]"
    elif seems_data(word):
        meant = f"data.files={word}"
    else:
        return did_you_mean(word, [*names_of(ROOTS), *known_fields(word)])
    return f": {to_type(meant)}"
