"""What the text of a field means: the type of the field decides, on the command line and in files alike.

A field of text takes the text as written: `yes`, `0`, `-1`, `#` and `1e-3` are what they look like. A number is read by
Python's own rules, and the free fields below `model.shape` alone are typed by YAML (`is_free`).
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
from hfbsz.recipe.law_name import Named

SET = re.compile(r"eval\.sets\.[^.]+")
SKIP = re.compile(rf"(data|{SET.pattern})\.skip\.(?P<column>.+)")
_SHAPE = "model.shape"
_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*?)\s*(?:,|$)""")


class Null(str):
    """A plain null of a YAML file, with its spelling: None where the field takes that, else the text itself."""


class Kind(NamedTuple):
    """What a field takes."""

    null: bool = False
    text: bool = False
    number: bool = False
    items: bool = False  # a list
    part: type[BaseModel] | None = None
    columns: bool = False  # a mapping of columns to texts


def is_field(key: str) -> bool:
    """Whether a dotted name is that of a field, of a set of `eval.sets`, or below a mapping whose keys are free."""
    return _annotation(key) is not None


def is_free(key: str) -> bool:
    """Whether YAML types the value: `model.shape` and what is below it."""
    return key == _SHAPE or key.startswith(f"{_SHAPE}.")


def known_fields(key: str) -> list[str]:
    """Every field, and those of the further evaluation set that a dotted name belongs to."""
    return list(_fields(SET.match(key)[0] if SET.match(key) else ""))  # type: ignore[index]


def path_of(key: str) -> list[str]:
    """The parts of a dotted name; a column of `skip` is one part, whatever dots its name has."""
    free = SKIP.fullmatch(key)
    return [*key[: free.start("column") - 1].split("."), free["column"]] if free else key.split(".")


def meaning(key: str, text: str) -> Any:
    """The value that `key=text` gives on the command line; raises UserError where it is empty or cannot be read.

    `null` is None where the field takes that. A pair of quotes around the whole is removed, and what is in them is
    text. Brackets are a list where the field takes one, unless a file of that very name exists; braces are a mapping.
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
    if text[0] == "{" and text[-1] == "}" and (kind.part or kind.columns):
        try:
            return fit(_annotation(key), yaml.load(text, TextLoader))
        except yaml.YAMLError as problem:
            raise UserError(f"{key}: cannot read {quoted(text)}: {str(problem).splitlines()[0]}") from None
    return _scalar(text, kind)


def misfit(key: str, text: str) -> str | None:
    """Why a field does not take `key=text`; None where it does, or where its model's config has to say that."""
    own = SET.match(key)
    if key not in _fields(own[0] if own else "") or is_free(key):
        return None
    try:
        _alone(key)(value=meaning(key, text))
    except UserError as problem:
        return problem.lines[0].partition(": ")[2]
    except ValidationError as problem:
        return problem.errors()[0]["msg"].removeprefix("Value error, ")
    return None


def in_parts(key: str, text: str) -> bool:
    """Whether a text is a mapping in braces of the fields below `key`, or of evaluation sets."""
    below = any(name.startswith(f"{key}.") for name in _fields(""))
    return text[:1] == "{" and text[-1:] == "}" and (key == "eval.sets" or (below and not is_field(key)))


def value_in_file(key: str, value: Any) -> Any:
    """The value of a field from what `TextLoader` read in a file."""
    return fit(_annotation(key), value)


def fit(annotation: Any, value: Any) -> Any:
    """Texts, lists and mappings of texts as the type of a field takes them; what does not fit is left as it is."""
    kind = _kind(annotation)
    if isinstance(value, Null):
        return None if kind.null or not kind.text else str(value)
    if isinstance(value, list):
        return [_scalar(item, kind) if isinstance(item, str) else item for item in value]
    if isinstance(value, Mapping):
        if kind.columns:
            return {column: fit(str | list[str], item) for column, item in value.items()}
        inside = {} if kind.part is None else kind.part.model_fields
        return {name: fit(inside[name].annotation, item) if name in inside else item for name, item in value.items()}
    return _scalar(value, kind) if isinstance(value, str) else value


class TextLoader(yaml.SafeLoader):
    """YAML whose plain scalars stay text (`no`, `1e-3`, `0:16`); a plain null is a Null."""

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
    """What is in the quotes around the whole of a text; None where there are none."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    return text[1:-1] if quoted else None


def _in_brackets(text: str) -> bool:
    """Whether the text's first bracket is closed by its last character: `[a,b]`, not `[0-9][0-9]`."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return place > 0 and place == len(text) - 1
    return False


def _items(text: str) -> Iterator[str]:
    """The texts of a list: JSON, or items parted by commas of which each may stand in quotes."""
    try:
        read = json.loads(text)
        if all(isinstance(item, str) for item in read):
            yield from read
            return
    except ValueError:
        pass
    inner, place = text[1:-1], 0
    while place < len(inner):
        found = _ITEM.match(inner, place)
        assert found is not None  # its last alternative takes anything
        place = found.end()
        if found[1] or place < len(inner):
            bare = _unquoted(found[1])
            yield found[1] if bare is None else bare


@cache
def _fields(own: str) -> dict[str, FieldInfo]:
    """Every field by its dotted name, and those of the evaluation set `own`."""
    return dict((*fields(), *(fields(EvalSet, f"{own}.") if own else ())))


@cache
def _alone(key: str) -> type[BaseModel]:
    """A class whose one field, `value`, takes what the field takes."""
    own = SET.match(key)
    info = _fields(own[0] if own else "")[key]
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model("Alone", __config__=config, value=(Any if info.annotation is None else info.annotation, info))


def _annotation(key: str) -> Any:
    """The type of a field; None where there is none of that name."""
    if SET.fullmatch(key):
        return str | list[str] | EvalSet
    if SKIP.fullmatch(key):
        return str | list[str]
    own = SET.match(key)
    if (known := _fields(own[0] if own else "").get(key)) is not None:
        return known.annotation
    return Any if key.startswith(f"{_SHAPE}.") and len(key) > len(_SHAPE) + 1 else None


@cache
def _kind(annotation: Any) -> Kind:
    """What an annotation takes, over all options of a union."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inside[0])
    if origin in (Union, UnionType):
        options = [_kind(option) for option in inside]
        part = next((option.part for option in options if option.part), None)
        flags = {name: any(getattr(option, name) for option in options) for name in Kind._fields if name != "part"}
        return Kind(**flags, part=part)
    if annotation is NoneType:
        return Kind(null=True)
    if annotation in (int, float):
        return Kind(number=True)
    if origin in (list, tuple):
        return Kind(items=True, number=_kind(inside[0]).number)
    if origin is dict:
        return Kind(columns=inside[1] == str | list[str])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Kind(part=annotation)
    return Kind(text=annotation in (str, Amount, Named) or origin is Literal)
