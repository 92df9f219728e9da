"""`hfbsz plan … frontier=1..1024`: its numbers agree with the plan, and every assumption can be replaced."""

import json

import pytest
from conftest import ROOT

from hfbsz.commands.plan import main
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records.probe import Probe, Trial

WORDS = ["recipe=large_batch_124m", "parameters=85000000"]
FIXED = ["batch.start=null", "batch.ramp=null", "batch.size=256seq"]


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def frontier(capsys, *words):
    assert main([*WORDS, *words, "format=json"]) == 0
    return json.loads(capsys.readouterr().out)["frontier"]


def test_the_curve_passes_through_the_recipe(capsys):
    """At the recipe's own batch, the steps to the loss are the steps of the plan."""
    plan = resolve(load([*WORDS[:1], *FIXED]).recipe, 1, Facts(parameters=85_000_000))
    result = frontier(capsys, *FIXED, "frontier=1..64", "frontier.critical=512seq")
    a, b = result["least_steps"], result["least_sequences"]
    assert a + b / 256 == pytest.approx(plan.steps, rel=1e-4) and b / a == pytest.approx(512)
    for point in result["points"]:
        assert point["steps"] == pytest.approx(a + b / point["batch"])


def test_1024_devices_are_planned_as_the_frontier_says(capsys):
    point = frontier(capsys, "frontier=1..1024")["points"][-1]
    assert point["devices"] == 1024
    words = ["batch.start=null", "batch.ramp=null", f"batch.size={point['batch']}seq"]
    plan = resolve(load([*WORDS[:1], *words, f"batch.micro_max={point['micro_batch']}"]).recipe, 1024, Facts())
    assert plan.micro_batch == point["micro_batch"]
    assert plan.accumulation(plan.largest_batch) == point["accumulation"]


def test_every_assumption_is_replaced_by_its_word(capsys):
    before = frontier(capsys, "frontier=64")
    words = {"critical": "4096seq", "speed": "500k", "busy": "8192", "bandwidth": "900GB/s", "between": "25GB/s",
             "machine": "4", "weights": "124M", "latency": "2e-6s", "overlap": "0.5"}  # fmt: skip
    for name, value in words.items():
        after = frontier(capsys, "frontier=64", f"frontier.{name}={value}")
        assert "given" in next(one["source"] for one in after["assumptions"] if one["word"] == f"frontier.{name}")
        shown, new = ({one["word"]: one["value"] for one in each["assumptions"]} for each in (before, after))
        assert shown[f"frontier.{name}"] != new[f"frontier.{name}"]
    sharded = frontier(capsys, "frontier=64", "frontier.sharded=true")["points"][0]
    assert sharded["seconds"] != before["points"][0]["seconds"]


def test_a_probe_replaces_the_device(capsys, tmp_path):
    trials = (Trial(8, 0.10, 0.0, 100), Trial(16, 0.16, 0.0, 200))
    probe = Probe({"device": "GPU"}, 1024.0, trials, 0.01, None, 1000, "the limit given")
    (tmp_path / "probe.json").write_text(json.dumps(probe.to_dict()))
    result = frontier(capsys, "frontier=1", f"frontier.probe={tmp_path}")
    point = result["points"][0]
    assert point["micro_batch"] == 16
    assert point["step_seconds"] == pytest.approx(point["accumulation"] * 0.16 + 0.01)
    assert any("measured on GPU" in one["source"] for one in result["assumptions"])


def test_a_price_gives_costs(capsys):
    result = frontier(capsys, "frontier=1..8", "frontier.price=2.5")
    for point in result["points"]:
        assert point["cost"] == pytest.approx(2.5 * point["devices"] * point["seconds"] / 3600)


def test_the_table_names_what_to_take(capsys, tmp_path):
    picture = tmp_path / "frontier.svg"
    assert main([*WORDS, "frontier=1..1024", f"frontier.picture={picture}"]) == 0
    out = capsys.readouterr().out
    assert out.count("cheapest") == out.count("balanced") == out.count("fastest") == 1
    assert "frontier.critical=…" in out and "less than √2 times as fast" in out
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frontier=0..8"], "not a range of devices"),
        (["frontier=8..1"], "not a range of devices"),
        (["frontier=many"], "not a range of devices"),
        (["frontier.price=2"], "an option of frontier=1..1024"),
        (["frontier=8", "frontier.prize=2"], "no such option"),
        (["frontier=8", "frontier.price=-2"], "not a number above 0"),
        (["frontier=8", "frontier.speed=fast"], "not a number above 0"),
        (["frontier=8", "frontier.overlap=2"], "not between 0 and 1"),
        (["frontier=8", "frontier.machine=0.5"], "not a whole number above 0"),
        (["frontier=8", "frontier.critical=3steps"], "frontier.critical"),
        (["frontier=8", "frontier.critical=0seq"], "is not above 0"),
        (["frontier=8", "frontier.probe=README.md"], "not the result of hfbsz probe"),
        (["frontier=8", "frontier.sharded=yes"], "neither true nor false"),
        (["frontier=8", "frontier.picture=/nowhere/at/all.png"], "cannot be written"),
    ],
)
def test_wrong_words_are_named_in_one_line(capsys, words, said):
    assert main([*WORDS, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
