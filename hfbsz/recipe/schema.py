"""What the classes of a recipe say to people and editors: `--help`, a page of all fields, JSON schemas of files."""

import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import PRESETS, EvalSet, Recipe, fields
from hfbsz.recipe.law_name import Named
from hfbsz.recipe.load import Loaded

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_HEAD = """# Every field of a recipe

Made from the code by `python scripts/schema.py`. `scripts/pretrain.py recipe=NAME --help` shows the same with a
recipe's values, and where each came from. A field has one name: in a file (nested), on the command line
(`batch.size=64seq`) and in Python.
"""


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe's file: every field is optional; `base`, and presets by name or with changes."""
    _, bundle = models_json_schema([(Recipe, "validation")], ref_template="#/$defs/{model}")
    definitions = bundle["$defs"]
    root = definitions.pop("Recipe")
    properties = {"base": {"type": "string", "description": "a recipe that this one changes"}, **root["properties"]}
    for key in PRESETS:
        definitions[key.title()]["properties"]["preset"] = {"type": "string", "description": f"a file of recipes/{key}"}
        either = [{"type": "string"}, {"$ref": f"#/$defs/{key.title()}"}]
        properties[key] = {"description": properties[key]["description"], "anyOf": either}
    for field in definitions["EvalSet"]["properties"].values():
        field.pop("default", None)  # of a column: as in data
    parts = {name: part for name, part in definitions.items() if name not in ("Amount", "Named")}  # written as text
    whole = {**root, "properties": properties, "$defs": parts}
    return {"$schema": _DIALECT, "title": "hfbsz recipe", **_plain(whole)}


def _plain(node: Any) -> Any:
    """A schema without titles that repeat names and defaults of whole parts; amounts as a recipe has them."""
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {"value", "unit"}:
        return str(Amount(**node))
    dropped = {"title", "default"} if "$ref" in node else {"title"}
    return {key: _plain(value) for key, value in node.items() if key not in dropped}


def preset_schema(part: str) -> dict[str, Any]:
    """The JSON schema of a preset's file, in the folder `part` beside the recipes' own."""
    return {"$schema": _DIALECT, "title": f"hfbsz {part} preset", "$ref": f"../schema.json#/$defs/{part.title()}"}


def fields_page() -> str:
    """Every field of a recipe as a Markdown page: type, default, meaning."""
    lines = [_HEAD]
    for title, found in _parts():
        lines += [f"## {title}", "| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{field[0]}` | {' | '.join(_cell(text) for text in field[1:])} |" for field in found]
        lines.append("")
    return "\n".join(lines)


def _parts() -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """(heading, [(field, type, default, meaning)]) of the recipe itself and of each of its parts."""
    described = [(name, *describe(info)) for name, info in fields()]
    own = [field for field in described if "." not in field[0]]
    yield "The recipe", own
    for part, info in Recipe.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield f"`{part}`", [field for field in described if field[0].startswith(f"{part}.")]
    of_set = [(name.rpartition(".")[2], name, *describe(info)) for name, info in fields(EvalSet, "eval.sets.NAME.")]
    yield (
        "A set of `eval.sets`",
        [
            (name, type_, "as in data" if field in EvalSet.COLUMNS else default, meaning)
            for field, name, type_, default, meaning in of_set
        ],
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def files() -> dict[str, str]:
    """Path below the project's root: text, of everything that is made from the classes."""
    return {
        "recipes/schema.json": json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n",
        **{f"recipes/{part}/schema.json": json.dumps(preset_schema(part), indent=1) + "\n" for part in PRESETS},
        "docs/fields.md": fields_page(),
    }


def help_text(loaded: Loaded) -> str:
    """Every field: type, value, where the value came from, what it means."""
    values = loaded.recipe.to_dict()
    lines = []
    for name, info in fields():
        value: Any = values
        for key in name.split("."):
            value = None if value is None else value[key]
        origins = {origin for key, origin in loaded.sources.items() if f"{key}.".startswith(f"{name}.")}
        source = ", ".join(sorted(origins)) or "default"
        shown = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
        lines.append(f"  {name}={shown}   ({_type_name(info.annotation)}; {source})\n      {info.description}")
    return "\n".join(lines)


def describe(info: Any) -> tuple[str, str, str]:
    """(type, default, meaning) of a field, for people."""
    default = info.default.model_dump(mode="json") if isinstance(info.default, BaseModel) else info.default
    shown = "null" if default is None else json.dumps(default, ensure_ascii=False, default=str).strip('"')
    return _type_name(info.annotation), shown, info.description or ""


def _type_name(annotation: Any) -> str:
    if annotation in (Amount, Named):
        return "amount" if annotation is Amount else "law"
    if annotation is type(None):
        return "null"
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(options[0])
    if origin is Literal:
        return " | ".join(str(option) for option in options)
    if origin in (Union, UnionType):
        return " | ".join(_type_name(option) for option in options)
    inside = f"[{', '.join(_type_name(option) for option in options)}]" if options else ""
    return ("any" if annotation is Any else annotation.__name__) + inside
