"""Generated files (schemas, docs/fields.md) match the recipe classes."""

import json

import pytest
from conftest import ROOT
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from hfbsz.recipe.fields import Recipe, fields
from hfbsz.recipe.load import load
from hfbsz.recipe.schema import files
from hfbsz.system.yaml import read_yaml


@pytest.fixture(scope="module")
def validate():
    """A function that returns the errors an editor would show for a file in recipes/."""
    schemas = {path: json.loads((ROOT / path).read_text()) for path in files() if path.endswith(".json")}
    registry = Registry().with_resources(
        (f"file:///{path}", Resource.from_contents(schema)) for path, schema in schemas.items()
    )

    def errors(name, data):
        schema = {"$ref": f"file:///{name}"}
        return [error.message for error in Draft202012Validator(schema, registry=registry).iter_errors(data)]

    return errors


def test_generated_files_are_up_to_date():
    stale = [name for name, text in files().items() if (ROOT / name).read_text() != text]
    assert not stale, f"python scripts/schema.py writes {stale}"


def test_every_field_is_documented():
    page = (ROOT / "docs" / "fields.md").read_text()
    assert all(f"| `{name}` |" in page for name, _ in fields())


RECIPES = [path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "comparisons"]


@pytest.mark.parametrize("path", sorted(RECIPES), ids=lambda path: path.stem)
def test_every_recipe_and_preset_is_valid_and_points_to_its_schema(validate, path):
    schema = path.with_name("schema.json").relative_to(ROOT).as_posix()
    assert "# yaml-language-server: $schema=schema.json" in path.read_text() and schema in files()
    assert validate(schema, read_yaml(path)) == []


@pytest.mark.parametrize(
    "data",
    [
        {"bathc": {}},
        {"batch": {"sizze": "8 sequences"}},
        {"batch": {"size": 8}},
        {"batch": {"size": "8"}},
        {"batch": {"size": "law:nobody"}},
        {"optim": {"lr": -1}},
        {"optim": {"name": "adam"}},
        {"data": {"sequence_length": "long"}},
        {"model": {"shape": 3}},
        {"schedule": {"floor": 2}},
    ],
)
def test_invalid_recipes_are_errors(validate, data):
    assert validate("recipes/schema.json", data)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"base": "large_batch", "model": "tiny", "data": {"preset": "python_stdlib", "vocab_size": 4096}},
        {"batch": {"size": "law:step_law"}, "optim": {"lr": "law:step_law"}},
        {"batch": {"size": "1.2Mtok", "ramp": "doubling:75%"}, "optim": {"lr": 0.003, "betas": [0.9, 0.95]}},
        {"model": {"shape": {"model_type": "llama", "rope_parameters": {"rope_theta": 1e5}}}},
        Recipe().to_dict(),
        load(["recipe=seesaw"]).recipe.to_dict(),
    ],
    ids=range(7),
)
def test_valid_recipes_are_not_errors(validate, data):
    assert validate("recipes/schema.json", data) == []
