"""The results of a comparison as JSON: they fit the published schema, and are the numbers and words of the page."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison import experiment as small_experiment
from conftest import ROOT
from jsonschema import Draft202012Validator
from synthetic_experiments import full_sample, make_experiment, make_result, unfinished_sample
from test_page import from_trials, rows_of, section_of, text_of

from hfbsz.experiment.page.page import render
from hfbsz.experiment.page.results_file import results_of
from hfbsz.experiment.results import Experiment
from hfbsz.experiment.statistics.factorial import effects
from hfbsz.experiment.statistics.trials import Arm, Trial
from hfbsz.records.comparison_results import MARK, schema_text

SCHEMA = json.loads((ROOT / "docs" / "compare.schema.json").read_text())


def read(experiment: Experiment) -> dict:
    return json.loads(results_of(experiment).text())


def problems(results: dict) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(results)]


def two_by_two() -> Experiment:
    trials = [
        Trial(
            Arm(batch, 1e-3, 8, variant=variant), seed, final_loss=3 + batch / 100 + 0.01 * (seed * (batch + rank) % 5)
        )
        for batch in (8, 64)
        for rank, variant in enumerate(("plain", "tied"))
        for seed in range(4)
    ]
    experiment = from_trials(trials)
    return replace(experiment, effects=tuple(effects(trials)))


def test_the_schema_is_up_to_date_and_valid() -> None:
    assert (ROOT / "docs" / "compare.schema.json").read_text() == schema_text(), "python scripts/schema.py writes it"
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == 1


SAMPLES = {
    "full": full_sample,
    "unfinished": unfinished_sample,
    "without runs": lambda: make_experiment(()),
    "one arm": lambda: make_experiment((make_result(8, "none"),)),
    "2 x 2": two_by_two,
    "small": lambda: small_experiment(Path("w")),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_results_fit_the_schema(sample: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = SAMPLES[sample]()
    text = results_of(experiment).text()
    results = json.loads(text, parse_constant=pytest.fail)
    assert problems(results) == [] and text.startswith(MARK)
    assert results["schema"] == 1 and len(results["arms"]) == len(experiment.arms)


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results.pop("arms"),
        lambda results: results.update(schema=2),
        lambda results: results["arms"][0].pop("loss"),
        lambda results: results["arms"][0]["runs"][0].update(state="done"),
        lambda results: results["pairs"][0].update(verdict="higher"),
        lambda results: results["beliefs"][0].update(verdict="maybe"),
    ],
    ids=range(6),
)
def test_other_results_do_not_fit(change) -> None:
    results = read(full_sample())
    change(results)
    assert problems(results)


@pytest.fixture(scope="module")
def page() -> str:
    return render(full_sample())


def plain(cell: str) -> str:
    """The text of a cell of `rows_of`."""
    return cell.rpartition(">")[2].strip().replace("\u00a0", " ")


def check_tests(shown: list[list[str]], tests: list[dict], names: list[str]) -> None:
    """The rows of a table of the page are these tests."""
    assert [plain(row[0]) for row in shown] == names and len(shown) == len(tests)
    for row, test in zip(shown, tests, strict=True):
        difference, interval, seeds, result = (plain(row[column]).replace("−", "-") for column in (1, 2, 3, 7))
        assert difference == ("–" if test["difference"] is None else f"{test['difference']:+.3f}")
        assert interval == ("–" if test["low"] is None else f"{test['low']:+.3f} to {test['high']:+.3f}")
        assert seeds == str(test["seeds"]) and test["unit"] == "nats/target"
        assert result == test["verdict"] + (f": {test['why']}" if test["why"] else "")
        assert (test["p"] is None) == (test["verdict"] == "not tested")


def test_pairs_are_those_of_the_page(page: str) -> None:
    results = read(full_sample())
    name = {arm["words"]: arm["name"] for arm in results["arms"]}
    check_tests(rows_of(page, "Paired tests"), results["pairs"], [name[pair["left"]] for pair in results["pairs"]])
    assert {pair["verdict"] for pair in results["pairs"]} >= {"not significant", "not tested"}
    (baseline,) = (arm["words"] for arm in results["arms"] if arm["baseline"])
    assert {pair["right"] for pair in results["pairs"]} == {baseline}


def test_effects_are_those_of_the_page() -> None:
    experiment = two_by_two()
    results = read(experiment)
    body = section_of(render(experiment), "Paired tests").split("Main effects")[1]
    shown = rows_of(f"<h2>Effects</h2>{body}</section>", "Effects")
    check_tests(shown, results["effects"], [effect["words"] for effect in results["effects"]])
    assert len(shown) == 3 and results["effects"][0]["verdict"] == "significantly higher"


def test_conclusions_and_beliefs_are_those_of_the_page(page: str) -> None:
    results, text = read(full_sample()), text_of(page).replace("\u00a0", " ")
    assert results["conclusions"] and all(sentence in text for sentence in results["conclusions"])
    assert len({belief["verdict"] for belief in results["beliefs"]}) > 1
    for belief in results["beliefs"]:
        assert f"{belief['verdict']} {belief['statement'][0].upper()}{belief['statement'][1:]}" in text
        assert f"Measured: {belief['measured']}" in text or not belief["measured"]
        means = {claim["mean"] for claim in belief["claims"]}
        assert {float(mean) for mean in re.findall(r"mean ([+-][\d.]+)", belief["measured"])} <= means


def test_losses_and_the_best_arm_are_those_of_the_page(page: str) -> None:
    experiment = full_sample()
    results = read(experiment)
    for arm, result, row in zip(results["arms"], experiment.arms, rows_of(page, "Arms"), strict=True):
        finite = [trial.final_loss if math.isfinite(trial.final_loss) else None for trial in result.trials]
        assert [run["loss"] for run in arm["runs"] if run["state"] == "finished"] == finite
        assert (arm["loss"] is None) == (None in finite or not finite)
        assert arm["loss"] is None or f"{arm['loss']:.4f} ± {arm['loss_sd']:.4f}" in " ".join(map(plain, row))
        assert (arm["words"] == results["best"]) == ("lowest mean" in row[0])
    assert results["best"] and results["target_loss"] == 3.4


def test_scores_on_tasks() -> None:
    (score,) = read(full_sample())["arms"][0]["scores"]
    values = [one.value for one in full_sample().arms[0].scores["python_next_line/acc"]]
    assert (score["task"], score["measure"], score["seeds"], score["examples"]) == ("python_next_line", "acc", 3, 100)
    assert score["mean"] == pytest.approx(np.mean(values)) and score["sd"] == pytest.approx(np.std(values, ddof=1))


def test_an_unfinished_comparison_says_so() -> None:
    results = read(unfinished_sample())
    assert not results["finished"] and results["ended"] == 13 and results["planned"] == 36
    running, preempted = results["arms"][4]["runs"][1:]
    assert (running["state"], running["done"], running["loss"]) == ("running", 0.45, None) and running["tokens"] > 0
    assert preempted["state"] == "preempted" and results["arms"][-1]["batch"] is None
    assert "so far" in results["conclusions"][0]
