"""Parse the words of a command line as (field, value) pairs; for words in another form, say what to type instead."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import PRESETS
from hfbsz.recipe.foreign import to_type
from hfbsz.recipe.foreign_words import TABLE, answer, is_foreign
from hfbsz.recipe.presets import ROOTS, find_preset, looks_like_data, names_of
from hfbsz.recipe.values import is_field, known_fields, reason_for_set, why_invalid

COMMAND_LINE = "command line"  # the source of a value that does not come from a file
_LISTS = ("target_modules", "lora_target_modules")  # flags that take several words
_VALUE = "VALUE"  # placeholder in advice
_FILES = ("recipe", *PRESETS)  # keys whose value names a file of recipes/


class Word(NamedTuple):
    """One setting of the command line, in any form; `key` is empty if none can be recognized."""

    key: str
    value: str
    written: str  # the original word or words
    valid: bool  # key=value in one word


def read_pairs(
    words: Sequence[str], errors: list[str], options: Collection[str] = ()
) -> tuple[list[tuple[str, str]], Mapping[str, str]]:
    """Parse the words of a command line.

    Returns the (key, value) pairs of all `key=value` words, and a mapping of all values by key that also includes words
    in other forms (`--lr 1e-3`). For each of those, a line is added to `errors`. `options` are names of the command's
    own options, which are not fields.
    """
    parsed = list(_parse(words, options))
    values = {word.key: word.value for word in parsed if word.key}
    errors += [_advice(word, values, options) for word in parsed if not word.valid]
    return [(word.key, word.value) for word in parsed if word.valid], values


def no_such_field(key: str, value: object, source: str, values: Mapping[str, str]) -> str:
    """The error line for an unknown name: the field to use for an option of another tool, else the closest match.

    `values` are all values of the command line by key.
    """
    if reason := reason_for_set(key):
        return f"{key}: no such field ({source}){reason}"
    known = known_fields(key)
    inner = [name for name in known if name.startswith(f"{key}.")]
    if (advice := answer(key, value, values)) is not None and (not inner or not _is_mapping(value)):
        return f"{key}: {advice} ({source})" if source != COMMAND_LINE else f"{key}={value}: {advice}"
    if inner:
        return f"{key}: no such field ({source}); its fields are {', '.join(inner)}"
    near = did_you_mean(key, {*known, *(name.split(".")[0] for name in known)})
    return f"{key}: no such field ({source}){near}"


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and value.startswith("{"))


def _parse(words: Sequence[str], options: Collection[str]) -> Iterator[Word]:
    def is_name(word: str) -> bool:
        return word in options or _is_name(word)

    index = 0
    while index < len(words):
        word, rest = words[index], words[index + 1 : index + 3]
        index += 1
        key, equals, value = word.partition("=")
        key = key.lstrip("-")
        if not equals and len(rest) == 2 and rest[0] == "=":  # lr = 1e-3
            yield Word(key, rest[1], f"{word} = {rest[1]}", False)
            index += 2
        elif not equals and rest and len(rest[0]) > 1 and rest[0][0] == "=":  # lr =1e-3
            yield Word(key, rest[0][1:], f"{word} {rest[0]}", False)
            index += 1
        elif equals and key and not value and rest and _is_value(rest[0]):  # lr= 1e-3
            yield Word(key, rest[0], f"{word} {rest[0]}", False)
            index += 1
        elif not equals and word.startswith(("--no-", "--no_")) and key.replace("-", "_") not in TABLE:  # --no-pack
            yield Word(key[3:], "false", word, False)
        elif not equals and rest and is_name(word) and _is_value(rest[0]) and not is_name(rest[0]):  # lr 1e-3
            yield Word(key, rest[0], f"{word} {rest[0]}", False)
            index += 1
        elif not equals and word.startswith("-") and key:  # --lr 1e-3
            count = 0
            while index + count < len(words) and _is_value(words[index + count]) and (count == 0 or key in _LISTS):
                count += 1
            values = words[index : index + count]
            yield Word(key, " ".join(values), " ".join([word, *values]), False)
            index += count
        elif equals and key:
            spaced = key != key.strip()  # 'lr = 1e-3' in one word
            yield Word(key.strip(), value.strip() if spaced else value, word, not spaced)
        else:
            yield Word("", "", word, False)


def _is_value(word: str) -> bool:
    if word.startswith("-"):
        return word[1:2].isdigit() or word[1:2] == "."  # a negative number, not a flag
    return "=" not in word


def _is_name(word: str) -> bool:
    return is_field(word) or word in _FILES or (is_foreign(word) and not word.startswith("-"))


def _advice(word: Word, values: Mapping[str, str], options: Collection[str]) -> str:
    """The error line for a word that is not key=value, with what to type instead."""
    if not word.key:
        return f"{word.written!r} is not key=value{_guess(word.written, values)}"
    if word.key in options:
        return f"{word.written}: {to_type(f'{word.key}={word.value or _VALUE}')}"
    if is_field(word.key):
        return f"{word.written}: {_field_advice(word.key, word.value)}"
    if word.key in _FILES:
        return f"{word.written}: {_file_advice(word.key, word.value or 'NAME')}"
    if (advice := answer(word.key, word.value, values)) is not None:
        return f"{word.written}: {advice}"
    near = did_you_mean(word.key, known_fields(word.key))
    return f"{word.written}: no such field{near}; write fields as key=value"


def _field_advice(key: str, value: str) -> str:
    """What to type to set a field."""
    if not value:
        value = "true" if why_invalid(key, _VALUE) is not None and why_invalid(key, "true") is None else _VALUE
    elif (problem := why_invalid(key, value)) is not None:
        return f"write {key}=VALUE; {value!r} is not valid: {problem}"
    return to_type(f"{key}={value}")


def _file_advice(key: str, name: str) -> str:
    """What to type for a recipe or preset, or that there is none with this name."""
    try:
        if name != "NAME":
            find_preset([root / ("" if key == "recipe" else key) for root in ROOTS], name, key)
    except UserError as problem:
        return problem.lines[0]
    return to_type(f"{key}={name}")


def _guess(word: str, values: Mapping[str, str]) -> str:
    """What to type for a bare word, guessed from files and names that exist; empty if there is no guess."""
    if not word.strip("=- "):
        return ""
    path = Path(os.path.expanduser(word))
    key, colon, value = word.partition(":")
    if colon and value and (is_field(key) or key in _FILES):
        setting = f"{key}={value}"
    elif is_field(word):
        setting = f"{word}=VALUE"
    elif word in names_of(ROOTS) or (os.path.isfile(path) and path.suffix in (".yaml", ".yml")):
        setting = f"recipe={word}"
    elif kind := next((kind for kind in PRESETS if word in names_of([root / kind for root in ROOTS])), None):
        setting = f"{kind}={word}"
    elif os.path.isfile(path / "config.json"):
        setting = f"model.path={word}"
    elif os.path.isdir(path):
        setting = f"data.files={word.rstrip('/')}/*"
    elif looks_like_data(word) and "data.files" in values:  # a glob that the shell has expanded
        setting = f"data.files=[{values['data.files'].strip('[]')},{word}]"
    elif looks_like_data(word):
        setting = f"data.files={word}"
    else:
        return did_you_mean(word, [*names_of(ROOTS), *known_fields(word)])
    return f": {to_type(setting)}"


def split_options(words: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of a command with these names (`name=value`, dashes before it allowed), and its other words."""
    options, others = {}, []
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if equals and name in names:
            options[name] = value
        else:
            others.append(word)
    return options, others
