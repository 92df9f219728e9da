import re

import pytest
from conftest import ROOT

from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.fields import EvalSet, Recipe, fields
from hfbsz.recipe.load import from_mapping, load
from hfbsz.recipe.presets import list_recipes
from hfbsz.recipe.schema import help_text
from hfbsz.system.yaml import read_yaml, write_yaml


def refused(*words):
    with pytest.raises(UserError) as caught:
        load(words)
    return caught.value.lines


def test_later_wins_and_every_value_knows_its_source():
    loaded = load(["recipe=large_batch", "optim.lr=1e-3", "model=tiny_gpt2"])
    assert loaded.recipe.optim.lr == 1e-3 and loaded.sources["optim.lr"] == "command line"
    assert loaded.recipe.model.shape["model_type"] == "gpt2" and "hidden_size" not in loaded.recipe.model.shape
    assert loaded.sources["model.shape.n_embd"] == "model/tiny_gpt2.yaml"
    assert loaded.sources["batch.ramp"] == "large_batch.yaml"
    assert loaded.sources["schedule.shape"] == "small_batch_pretrain.yaml"  # its base
    assert "seed" not in loaded.sources
    shown = help_text(loaded)
    assert all(f"  {name}=" in shown for name, _ in fields())
    assert "optim.lr=0.001   (float | law; command line)" in shown and "seed=0   (int; default)" in shown


def test_all_errors_are_reported_at_once_one_line_each():
    lines = refused(
        "batch.sze=8seq", "optim.lr=-1", "seed=x", "model=tinny", "recipe=larg_batch", "batch.ramp=8:linear"
    )
    assert len(lines) == 6
    text = "\n".join(lines)
    for part in (
        "did you mean 'batch.size'",
        "optim.lr",
        "seed",
        "did you mean 'tiny'",
        "did you mean 'large_batch'",
        "is not a ramp",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch=8", "its fields are batch.size"),
        ("modl=tiny", "did you mean 'model'"),
        ("batch.size=64", "write a number and a unit"),
        ("batch.size=-8seq", "negative"),
        ("optim.betas=[0.9,1.5]", "optim.betas: Input should be less than 1"),
        ("schedule.shape=cosin", "'cosine'"),
        ("large_batch", "is not key=value"),
        ("duration=1e400tok", "too large"),
        ("batch.ramp=0:8 50%:16.9", "whole number"),
        ("eval.sets.a/b=x.txt", "eval.sets"),
        ("eval.sets.chat.pakage=x==1", "did you mean 'eval.sets.chat.package'"),
        ("eval.sets.chat={files: x, txt: y}", "eval.sets.chat.txt: no such field; did you mean 'eval.sets.chat.text'"),
        ("eval.sets.chat={files: x, exclude: [a]}", "no such field: evaluation sets do not have it, only data does"),
        ("eval.sets.chat.exclude=[a]", "eval.sets.chat.exclude: no such field (command line): evaluation sets do not"),
        ("eval.sets.chat.tokenizer=x", "eval.sets.chat.tokenizer: no such field (command line): evaluation sets do"),
        ("eval.sets.chat.package=x==1", "eval.sets.chat: package and file go together"),
        ("eval.sets.chat={files: x, hub: y}", "eval.sets.chat: files and hub are two sources"),
        ("eval.sets.chat={files: x, split: test}", "eval.sets.chat: hub_config, split and revision belong to hub"),
        ("eval.sets.chat.text=words", "eval.sets.chat: no source is set"),
        ("eval.sets.chat={files: x, label: y}", "eval.sets.chat.label does not belong to task=language_modeling"),
        ("recipe=nowhere/x.yaml", "no such file"),
        ("optim.lr=[1", "optim.lr: Input should be a valid number"),
        ("eval.sets.chat={files: x, text: [}", "cannot read"),
        ("optim.betas=0.9,0.99", "write optim.betas=[0.9,0.99]"),
        ("data.label=", "data.label: the value is empty: data.label=null for none"),
    ],
)
def test_a_mistake_is_one_line_with_advice(word, message):
    (line,) = refused(word)
    assert message in line


def test_a_set_is_globs_or_a_mapping_that_later_words_change(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("eval:\n  sets:\n    a: [x/*.txt, y.txt]\n    b: {hub: some/set, split: test, text: words}\n")
    sets = load([f"recipe={path}", "eval.sets.a.text=body", "eval.sets.b.split=dev"]).recipe.eval.sets
    assert sets["a"] == EvalSet(files=["x/*.txt", "y.txt"], text="body")
    assert sets["b"] == EvalSet(hub="some/set", split="dev", text="words")
    recipe = load([f"recipe={path}", "eval.sets.b=z.txt", "eval.sets.a.skip={}"]).recipe
    assert recipe.eval.sets["b"] == EvalSet(files="z.txt")
    write_yaml(recipe.to_dict(), tmp_path / "again.yaml")
    again = load([f"recipe={tmp_path}/again.yaml"]).recipe
    assert again == recipe and again.to_dict() == recipe.to_dict()
    assert recipe.to_dict()["eval"]["sets"] == {
        "a": {"files": ["x/*.txt", "y.txt"], "skip": {}},
        "b": {"files": "z.txt"},
    }
    other = load([f"recipe={path}", "eval.sets.a.hub=other", "eval.sets.b.files=z.txt"])
    assert other.recipe.eval.sets == {"a": EvalSet(hub="other"), "b": EvalSet(files="z.txt", text="words")}
    assert other.notes == (
        "eval.sets.a.hub (command line) replaces eval.sets.a.files (x.yaml)",
        "eval.sets.b.files (command line) replaces eval.sets.b.hub (x.yaml)",
    )


def test_environment_variables_are_interpolated_on_the_command_line(monkeypatch):
    monkeypatch.setenv("NUMBER", "7")
    recipe = load(["recipe=debug", "output_dir=runs/${oc.env:NUMBER}/a", "seed=${oc.env:NUMBER}"]).recipe
    assert recipe.output_dir == "runs/7/a" and recipe.seed == 7
    (line,) = refused("recipe=debug", "log.group=${oc.env:NOT_THERE}")
    assert line.startswith("log.group: cannot read") and "NOT_THERE" in line


def test_a_file_that_is_not_a_recipe(tmp_path):
    for text, message in (
        ("- a\n- b", "a recipe is a mapping"),
        ("a: [", "not valid YAML"),
        ("batch: {sizee: 3}", "did you mean 'batch.size'"),
    ):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        (line,) = refused(f"recipe={path}")
        assert message in line
    path.write_text(f"base: {path}")
    assert "leads back" in refused(f"recipe={path}")[0]


def test_recipes_are_frozen_and_round_trip_through_yaml(tmp_path):
    recipe = load(["recipe=large_batch"]).recipe
    with pytest.raises(Exception, match="frozen"):
        recipe.seed = 1
    write_yaml(recipe.to_dict(), tmp_path / "recipe.yaml")
    assert (
        from_mapping(read_yaml(tmp_path / "recipe.yaml")) == recipe == load([f"recipe={tmp_path}/recipe.yaml"]).recipe
    )


def test_the_digest_depends_only_on_fields_that_change_the_result():
    def digest(*words):
        return load(["recipe=large_batch", *words]).recipe.digest()

    same = ["batch.micro_max=2", "log.every=1steps", "eval.rows=3", "output_dir=x", "threads=1", "log.wandb=off"]
    assert {digest(word) for word in same} == {digest()}
    assert (
        len({digest(word) for word in ("seed=1", "optim.lr=1e-3", "batch.size=32seq", "duration=1Mtok")} | {digest()})
        == 5
    )


def test_units_are_the_same_in_files_and_on_the_command_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("duration: 1.2M tokens\nbatch: {size: 64 sequences}\noptim: {lr: 3e-3}")
    assert load([f"recipe={path}"]).recipe == load(["duration=1.2Mtok", "batch.size=64seq", "optim.lr=0.003"]).recipe


def test_every_recipe_loads_and_documents_itself():
    assert {
        "large_batch",
        "small_batch_pretrain",
        "large_batch_unscaled",
        "ramp_doubling",
        "seesaw",
        "grow_not_decay",
        "debug",
    } <= {name for name, _ in list_recipes()}
    for path in (ROOT / "recipes").glob("*.yaml"):
        head = path.read_text().splitlines()[:3]
        assert all(line.startswith("# ") for line in head), path
        script = "pretrain" if load([f"recipe={path.stem}"]).recipe.task == "language_modeling" else "finetune"
        assert re.search(rf"^# accelerate launch .*scripts/{script}.py recipe={path.stem}( model.path=\S+)?$", head[1])
        assert "Expect: " in head[2]
        assert load([f"recipe={path.stem}"]).recipe != Recipe()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("world", [1, 8])
def test_every_recipe_has_a_plan_on_one_process_and_on_eight(path, world):
    recipe = load([f"recipe={path.stem}"]).recipe
    if recipe.batch.start is not None and recipe.batch.start.value < world:
        pytest.skip("its first batch is smaller than that")
    facts = {} if recipe.task == "language_modeling" else {"rows": recipe.data.rows or 5000, "tokens_per_row": 30.0}
    plan = resolve(recipe, world, Facts(parameters=106_000_000, **facts))
    assert plan.steps > 0 and explain(plan)


def test_single_fields_change_the_digest_or_do_not():
    digest = load(["recipe=ramp_adamw"]).recipe.digest()
    for outside in ("batch.micro_max=4", "log.every=1steps", "eval.full=false", "output_dir=x", "threads=1"):
        assert load(["recipe=ramp_adamw", outside]).recipe.digest() == digest
    for inside in ("optim.lr=1e-3", "data.attend=within", "optim.name=lamb", "seed=1", "scaling.rule=none"):
        assert load(["recipe=ramp_adamw", inside]).recipe.digest() != digest
    named = load(["recipe=ramp_adamw", "data.attend=across", "optim.name=adamw"]).recipe  # the defaults
    assert named.digest() == digest


def test_a_later_alternative_replaces_an_earlier_one(tmp_path):
    loaded = load(["recipe=large_batch", "model.path=bert"])
    assert loaded.recipe.model.path == "bert" and loaded.recipe.model.shape is None
    assert loaded.notes == ("model.path (command line) replaces model.shape (model/tiny.yaml)",)
    assert not any(key.startswith("model.shape") for key in loaded.sources)
    data = load(["recipe=small_batch", "data.files=x.csv"]).recipe.data
    assert (data.files, data.package, data.file, data.sha256, data.label) == ("x.csv", None, None, None, "category")
    turns = load(["recipe=pretrain_then_finetune", "data.prompt=q", "data.response=a"]).recipe.data
    assert (turns.messages, turns.prompt, turns.response) == (None, "q", "a")
    assert load(["recipe=large_batch", "model=null", "model.path=bert"]).notes == ()
    assert load(["recipe=small_batch", "data=null", "data.label=l"]).recipe.data.package is None
    path = tmp_path / "x.yaml"
    path.write_text("base: small_batch\nmodel: {preset: tiny, path: bert}\ndata: {hub: a/b, split: all}\n")
    loaded = load([f"recipe={path}", "data.validation_split=test"])
    assert loaded.recipe.model.path == "bert" and loaded.recipe.data.hub == "a/b"
    assert loaded.notes == (
        "model.path (x.yaml) replaces model.shape (model/tiny.yaml)",
        "data.hub (x.yaml) replaces data.package (data/rotten_tomatoes_reviews.yaml)",
    )
    path.write_text("base: small_batch\nmodel: null\ndata: null\n")
    assert load([f"recipe={path}"]).recipe.model == Recipe().model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.path=a", "model.shape={model_type: llama}"], "model: path and shape are two models"),
        (["data.files=a", "data.hub=b"], "data: files and hub are two sources"),
        (["task=instruction", "data.messages=m", "data.prompt=q"], "data: messages and prompt are two forms"),
        (["recipe=large_batch", "model.path=a", "model.shape.hidden_size=64"], "model: path and shape are two models"),
    ],
)
def test_two_alternatives_of_one_source_are_refused(words, message):
    (line,) = refused(*words)
    assert line.startswith(message)


def test_a_preset_after_a_field_of_its_section_is_reported():
    loaded = load(["recipe=debug", "model.path=bert", "model=tiny"])
    assert loaded.recipe.model.path is None
    assert loaded.notes[-1] == "model=tiny comes after model.path and replaces it: put it before"
