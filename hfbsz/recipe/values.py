"""Convert the text of a field to its value by the type of the field, on the command line and in files alike.

A text field takes the text as written: `yes`, `0`, `-1`, `#` and `1e-3` stay text. Numbers follow Python's rules. Only
the free fields below `model.shape` are typed by YAML (`is_free`).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from hfbsz.display import quoted
from hfbsz.errors import UserError
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import EvalSet, fields
from hfbsz.recipe.law_name import LawName

SET = re.compile(r"eval\.sets\.[^.]+")
SKIP = re.compile(rf"(data|{SET.pattern})\.skip\.(?P<column>.+)")
_SHAPE = "model.shape"
_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*?)\s*(?:,|$)""")


class Null(str):
    """An unquoted null of a YAML file, as it is spelled: None if the field may be null, else that text."""


class Kind(NamedTuple):
    """Which kinds of value a field takes."""

    null: bool = False
    text: bool = False
    number: bool = False
    items: bool = False  # a list
    section: type[BaseModel] | None = None
    columns: bool = False  # a mapping of column names to texts


def is_field(key: str) -> bool:
    """Whether a dotted name is a field, an evaluation set (`eval.sets.NAME`), or a key of a mapping with free keys."""
    return _annotation(key) is not None


def is_free(key: str) -> bool:
    """Whether the value is typed by YAML: true for `model.shape` and everything below it."""
    return key == _SHAPE or key.startswith(f"{_SHAPE}.")


def known_fields(key: str) -> list[str]:
    """The dotted names of all fields, including those of the evaluation set that `key` belongs to."""
    return list(_fields(_set_of(key)))


def reason_for_set(key: str) -> str:
    """Why an evaluation set has no field `key`, if `data` has a field of that name; else an empty text."""
    eval_set, name = _set_of(key), key.rpartition(".")[2]
    if not eval_set or key != f"{eval_set}.{name}" or not is_field(f"data.{name}"):
        return ""
    return f": evaluation sets do not have it, only data does (data.{name})"


def path_of(key: str) -> list[str]:
    """The parts of a dotted name; the column name in `skip.COLUMN` is one part, even if it contains dots."""
    skip = SKIP.fullmatch(key)
    return [*key[: skip.start("column") - 1].split("."), skip["column"]] if skip else key.split(".")


def parse_text(key: str, text: str) -> Any:
    """The value of `key=text` on the command line; raises UserError if it is empty or cannot be read.

    `null` is None if the field may be null. Quotes around the complete text are removed, and their content stays text.
    Brackets are a list if the field takes one, unless a file of exactly that name exists; braces are a mapping.
    """
    kind = _kind(_annotation(key))
    if (inner := _unquoted(text)) is not None:
        return _scalar(inner, kind)
    if not text:
        example = "null for none" if kind.null else "{COLUMN: VALUE}" if kind.columns else "VALUE"
        raise UserError(f"{key}: the value is empty: {key}={example}")
    if kind.null and text == "null":
        return None
    if kind.items and _in_brackets(text) and not (kind.text and os.path.exists(text)):
        return [_scalar(item, kind) for item in _items(text)]
    if text[0] == "{" and text[-1] == "}" and (kind.section or kind.columns):
        try:
            return convert(_annotation(key), yaml.load(text, TextLoader))
        except yaml.YAMLError as problem:
            raise UserError(f"{key}: cannot read {quoted(text)}: {str(problem).splitlines()[0]}") from None
    return _scalar(text, kind)


def why_invalid(key: str, text: str) -> str | None:
    """Why `key=text` is invalid; None if it is valid, or if only the config of the model can tell (`model.shape`)."""
    if key not in _fields(_set_of(key)) or is_free(key):
        return None
    try:
        _one_field_model(key)(value=parse_text(key, text))
    except UserError as problem:
        return problem.lines[0].partition(": ")[2]
    except ValidationError as problem:
        return problem.errors()[0]["msg"].removeprefix("Value error, ")
    return None


def is_section_mapping(key: str, text: str) -> bool:
    """Whether `key` is a section, or `eval.sets`, and the text a mapping in braces of its fields."""
    below = any(name.startswith(f"{key}.") for name in _fields(""))
    return text[:1] == "{" and text[-1:] == "}" and (key == "eval.sets" or (below and not is_field(key)))


def value_in_file(key: str, value: Any) -> Any:
    """The value of a field, converted from what `TextLoader` read from a file."""
    return convert(_annotation(key), value)


def convert(annotation: Any, value: Any) -> Any:
    """Convert a text, or a list or mapping of texts, to the type of a field; other values are returned unchanged."""
    kind = _kind(annotation)
    if isinstance(value, Null):
        return None if kind.null or not kind.text else str(value)
    if isinstance(value, list):
        return [_scalar(item, kind) if isinstance(item, str) else item for item in value]
    if isinstance(value, Mapping):
        if kind.columns:
            return {column: convert(str | list[str], item) for column, item in value.items()}
        known = {} if kind.section is None else kind.section.model_fields
        return {name: convert(known[name].annotation, item) if name in known else item for name, item in value.items()}
    return _scalar(value, kind) if isinstance(value, str) else value


class TextLoader(yaml.SafeLoader):
    """A YAML loader that reads unquoted scalars as text (`no`, `1e-3`, `0:16`), and an unquoted null as a Null."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


TextLoader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: Null(node.value))  # type: ignore[no-untyped-call]


def _scalar(text: str, kind: Kind) -> Any:
    if kind.number:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return str(text)


def _unquoted(text: str) -> str | None:
    """The text without the quotes that enclose it; None if no quotes do."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    return text[1:-1] if quoted else None


def _in_brackets(text: str) -> bool:
    """Whether the text's first bracket is closed by its last character: `[a,b]`, not `[0-9][0-9]`."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return index > 0 and index == len(text) - 1
    return False


def _items(text: str) -> Iterator[str]:
    """The items of a list in brackets: JSON texts, or items separated by commas, each optionally in quotes."""
    try:
        items = json.loads(text)
        if all(isinstance(item, str) for item in items):
            yield from items
            return
    except ValueError:
        pass
    inner, position = text[1:-1], 0
    while position < len(inner):
        match = _ITEM.match(inner, position)
        assert match is not None  # its last alternative matches anything
        position = match.end()
        if match[1] or position < len(inner):
            unquoted = _unquoted(match[1])
            yield match[1] if unquoted is None else unquoted


def _set_of(key: str) -> str:
    """The evaluation set that a dotted name belongs to, `eval.sets.NAME`; empty if none."""
    match = SET.match(key)
    return match[0] if match else ""


@cache
def _fields(eval_set: str) -> dict[str, FieldInfo]:
    """All fields by dotted name, including those of `eval_set` if that is not empty."""
    return dict((*fields(), *(fields(EvalSet, f"{eval_set}.") if eval_set else ())))


@cache
def _one_field_model(key: str) -> type[BaseModel]:
    """A class whose only field, `value`, validates as the field does."""
    info = _fields(_set_of(key))[key]
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model(
        "OneField", __config__=config, value=(Any if info.annotation is None else info.annotation, info)
    )


def _annotation(key: str) -> Any:
    """The type of a field; None if there is no field of that name."""
    if SET.fullmatch(key):
        return str | list[str] | EvalSet
    if SKIP.fullmatch(key):
        return str | list[str]
    if (info := _fields(_set_of(key)).get(key)) is not None:
        return info.annotation
    return Any if key.startswith(f"{_SHAPE}.") and len(key) > len(_SHAPE) + 1 else None


@cache
def _kind(annotation: Any) -> Kind:
    """The kinds of value that an annotation takes, over all options of a union."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inside[0])
    if origin in (Union, UnionType):
        options = [_kind(option) for option in inside]
        section = next((option.section for option in options if option.section), None)
        flags = {name: any(getattr(option, name) for option in options) for name in Kind._fields if name != "section"}
        return Kind(**flags, section=section)
    if annotation is NoneType:
        return Kind(null=True)
    if annotation in (int, float):
        return Kind(number=True)
    if origin in (list, tuple):
        return Kind(items=True, number=_kind(inside[0]).number)
    if origin is dict:
        return Kind(columns=inside[1] == str | list[str])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Kind(section=annotation)
    return Kind(text=annotation in (str, Amount, LawName) or origin is Literal)
