"""Generate documentation from the recipe classes: `--help`, docs/fields.md, and JSON schemas for editors."""

import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import PRESETS, EvalSet, Recipe, fields
from hfbsz.recipe.law_name import LawName
from hfbsz.recipe.load import LoadedRecipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_HEAD = """# Every field of a recipe

Generated from the code by `python scripts/schema.py`. `scripts/pretrain.py recipe=NAME --help` prints the same list
with the values of a recipe and the source of each value. A field has the same name in a file (nested), on the command
line (`batch.size=64seq`) and in Python.
"""


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file: every field is optional; `base`, and presets by name or with changed fields."""
    _, bundle = models_json_schema([(Recipe, "validation")], ref_template="#/$defs/{model}")
    definitions = bundle["$defs"]
    root = definitions.pop("Recipe")
    properties = {
        "base": {"type": "string", "description": "recipe whose fields this one overrides"},
        **root["properties"],
    }
    for key in PRESETS:
        definitions[key.title()]["properties"]["preset"] = {
            "type": "string",
            "description": f"name of a preset in recipes/{key}",
        }
        either = [{"type": "string"}, {"$ref": f"#/$defs/{key.title()}"}]
        properties[key] = {"description": properties[key]["description"], "anyOf": either}
    for field in definitions["EvalSet"]["properties"].values():
        field.pop("default", None)  # columns default to those of data
    text_types = ("Amount", "LawName")  # a file has them as text
    sections = {name: section for name, section in definitions.items() if name not in text_types}
    schema = {**root, "properties": properties, "$defs": sections}
    return {"$schema": _DIALECT, "title": "hfbsz recipe", **_plain(schema)}


def _plain(node: Any) -> Any:
    """A schema without titles (they repeat names) and without defaults of sections; amounts as text."""
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {"value", "unit"}:
        return str(Amount(**node))
    dropped = {"title", "default"} if "$ref" in node else {"title"}
    return {key: _plain(value) for key, value in node.items() if key not in dropped}


def preset_schema(part: str) -> dict[str, Any]:
    """The JSON schema of a preset file in recipes/`part`; it refers to that of the recipes."""
    return {"$schema": _DIALECT, "title": f"hfbsz {part} preset", "$ref": f"../schema.json#/$defs/{part.title()}"}


def fields_page() -> str:
    """A Markdown page with the type, default and description of every field of a recipe."""
    lines = [_HEAD]
    for title, rows in _tables():
        lines += [f"## {title}", "| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{row[0]}` | {' | '.join(_cell(text) for text in row[1:])} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _tables() -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """Yield (heading, [(field, type, default, description)]) for the top level of a recipe and for each section."""
    described = [(name, *describe(info)) for name, info in fields()]
    yield "The recipe", [field for field in described if "." not in field[0]]
    for part, info in Recipe.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield f"`{part}`", [field for field in described if field[0].startswith(f"{part}.")]
    set_fields = [(name.rpartition(".")[2], name, *describe(info)) for name, info in fields(EvalSet, "eval.sets.NAME.")]
    yield (
        "A set of `eval.sets`",
        [
            (name, type_, "as in data" if field in EvalSet.COLUMNS else default, meaning)
            for field, name, type_, default, meaning in set_fields
        ],
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def files() -> dict[str, str]:
    """The content of all generated files, by path relative to the root of the repository."""
    return {
        "recipes/schema.json": json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n",
        **{f"recipes/{part}/schema.json": json.dumps(preset_schema(part), indent=1) + "\n" for part in PRESETS},
        "docs/fields.md": fields_page(),
    }


def help_text(loaded: LoadedRecipe) -> str:
    """Every field of a recipe with its value, type, the source of the value, and its description."""
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
    """(type, default, description) of a field, as text."""
    default = info.default.model_dump(mode="json") if isinstance(info.default, BaseModel) else info.default
    shown = "null" if default is None else json.dumps(default, ensure_ascii=False, default=str).strip('"')
    choices = (info.json_schema_extra or {}).get("enum")
    kind = " | ".join(choices) if choices else _type_name(info.annotation)
    return kind, shown, info.description or ""


def _type_name(annotation: Any) -> str:
    if annotation in (Amount, LawName):
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
