"""Recipe files are not trusted: they cannot read the environment, and no error message quotes their content."""

import pytest

from hfbsz.errors import UserError
from hfbsz.experiment.compare import ComparisonRunner
from hfbsz.experiment.jobs import words_of
from hfbsz.experiment.request import parse
from hfbsz.recipe.load import from_mapping, load
from hfbsz.report.console import Console
from hfbsz.system.yaml import read_yaml, write_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(path, text):
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load([f"recipe={path}"])
    (line,) = caught.value.lines
    assert "PLANTED" not in line and "\n" not in line and line.startswith(str(path))
    return line


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SECRET}", "a-${oc.env:SECRET,x}", "${oc.decode:'${oc.env:SECRET}'}", "${oc.create:${oc.env:SECRET}}",
        "${oc.select:seed}", "${oc.dict.values:optim}", "${${a}:SECRET}", "${optim.lr}", "${", "\\\\${oc.env:SECRET}",
    ],
)  # fmt: skip
def test_case_s04_files_are_not_interpolated(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SECRET", "hf_PLANTED")
    for text in (
        "base: debug\nlog:\n  group: '{}'\n",
        "data: {{labels: [x, '{}']}}\n",
        "model: {{shape: {{a: '{}'}}}}",
    ):
        assert "${…} is only allowed on the command line" in refusal(
            tmp_path / "x.yaml", text.format(value.replace("'", "''"))
        )


def test_case_s04_presets_bases_and_comparisons_are_not_interpolated(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hf_PLANTED")
    (tmp_path / "preset.yaml").write_text("files: '${oc.env:SECRET}'\n")
    (tmp_path / "recipe.yaml").write_text(f"base: {tmp_path}/preset.yaml\n")
    (tmp_path / "compared.yaml").write_text("recipe: debug\nlog.group: '${oc.env:SECRET}'\n")
    for read in (
        lambda: load(["recipe=debug", f"data={tmp_path}/preset.yaml"]),
        lambda: load([f"recipe={tmp_path}/recipe.yaml"]),
        lambda: parse([f"{tmp_path}/compared.yaml"]),
    ):
        with pytest.raises(UserError, match="only allowed on the command line") as caught:
            read()
        assert "PLANTED" not in str(caught.value)


def test_case_s04_escaped_interpolations_stay_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hf_PLANTED")
    text = "\\${oc.env:SECRET} ${oc.env:SECRET}"
    path = tmp_path / "x.yaml"
    path.write_text("base: debug\nlog: {group: '\\\\\\${oc.env:SECRET} \\${oc.env:SECRET}'}\n")
    recipe = load([f"recipe={path}"]).recipe
    assert recipe.log.group == text
    write_yaml(recipe.to_dict(), tmp_path / "again.yaml")
    assert from_mapping(read_yaml(tmp_path / "again.yaml")) == recipe == load([f"recipe={tmp_path}/again.yaml"]).recipe
    assert load(["recipe=debug", *words_of({"log.group": text})]).recipe.log.group == text
    assert load(["recipe=debug", "log.group=${oc.env:SECRET}"]).recipe.log.group == "hf_PLANTED"  # the user's own word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 10**6, "deeper than 64 levels"),
        ("a: " + "{b: " * 10**5, "deeper than 64 levels"),
        (BOMB, "exceeds the configured limit"),
        ("a: &a [*a]", "recursive aliases"),
        ("machine x login me password hf_PLANTED", "this is a text"),
        ("- hf_PLANTED", "this is a list"),
        ("token: 'hf_PLANTED", "not valid YAML (line"),
        ("a: *hf_PLANTED", "found undefined alias"),
        ("a: !hf_PLANTED x", "could not determine a constructor for the tag '…'"),
        ("a: !!python/object/apply:os.system [hf_PLANTED]", "not valid YAML (line 1, column 4)"),
        ("seed: !!int hf_PLANTED", "not valid YAML"),
        ("a: \x00hf_PLANTED", "not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_one_line_without_its_content(tmp_path, text, message):
    assert message in refusal(tmp_path / "x.yaml", text)


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UserError, match=r"x\.yaml: not UTF-8 text"):
        load([f"recipe={tmp_path}/x.yaml"])
    with pytest.raises(UserError, match=r"Is a directory"):
        read_yaml(tmp_path)


def test_case_s04_a_url_with_a_password_is_refused(tmp_path):
    for word in ("data.files=https://me:hf_PLANTED@host/x.txt", "data.hub=https://hf_PLANTED@host/x"):
        with pytest.raises(UserError, match="it contains a password or token") as caught:
            load(["recipe=debug", word])
        assert "PLANTED" not in str(caught.value)


def test_case_s08_scripts_are_only_allowed_on_the_command_line(tmp_path):
    path = tmp_path / "x.yaml"
    for script in ("./mine.py", "mine.py", "metrics/mine", "/abs/mine"):
        path.write_text(f"base: small_batch\neval: {{metrics: [{script}]}}\n")
        with pytest.raises(UserError) as caught:
            load([f"recipe={path}"])
        (line,) = caught.value.lines
        assert line.startswith(f"eval.metrics: '{script}' (x.yaml) runs code with your permissions")
        word = f"eval.metrics=[{script}]"
        assert load([f"recipe={path}", word]).recipe.eval.metrics == [script]
        path.write_text(f"recipe: small_batch\neval.metrics: '[{script}]'\nseed: [0, 1]\n")
        with pytest.raises(UserError, match="the comparison's file"):
            ComparisonRunner(parse([str(path)]), Console())
        assert ComparisonRunner(parse([str(path), word]), Console()).arms
    path.write_text("base: small_batch\neval: {metrics: [f1]}\n")
    assert load([f"recipe={path}"]).recipe.eval.metrics == ["f1"]


def test_a_recipe_name_is_a_safe_file_name(tmp_path):
    path = tmp_path / "a\n\x1bb.yaml"
    path.write_text("base: debug\n")
    assert load([f"recipe={path}"]).name == "a--b"
    path = tmp_path / f"{'x' * 200}.yaml"
    path.write_text("base: debug\n")
    assert len(load([f"recipe={path}"]).name) == 100


def test_long_values_are_shortened_in_messages():
    for word in ("seed", "optim.lr", "batch.size", "schedule.shape", "recipe", "data", "nothing"):
        with pytest.raises(UserError) as caught:
            load(["recipe=debug", f"{word}={'x' * 10**5}"])
        assert all(len(line) < 2000 for line in caught.value.lines)
