"""What a run is in W&B: from the recipe, from W&B's environment variables where it is silent, and its parent."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.load import load
from hfbsz.report.wandb.identity import (
    Identity,
    data_name,
    identity_of,
    read_identity,
    unknown_log_model,
    with_parents,
)

OURS = Identity("run-1", "p", "team", None, "pretrain", "n", artifacts="end")
VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "their-team",
    "WANDB_RUN_GROUP": "their group",
    "WANDB_TAGS": "a, b,,c ",
    "WANDB_NOTES": "why it was run",
    "WANDB_LOG_MODEL": "checkpoint",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*VARIABLES, "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def of(*words: str) -> Identity:
    return identity_of(recipe(*words), "id", "pretrain", "a name")


def recipe(*words: str) -> Recipe:
    return load(["recipe=debug", *words]).recipe


def test_without_recipe_and_environment_the_defaults():
    assert of() == Identity("id", "hfbsz", None, None, "pretrain", "a name")


def test_the_environment_counts_where_the_recipe_is_silent(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    theirs = of()
    assert (theirs.project, theirs.entity, theirs.group) == ("theirs", "their-team", "their group")
    assert (theirs.tags, theirs.notes, theirs.artifacts) == (("a", "b", "c"), "why it was run", "checkpoints")
    words = ["log.project=mine", "log.entity=me", "log.group=g", "log.tags=[x,y]", "log.notes=mine", "log.name=named"]
    mine = of(*words, "log.artifacts=off")
    assert (mine.project, mine.entity, mine.group, mine.name) == ("mine", "me", "g", "named")
    assert (mine.tags, mine.notes, mine.artifacts) == (("x", "y"), "mine", "off")


def test_empty_variables_are_none(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert of() == Identity("id", "hfbsz", None, None, "pretrain", "a name")


@pytest.mark.parametrize(
    ("value", "artifacts"), [("end", "end"), ("checkpoint", "checkpoints"), ("false", "off"), ("yes", "off")]
)
def test_wandb_log_model_has_the_values_of_trainer_and_others_are_told(monkeypatch, value, artifacts):
    monkeypatch.setenv("WANDB_LOG_MODEL", value)
    assert of().artifacts == artifacts
    line = unknown_log_model(recipe().log)
    assert (line is None) == (value != "yes")
    assert unknown_log_model(recipe("log.artifacts=end").log) is None


def test_it_is_read_as_it_was_written(tmp_path):
    identity = replace(OURS, tags=("a", "b"), notes="x", parent_run="p/q", parent_model="p/model-q:final_model")
    identity.write(tmp_path)
    assert read_identity(tmp_path) == identity
    for wrong in ({"tags": "a"}, {"tags": [1]}, {"notes": 5}, {"id": ["x"]}):
        (tmp_path / "wandb.json").write_text(json.dumps(json.loads((tmp_path / "wandb.json").read_text()) | wrong))
        with pytest.raises(UserError, match=r"wandb\.json cannot be read"):
            read_identity(tmp_path)
        identity.write(tmp_path)


@pytest.mark.parametrize(
    ("artifacts", "place", "model"),
    [
        ("end", "", "team/p/model-run-1:final_model"),
        ("off", "", None),
        ("end", "/checkpoint-20", None),
        ("checkpoints", "/checkpoint-20", "team/p/model-run-1:checkpoint_global_step_20"),
    ],
)
def test_a_run_from_the_weights_of_another_has_it_as_parent(tmp_path, artifacts, place, model):
    replace(OURS, artifacts=artifacts).write(tmp_path)
    words = ("model.shape=null", f"model.path={tmp_path}") if not place else (f"branch={tmp_path}{place}",)
    child = of(*words)
    assert (child.parent_run, child.parent_model) == ("team/p/run-1", model)


@pytest.mark.parametrize("path", ["gpt2", "/", "a/b/c", "checkpoint-x", "."])
def test_another_model_is_no_parent(path):
    assert of("model.shape=null", f"model.path={path}").parent_run is None


def test_the_config_holds_the_parents():
    plan = {"facts": {"data_hash": "ab" * 32}}
    parents = with_parents({"plan": plan}, replace(OURS, parent_run="p/q"))["parents"]
    assert parents == {"data": "data-abababababababab", "run": "p/q"}
    assert with_parents({"plan": {}}, OURS) == {"plan": {}}
    for facts in (None, [], "x", {}, {"data_hash": 5}, {"data_hash": "../x"}, {"data_hash": ""}):
        assert data_name({"facts": facts}) is None


@pytest.mark.parametrize(
    "word", ["log.tags=['']", f"log.tags=[{'x' * 65}]", "log.artifacts=all", "log.alerts=[batches]", "log.name=''"]
)
def test_values_that_wandb_refuses_are_refused(word):
    with pytest.raises(UserError) as caught:
        recipe(word)
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith(word.partition("=")[0])


def test_off_is_a_value_of_the_lists():
    assert recipe("log.alerts=off").log.alerts == [] and recipe("log.alerts=[failed,batch]").log.alerts[0] == "failed"
    assert Path(recipe("log.artifacts=off").log.artifacts or "").name == "off"


def test_the_best_weights_must_be_kept_to_be_sent():
    with pytest.raises(UserError, match=r"log\.artifacts=best needs .*checkpoint\.best=true"):
        recipe("log.artifacts=best", "checkpoint.best=false")
    assert recipe("log.artifacts=best", "checkpoint.best=false", "checkpoint.save=best").log.artifacts == "best"
