"""The type of a field decides how its text is read, on the command line and in files; advice for other words."""

import json
import shlex

import pytest

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Lora
from hfbsz.recipe.foreign_words import TABLE
from hfbsz.recipe.load import from_mapping, load
from hfbsz.system.yaml import read_yaml, write_yaml

CLASSES = ["task=classification", "data.label=label"]


def lines_of(*words):
    with pytest.raises(UserError) as caught:
        load(words)
    return caught.value.lines


@pytest.mark.parametrize(
    "text", ["#", "try #1", "yes", "off", "0", "-1", "1e-3", "0x10", "1:30", "~x", "a: b", "&a", "%"]
)
def test_case_03_text_is_taken_as_it_is_written(tmp_path, text):
    recipe = load([*CLASSES, f"data.text={text}", f"log.group={text}", f"data.skip.label={text}"]).recipe
    assert (recipe.data.text, recipe.log.group, recipe.data.skip) == (text, text, {"label": text})
    write_yaml(recipe.to_dict(), tmp_path / "recipe.yaml")
    assert load([f"recipe={tmp_path}/recipe.yaml"]).recipe == recipe
    assert from_mapping(read_yaml(tmp_path / "recipe.yaml")) == recipe
    assert from_mapping(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_case_03_folders_that_differ_after_a_hash_are_two():
    paths = {load([f"output_dir=runs/try #{number}"]).recipe.output_dir for number in (1, 2)}
    assert paths == {"runs/try #1", "runs/try #2"}


def test_case_15_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load(["data.files=[~/a.txt,b.txt]", "output_dir=~/runs/x"]).recipe
    assert recipe.data.files == [f"{tmp_path}/a.txt", "b.txt"] and recipe.output_dir == f"{tmp_path}/runs/x"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("[no,yes]", ["no", "yes"]),
        ("[0,1]", ["0", "1"]),
        ("['a, b', c]", ["a, b", "c"]),
        ('["ä, b", "c"]', ["ä, b", "c"]),
        ('["\\u00e4"]', ["ä"]),
        ("[-1, null, #]", ["-1", "null", "#"]),
        ("[x[1],]", ["x[1]"]),
        ("null", None),
    ],
)
def test_case_20_a_list_of_text(text, labels):
    assert load([*CLASSES, f"data.labels={text}"]).recipe.data.labels == labels


def test_case_20_null_quotes_and_numbers():
    data = load([*CLASSES, "data.text=0", "data.id=null", "data.group='null'", 'data.label="a b"']).recipe.data
    assert (data.text, data.id, data.group, data.label) == ("0", None, "null", "a b")
    recipe = load(["optim.lr=1e-3", "seed=010", "optim.clip=null", "optim.betas=[0.9,.99]", "data.pack=no"]).recipe
    assert (recipe.optim.lr, recipe.seed, recipe.optim.clip, recipe.optim.betas) == (1e-3, 10, None, (0.9, 0.99))
    assert recipe.data.pack is False and load(["data.header=[a,no]"]).recipe.data.header == ["a", "no"]
    assert load(["model.lora={rank: 4}"]).recipe.model.lora == Lora(rank=4) != load(["model.lora={}"]).recipe.model.lora
    shape = load(["model.shape={model_type: llama, use_cache: no, rms_norm_eps: 1e-5}"]).recipe.model.shape
    assert shape == {"model_type": "llama", "use_cache": False, "rms_norm_eps": 1e-5}  # typed by YAML
    assert load(["batch.ramp='0:16 200ktok:32'"]).recipe.batch.ramp == "0:16 200ktok:32"
    assert load(["data.template='{a}' or '{b}'"]).recipe.data.template == "'{a}' or '{b}'"


def test_brackets_are_a_list_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(["data.files=[a,b]"]).recipe.data.files == ["a", "b"]
    (tmp_path / "[a,b]").write_text("text")
    assert load(["data.files=[a,b]"]).recipe.data.files == "[a,b]"
    assert load(["data.files=[0-9][0-9]"]).recipe.data.files == "[0-9][0-9]"
    assert load(["data.files=[*.txt, x[1].csv]"]).recipe.data.files == ["*.txt", "x[1].csv"]


def test_files_are_read_by_the_same_rules(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "task: classification\n"
        "data: {text: on, label: 1, labels: [no, ~, 1e-3, yes], id: null, group: 'null', exclude: [],\n"
        "  skip: {label: -1, a.b: [off, 2], no: x}, template: '{a}: {b}'}\n"
        "eval: {sets: {more: {files: 0, label: ~, text: 010}}}\n"
        "optim: {lr: 3e-3, betas: [0.9, 0.99]}\n"
        "log:\n  wandb: off\n  group: yes-1\n"
        "model: {shape: {model_type: gpt2, use_cache: no}}\n"
    )
    recipe = load([f"recipe={path}"]).recipe
    data, more = recipe.data, recipe.eval.sets["more"]
    assert (data.text, data.label, data.labels) == ("on", "1", ["no", "~", "1e-3", "yes"])
    assert (data.id, data.group, data.exclude) == (None, "null", [])
    assert data.skip == {"label": "-1", "a.b": ["off", "2"], "no": "x"}
    assert (more.files, more.label, more.text) == ("0", None, "010")
    assert (recipe.optim.lr, recipe.optim.betas, recipe.log.wandb) == (3e-3, (0.9, 0.99), "off")
    assert recipe.log.group == "yes-1" and recipe.model.shape == {"model_type": "gpt2", "use_cache": False}
    write_yaml(recipe.to_dict(), tmp_path / "again.yaml")
    assert load([f"recipe={tmp_path}/again.yaml"]).recipe == recipe


def test_evaluation_sets_on_the_command_line_are_text_too():
    sets = load(
        [*CLASSES, "eval.sets.a={files: yes, text: 0, skip: {x: -1}}", "eval.sets.b=[1,2]", "eval.sets.b.label=no"]
    )
    a, b = sets.recipe.eval.sets["a"], sets.recipe.eval.sets["b"]
    assert (a.files, a.text, a.skip) == ("yes", "0", {"x": "-1"}) and (b.files, b.label) == (["1", "2"], "no")


TYPED = [  # words of other tools or in another form, and the words that hfbsz suggests
    ("lr=1e-3", ["optim.lr=1e-3"]),
    ("--lr 1e-3", ["optim.lr=1e-3"]),
    ("--learning-rate=1e-3", ["optim.lr=1e-3"]),
    ("trainer.learning_rate=1e-3", ["optim.lr=1e-3"]),
    ("epochs=3", ["duration=3epochs"]),
    ("num_train_epochs=2.5", ["duration=2.5epochs"]),
    ("max_steps=1000", ["duration=1000steps"]),
    ("warmup_ratio=0.1", ["schedule.warmup=10%"]),
    ("warmup_steps=100", ["schedule.warmup=100steps"]),
    ("warmup=5%", ["schedule.warmup=5%"]),
    ("per_device_train_batch_size=8", ["batch.size=8seq", "batch.micro_max=8"]),
    ("global_batch_size=64", ["batch.size=64seq"]),
    ("max_grad_norm=0", ["optim.clip=null"]),
    ("adam_beta2=0.95", ["optim.betas=[0.9,0.95]"]),
    ("lr_scheduler_type=linear", ["schedule.shape=linear", "schedule.floor=0"]),
    ("optim=adamw_torch", ["optim.name=adamw"]),
    ("out='my runs/x'", ["output_dir=my runs/x"]),
    ("model_name_or_path=gpt2", ["model.path=gpt2"]),
    ("dataset=stanfordnlp/imdb", ["data.hub=stanfordnlp/imdb"]),
    ("dataset=*.csv", ["data.files=*.csv"]),
    ("block_size=256", ["data.sequence_length=256"]),
    ("torch_dtype=bfloat16", ["precision=bf16"]),
    ("--bf16", ["precision=bf16"]),
    ("fp16=true", ["precision=bf16"]),
    ("eval_steps=0.1", ["eval.every=10%"]),
    ("save_steps=500", ["checkpoint.every=500steps"]),
    ("report_to=none", ["log.wandb=off"]),
    ("load_best_model_at_end=True", ["checkpoint.save=best"]),
    ("--target_modules q_proj v_proj", ["model.lora.targets=[q_proj,v_proj]"]),
    ("resume_from_checkpoint=true", ["resume=auto"]),
    ("optim.lr = 1e-3", ["optim.lr=1e-3"]),
    ("seed= 3", ["seed=3"]),
    ("--seed 3", ["seed=3"]),
    ("seed:3", ["seed=3"]),
    ("small_batch", ["recipe=small_batch"]),
    ("tiny", ["model=tiny"]),
    ("recipes/debug.yaml", ["recipe=recipes/debug.yaml"]),
    ("recipe:debug", ["recipe=debug"]),
    ("--recipe debug", ["recipe=debug"]),
    ("lr 1e-3", ["optim.lr=1e-3"]),
    ("seed 3", ["seed=3"]),
    ("--data.pack", ["data.pack=true"]),
    ("--no-data.pack", ["data.pack=false"]),
    ("train.csv", ["data.files=train.csv"]),
    ("max_samples=None", ["data.rows=null"]),
    ("validation_split=0.1", ["data.validation=10%"]),
    ("dataset_config=plain", ["data.hub=NAME", "data.hub_config=plain"]),
    ("optim.betas=(0.9,0.99)", ["optim.betas=[0.9,0.99]"]),
    ("model.lora=true", ["model.lora={}"]),
    ("model.shape=llama", ["model.shape.model_type=llama"]),
]


@pytest.mark.parametrize(("words", "typed"), TYPED, ids=[words for words, _ in TYPED])
def test_suggested_words_load(words, typed):
    (line,) = lines_of(*shlex.split(words))
    advice = line.split(": write ", 1)[1].split(" (")[0]
    assert shlex.split(advice) == typed
    load(typed)


def test_advice_takes_the_other_words_into_account():
    lines = lines_of(
        *shlex.split("--lr 1e-3 --min_lr 1e-4 --per_device_train_batch_size 8 gradient_accumulation_steps=4")
    )
    assert len(lines) == 4
    assert "write schedule.floor=0.1 " in lines[1] and "write batch.size=32seq batch.micro_max=8 " in lines[2]
    assert "accumulation is batch.size ÷" in lines[3] and "batch.size=32seq" in lines[3]


@pytest.mark.parametrize("values", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_every_word_of_another_tool_has_one_line(values):
    """Each without a value and with `values` of nine."""
    every = ("=true", "=3", "=no", "=some text", "=-1", "=0.5", "=None", "=[a,b]", "=nan")
    for number, name in enumerate(TABLE):
        for value in ("", *(every[(number + shift * 4) % 9] for shift in range(values))):
            (line,) = lines_of("recipe=debug", f"--{name}" if not value else f"{name}{value}")
            assert ("write " in line or "there is no such field: " in line) and name in line, line
            if ": write " in line and "recipe=" not in line.split(": write ")[1]:
                advice = shlex.split(line.split(": write ", 1)[1].split(" (")[0])
                of_tuning = advice[0].startswith(("data.label", "data.rows"))
                load([*(["task=classification"] if of_tuning else []), *advice])


def test_a_word_of_another_tool_in_a_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("learning_rate: 1e-4\ntraining: {max_steps: 10}\n")
    first, second = lines_of(f"recipe={path}")
    assert first == "learning_rate: write optim.lr=1e-4 (x.yaml)"
    assert second == "training.max_steps: write duration=10steps (x.yaml)"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model=some/weights", "write model.path=some/weights"),
        ("data=texts/*.txt", "write 'data.files=texts/*.txt'"),
        ("data=user/set", "write data.hub=user/set"),
        ("nosuchword", "'nosuchword' is not key=value"),
        ("=5", "'=5' is not key=value"),
        ("--foo 3", "--foo 3: no such field; write fields as key=value"),
        ("--seed x", "--seed x: write seed=VALUE; 'x' is not valid: Input should be a valid integer"),
        ("--lr -1", "the field is optim.lr, and '-1' is not valid for it: Input should be greater than 0"),
        ("lr=true", "the field is optim.lr, and 'true' is not valid for it: Input should be a valid number"),
        ("~nobody_at_all/x", "'~nobody_at_all/x' is not key=value"),
        ("optim.lr=inf", "optim.lr: Input should be a finite number"),
        ("recipe=", "recipe: the value is empty: recipe=NAME"),
        ("model=", "model: the value is empty: model=NAME, or model=null"),
        ("model=gpt2", "from the Hub: model.path=gpt2"),
        ("data=imdb", "from the Hub: data.hub=imdb"),
        ("data.template=${price}", "for the literal text write \\${…}"),
        ("optim={learning_rate:1,lr:}", "optim: cannot read"),
    ],
)
def test_invalid_words_are_one_line(word, message):
    (line,) = lines_of(*word.split())
    assert message in line


def test_files_of_an_expanded_glob_are_suggested_as_a_list():
    (line,) = lines_of("data.files=a.csv", "b.csv")
    assert line == "'b.csv' is not key=value: write 'data.files=[a.csv,b.csv]'"


def test_a_mapping_on_the_command_line_sets_its_fields():
    loaded = load(["recipe=large_batch", "optim={lr: 1e-3, eps: 1e-9}", "eval={every: 5%, sets: {a: [1,2]}}"])
    assert (loaded.recipe.optim.lr, loaded.recipe.optim.eps, str(loaded.recipe.eval.every)) == (1e-3, 1e-9, "5%")
    assert loaded.recipe.eval.sets["a"].files == ["1", "2"] and loaded.sources["optim.lr"] == "command line"
    sets = load(["eval.sets={a: {files: 0, text: yes}, b: no}"]).recipe.eval.sets
    assert (sets["a"].files, sets["a"].text, sets["b"].files) == ("0", "yes", "no")
    model = load(["model={shape: {model_type: gpt2, use_cache: no}}"]).recipe.model
    assert model.shape == {"model_type": "gpt2", "use_cache": False}
    assert load(["recipe=large_batch", "model={path: bert}"]).recipe.model.path == "bert"
    assert load(["data.template=\\${price} {a}"]).recipe.data.template == "${price} {a}"
