"""Comparison requests: words, files, options, and the product of lists."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from hfbsz.errors import UserError
from hfbsz.experiment.jobs import assign_folders, by_arm, product, seeds_first, split_values
from hfbsz.experiment.page.picture import draw
from hfbsz.experiment.request import Tune, parse
from hfbsz.records.comparison_results import MARK

TINY = ("recipe=tests/tiny.yaml", "data.files=x")


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_product_of_lists_distinguishes_arms_and_seeds():
    jobs = product([*TINY, "batch.size=4seq,8seq", "scaling.rule=none,sqrt", "seed=0,1"])
    assert len(jobs) == 8 and len({job.folder for job in jobs}) == 8
    arms = by_arm(jobs)
    assert list(arms)[1] == ("batch.size=4seq", "scaling.rule=sqrt")
    assert [job.seed for job in seeds_first(arms)] == [0] * 4 + [1] * 4


def test_a_comma_inside_brackets_or_quotes_does_not_split():
    assert split_values("'linear:8,64,50%',doubling:75%") == ["linear:8,64,50%", "doubling:75%"]
    assert split_values("[0.9,0.99],[0.9,0.999]") == ["[0.9,0.99]", "[0.9,0.999]"]


def test_runs_that_differ_in_the_micro_batch_have_distinct_folders():
    jobs = assign_folders(product([*TINY, "batch.micro_max=2,4,8"]))
    assert len({job.folder for job in jobs}) == 3
    rates = [job.with_words(f"optim.lr={rate}") for job in jobs for rate in (1e-3, 2e-3)]
    assert len({job.folder for job in rates}) == 6  # also for each tuned value
    assert f"output_dir={rates[-1].folder}" in rates[-1].command and "output_dir=" not in " ".join(jobs[0].command)


def test_two_arms_that_are_one_run_are_refused():
    with pytest.raises(UserError, match="same run"):
        assign_folders(product([*TINY, "threads=1,2"]))


def test_all_errors_in_the_arms_are_reported_once():
    with pytest.raises(UserError) as caught:
        product([*TINY, "batch.size=4,8seq", "optim.lr=-1", "seed=0,1"])
    assert len(caught.value.lines) == 2


def test_a_file_is_equivalent_to_words(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: tests/tiny.yaml\nbatch.size: [4 sequences, 8 sequences]\noptim.betas: [[0.9, 0.95], [0.9, 0.99]]\n"
        "batch.micro_tokens: null\nseed: [0, 1]\ntune: optim.lr:3\n"
    )
    request = parse([str(file)])
    assert request.name == "mine" and request.tune == Tune("optim.lr", 3)
    assert len(product(request.words)) == 8
    assert "batch.micro_tokens=null" in request.words


def test_words_override_a_file_and_give_the_comparison_another_name():
    plain = parse(["compare_finetune"])
    other = parse(["compare_finetune", "seed=0", "jobs=2"])
    assert plain.name == "compare_finetune" == parse(["compare_finetune", "jobs=2"]).name
    assert other.name.startswith("compare_finetune-") and other.name != parse(["compare_finetune", "seed=1"]).name
    assert "seed=0" in other.words and other.jobs == 2


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["batch.size=4seq"], "recipe=NAME"),
        (["compare_finetun"], "'compare_finetune'"),
        (["recipe=small_batch", "tune=optim.rate:5"], "'optim.rate'"),
        (["recipe=small_batch", "tune=optim.lr"], "tune=optim.lr:5"),
        (["recipe=small_batch", "tune=optim.lr:2"], "3 to 15"),
        (["recipe=small_batch", "jobs=0"], "jobs=0: "),
        (["recipe=small_batch", "launch=torchrun"], "accelerate or python"),
        (["recipe=small_batch", "equal=tokens"], "epochs or steps"),
        (["compare_finetune", "seed"], "key=value"),
        (["compare_finetune", "config=missing.yaml"], "config=missing.yaml: "),
        (["compare_finetune", "config=accelerate_configs/cpu.yaml", "launch=python"], "launch=accelerate"),
    ],
)
def test_an_invalid_request_is_refused_with_one_line(words, phrase):
    with pytest.raises(UserError) as caught:
        parse(words)
    assert phrase in caught.value.lines[0] and len(caught.value.lines) == 1


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "recipes" / "comparisons").glob("*.yaml")])
def test_every_comparison_file_loads_and_starts_with_its_command(name):
    request = parse([name])
    assert len(product(request.words)) > 1
    assert f"compare.py {name}" in (ROOT / "recipes" / "comparisons" / f"{name}.yaml").read_text().splitlines()[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("compare_finetune --lr 1e-3", "--lr 1e-3: write optim.lr=1e-3"),
        ("--jobs 2 recipe=small_batch", "--jobs 2: write jobs=2"),
        ("jobs 2 recipe=small_batch", "jobs 2: write jobs=2"),
        ("recipe=small_batch compare_finetune more", "'more' is not key=value"),
        ("recipe=small_batch --jobs", "--jobs: write jobs=VALUE"),
    ],
)
def test_case_20_words_that_are_not_pairs_are_refused_with_a_correction(words, line):
    with pytest.raises(UserError) as caught:
        parse(words.split())
    assert caught.value.lines[0] == line


def test_every_word_that_is_not_a_pair_has_a_line():
    with pytest.raises(UserError) as problem:
        parse(["recipe=small_batch", "--jobs", "2", "batch.size", "64seq"])
    assert len(problem.value.lines) >= 2


def test_the_name_of_a_file_may_be_at_any_position():
    assert parse(["jobs=2", "compare_finetune"]).name == "compare_finetune"


@pytest.mark.parametrize("name", ["../x", "/abs/x", "a/b", "..", ".", "a\nb", "a\x1bb", "\u202ex", "x" * 101, "a\\b"])
def test_case_s06_a_name_is_one_folder_in_comparisons(name):
    with pytest.raises(UserError, match=r"^name=.* in comparisons/") as caught:
        parse(["recipe=small_batch", "seed=0,1", f"name={name}"])
    assert len(caught.value.lines) == 1 and "\n" not in caught.value.lines[0]


def test_case_s06_a_files_own_name_stays_in_comparisons_too(tmp_path):
    for stem in ("..", "a\nb"):
        path = tmp_path / f"{stem}.yaml"
        path.write_text("recipe: small_batch\nseed: [0, 1]\n")
        if stem == "..":
            with pytest.raises(UserError, match=r"^name=\.\.: "):
                parse([str(path)])
        else:
            assert parse([str(path)]).folder == Path("comparisons/a-b")


@pytest.mark.parametrize("option", ["out", "picture"])
def test_case_s06_only_an_earlier_table_or_picture_is_overwritten(tmp_path, option):
    path = tmp_path / ("x.png" if option == "picture" else "x.json")
    words = ["recipe=small_batch", "seed=0,1", f"{option}={path}"]
    assert getattr(parse(words), option) == path
    row = {"choices": "seed=0", "runs": 1, "losses": [3.0], "loss": 3.0, "steps": 4}
    path.write_text(json.dumps([row], indent=1))
    if option == "picture":
        draw([row], path)
    earlier = path.read_bytes()
    assert getattr(parse(words), option) == path
    if option == "out":
        path.write_text(f"{MARK} ...")
        assert parse(words).out == path
    for content in (b"precious", b"[1, 2]", b"\x89PNG\r\n\x1a\n another's"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{option}="):
            parse(words)
    assert path.read_bytes() == content != earlier
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"^{option}=.*folder"):
        parse(words)


def test_a_command_is_shown_as_it_is_typed():
    words = ["recipe=small_batch", "seed=0,1", "data.files=my texts/*.txt", "log.group=a;b$(c)"]
    assert shlex.split(parse(words).command) == ["python", "scripts/compare.py", *words]
