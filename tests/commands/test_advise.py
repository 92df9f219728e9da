"""`hfbsz advise`: more sure with every measurement, and its recipe is one that trains."""

import json
import os
import shutil
from itertools import pairwise

import pytest
from past_runs import SCHEDULES, TOTAL, TRUE, write_run

from hfbsz.advice.critical import OVER_THE_RUN
from hfbsz.commands.advise import main
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records.probe import Probe, Trial

WORDS = ["recipe=small_batch_pretrain", "parameters=800000"]
RECIPE = load(["recipe=small_batch_pretrain"]).recipe


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def advised(capsys, *words):
    code = main([*WORDS, *words, "format=json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    result = json.loads(out)
    return {line["name"]: line for line in result["lines"]}, result


def write_probe(folder, *words, pace=1.0):
    trials = tuple(Trial(1 << n, pace * (0.02 + 0.01 * (1 << n)), 0.0, 10**8 * (1 << n)) for n in range(6))
    probe = Probe({"device": "cpu with 2 threads"}, 128.0, trials, 0.01, None, 10**10, "the limit given", None)
    folder.mkdir(parents=True)
    recipe = load(["recipe=small_batch_pretrain", *words]).recipe.to_dict()
    (folder / "probe.json").write_text(json.dumps({**probe.to_dict(), "recipe": recipe}))


def write_sweep(folder, critical, sequences, optimizer="adamw"):
    folder.mkdir(parents=True)
    recipe = load(["recipe=small_batch_pretrain", f"optim.name={optimizer}"]).recipe.to_dict()
    (folder / "sweep.json").write_text(json.dumps({"recipe": recipe, "target": 4.0}))
    sizes = (2, 8, 32, 128)
    steps = {size: sequences / critical + sequences / size for size in sizes}
    (folder / "steps.csv").write_text("batch,steps\n" + "".join(f"{size},{steps[size]}\n" for size in sizes))
    rates = "".join(
        f"{size},{factor * 0.002},{factor * 0.002 * (size / 8) ** 0.5},{steps[size] * (1 + abs(factor - 2))}\n"
        for size in sizes
        for factor in (1, 2, 4)
    )
    (folder / "rates.csv").write_text("batch,optim.lr,rate,steps\n" + rates)


def test_every_measurement_makes_it_more_sure(tmp_path, capsys):
    lines, result = advised(capsys)  # nothing is known
    assert {line["sure"] for line in lines.values()} == {"assumed"} and lines["expected loss"]["value"] == "not known"
    assert "probe" in result["next"]["command"] and [one["name"] for one in result["critical"]] == ["law"]

    write_probe(tmp_path / "probes/one")
    lines, result = advised(capsys)
    assert lines["split"]["sure"] == lines["time and cost"]["sure"] == "measured"
    assert lines["critical batch"]["sure"] == "assumed"
    assert "measure.noise.method=two_batch" in result["next"]["command"]

    write_run(tmp_path / "runs/one", SCHEDULES["small"], noise=(10, 30, 50, 70, 90))
    lines, result = advised(capsys)
    assert lines["critical batch"]["sure"] == "inferred" and result["critical"][0]["name"] == "noise scale"
    assert 50 <= result["critical"][0]["value"] <= 120 and 25 <= result["critical"][0]["low"] <= 60
    assert lines["expected loss"]["sure"] == "inferred" and "method=sweep" in result["next"]["command"]

    write_sweep(tmp_path / "comparisons/sweep", critical=40, sequences=TOTAL / 4)
    lines, result = advised(capsys)
    first = result["critical"][0]
    assert first["name"] == "sweep" and first["value"] == pytest.approx(40 * 4 / OVER_THE_RUN, rel=1e-3)
    assert "sweep" in lines["learning rate"]["why"] and lines["learning rate"]["sure"] in ("measured", "inferred")

    shutil.rmtree(tmp_path / "comparisons")
    write_sweep(tmp_path / "comparisons/near", critical=40, sequences=TOTAL / 1.5)
    assert advised(capsys)[1]["critical"][0]["sure"] == "measured"


def test_a_probe_with_the_settings_of_the_recipe_comes_before_a_newer_one(tmp_path, capsys):
    def seconds():
        lines, result = advised(capsys)
        return result["choices"][0]["seconds"], lines["time and cost"]["sure"]

    write_probe(tmp_path / "probes/compiled", "model.compile=true", pace=0.5)
    os.utime(tmp_path / "probes/compiled/probe.json", (2e9, 2e9))  # the newest
    fast, sure = seconds()
    assert sure == "inferred"
    write_probe(tmp_path / "probes/plain")
    slow, sure = seconds()
    assert sure == "measured" and slow > 1.5 * fast


def test_the_runs_tell_the_planted_critical_batch_and_loss(tmp_path, capsys):
    for name, words in SCHEDULES.items():
        write_run(tmp_path / f"runs/{name}", words)
    lines, result = advised(capsys)
    assert result["critical"][0]["name"] == "finished runs"
    assert result["critical"][0]["value"] == pytest.approx(TRUE.critical, rel=0.15)
    own = TRUE.loss([(TOTAL, 8)])  # the recipe's own loss, which the advised run is to reach
    assert all(choice["loss"] == pytest.approx(own, abs=0.02) for choice in result["choices"])
    assert "±" in lines["expected loss"]["value"]
    by_name = {choice["name"]: choice for choice in result["choices"]}
    assert by_name["half the batch"]["tokens"] < by_name["advised"]["tokens"] < by_name["twice the batch"]["tokens"]
    assert by_name["half the batch"]["steps"] > by_name["advised"]["steps"] > by_name["twice the batch"]["steps"]


@pytest.mark.parametrize("devices", ["1", "8", "1..64"])
@pytest.mark.parametrize("more", [[], ["model=tiny_gpt2", "seed=3"], ["batch.micro_max=4", "optim.lr=3e-3"]])
def test_the_saved_recipe_is_the_advised_one(devices, more, tmp_path, capsys):
    write_sweep(tmp_path / "comparisons/sweep", critical=400, sequences=TOTAL / 2)
    lines, result = advised(capsys, f"devices={devices}", *more)
    recipe = load([f"recipe={result['saved']}"]).recipe
    assert recipe == load([WORDS[0], *more, *result["changes"]]).recipe
    plan = resolve(recipe, result["world_size"], Facts(parameters=800000))
    assert f"{plan.steps:,} steps" in lines["length"]["value"]
    assert plan.largest_batch % result["world_size"] == 0
    if "optim.lr=3e-3" in more:
        assert recipe.optim.lr == 3e-3 and lines["learning rate"]["sure"] == "given"


def test_a_ramp_starts_where_the_critical_batch_is_and_ends_at_the_batch(tmp_path, capsys):
    write_sweep(tmp_path / "comparisons/sweep", critical=4000, sequences=TOTAL / 2)
    words = ["devices=8", "frontier.bandwidth=1e6", "frontier.latency=1"]  # communication is slow: large batches
    lines, result = advised(capsys, *words)
    assert "→" in lines["batch"]["value"] and "%" in lines["ramp"]["value"]
    plan = resolve(load([f"recipe={result['saved']}"]).recipe, 8)
    batches = [phase.batch for phase in plan.phases]
    assert all(later > one and later % one == 0 for one, later in pairwise(batches)) and len(batches) > 1
    assert f"{batches[0]:,} → {batches[-1]:,}" in lines["batch"]["value"]


def test_deadline_budget_and_target(tmp_path, capsys):
    for name, words in SCHEDULES.items():
        write_run(tmp_path / f"runs/{name}", words)
    _, cheap = advised(capsys, "devices=1..64")
    slow = cheap["frontier"]["points"][0]["seconds"]
    _, late = advised(capsys, "devices=1..64", f"deadline={slow * 1.01}s")
    assert late["world_size"] == 1
    _, soon = advised(capsys, "devices=1..64", f"deadline={slow / 3}s")
    assert soon["world_size"] > 1 and soon["choices"][0]["seconds"] < slow / 2
    _, never = advised(capsys, "devices=1..2", "deadline=0.001s")
    assert any("not met" in note for note in never["notes"]) and never["world_size"] == 2
    hours = cheap["frontier"]["points"][0]["device_seconds"] / 3600
    _, small = advised(capsys, "devices=1..64", f"budget={hours * 1.02}")
    _, large = advised(capsys, "devices=1..64", f"budget={hours * 100}", "frontier.price=2.5")
    assert small["world_size"] == 1 < large["world_size"]
    target = TRUE.loss([(TOTAL, 8)]) - 0.3
    _, further = advised(capsys, f"target_loss={target}")
    assert further["choices"][0]["loss"] == pytest.approx(target, abs=0.01)
    assert further["choices"][0]["tokens"] > 1.2 * TOTAL * 128


def test_the_text_has_a_unit_a_source_and_the_next_step(tmp_path, capsys):
    write_run(tmp_path / "runs/one", SCHEDULES["ramp"], noise=(10, 50, 90))
    assert main([*WORDS, "devices=1..8"]) == 0
    out = capsys.readouterr().out
    for part in (
        "sequences at the end",
        "tokens in",
        "nats/target",
        "device time",
        "inferred: ",
        "measure   ",
        "train  ",
    ):
        assert part in out
    page = (tmp_path / "advice/small_batch_pretrain/report.html").read_text()
    assert "Measure next" in page and "The batch and the critical batch" in page and "<svg" in page
    assert main([*WORDS, "devices=1..8"]) == 0  # again, over its own files


def test_its_past_checks_it(tmp_path, capsys):
    for name, words in SCHEDULES.items():
        write_run(tmp_path / f"runs/{name}", words)
    assert main([*WORDS, "check=true"]) == 0
    out = capsys.readouterr().out
    assert "rank correlation 1.00" in out
    for words in SCHEDULES.values():
        steps = resolve(load([WORDS[0], *words]).recipe, 1).steps
        assert out.count(f"{steps:,}") >= 2  # predicted and actual


def test_losses_and_critical_batch_are_of_one_model(tmp_path, capsys):
    """A sweep near the run is surer than its finished runs: the losses then are those of the sweep's critical batch."""
    for name, words in SCHEDULES.items():
        write_run(tmp_path / f"runs/{name}", words)
    write_sweep(tmp_path / "comparisons/near", critical=60, sequences=TOTAL / 1.5)
    _, result = advised(capsys, "batch.size=64seq")
    assert result["critical"][0]["name"] == "sweep" and result["critical"][0]["sure"] == "measured"
    assert result["choices"][0]["loss"] == pytest.approx(TRUE.loss([(TOTAL, 64)]), abs=0.1)


def test_a_rate_keeps_what_its_rule_made_of_it(tmp_path, capsys):
    """The best arm had rule none at 64 sequences: its rate is that at 64, not one to be scaled up from 8."""
    write_run(tmp_path / "runs/one", ["batch.size=64seq", "scaling.rule=none", "optim.lr=1e-3"])
    lines, result = advised(capsys, "batch.size=64seq")
    recipe = load([f"recipe={result['saved']}"]).recipe
    assert recipe.optim.lr == 1e-3 and str(recipe.scaling.reference) == "64 sequences"
    assert "1 rate tried" in lines["learning rate"]["why"] and lines["learning rate"]["sure"] == "assumed"


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=law:step_law", "scaling.reference=null", "duration=3Btok"],
        ["optim.lr=law:step_law", "batch.size=law:step_law", "scaling.reference=null", "duration=3Btok"],
        ["duration=1000steps"],
        ["batch.start=8seq", "batch.size=64seq", "batch.ramp=noise"],
        ["batch.start=8seq", "batch.size=64seq", "batch.ramp=critical:0:8 100%:60"],
        ["batch.start=8seq", "batch.size=64seq", "batch.ramp=doubling:75%", "devices=3"],
        ["data.pack=false", "batch.micro_tokens=1024"],
        ["data.pack=false", "batch.micro_tokens=1024", "batch.by_length=true", "frontier.latency=1", "devices=8"],
        ["devices=24..96"],
        ["frontier.critical=64seq"],
    ],
)
def test_recipes_of_every_kind_get_one_that_can_be_planned(words, tmp_path, capsys):
    write_run(tmp_path / "runs/one", SCHEDULES["small"], noise=(10, 50, 90))
    lines, result = advised(capsys, *words)
    recipe = load([f"recipe={result['saved']}"]).recipe
    facts = Facts(rows=2**40, tokens_per_row=128.0, parameters=800000)
    plan = resolve(recipe, result["world_size"], facts)
    if "duration=1000steps" in words:  # of another batch
        assert recipe.duration.unit == "sequences"
    if any("noise" in word or "critical:" in word for word in words):
        assert any("grows by what a run measures" in note for note in result["notes"])
    if "frontier.critical=64seq" in words:
        assert lines["critical batch"]["sure"] == "given" and result["frontier"]["critical"] == 64
    assert plan.steps > 0 and "NaN" not in json.dumps(result) and "Infinity" not in json.dumps(result)


def test_a_sweep_without_a_bound_is_not_measured(tmp_path, capsys):
    folder = tmp_path / "comparisons/sweep"
    write_sweep(folder, critical=1e9, sequences=TOTAL / 1.5)  # perfect scaling
    write_probe(tmp_path / "probes/one")
    lines, result = advised(capsys)
    first = result["critical"][0]
    assert (first["name"], first["sure"], first["high"]) == ("sweep", "inferred", None)
    assert " to unbounded)" in lines["critical batch"]["value"] and "inf)" not in lines["critical batch"]["why"]
    assert "measure.noise.method=two_batch" in result["next"]["command"]  # tells what the sweep does not bound


def write_reviews(folder, rate, seed, best_epoch, loss, batch=16):
    """A finished fine-tuning run, best after some epochs and overfitting since."""
    words = ["recipe=small_batch", f"optim.lr={rate}", f"seed={seed}", f"batch.size={batch}seq"]
    plan = resolve(load(words).recipe, 1, Facts(rows=400, tokens_per_row=30.0, micro_max=1))
    records = []
    for epoch in range(1, 7):
        place = {"train/sequences": 400 * epoch, "train/global_step": 400 // batch * epoch}
        place |= {"train/seconds": 9.0 * epoch, "train/num_input_tokens_seen": 12000 * epoch}
        records.append({"event": "step", "batch/global": batch, **place})
        records.append({"event": "eval", "eval/loss": loss + 0.1 * abs(epoch - best_epoch), "eval/rows": 100,
                        "overfit/train_loss": 0.6 / epoch, **place})  # fmt: skip
        if epoch > best_epoch:
            records[-1]["overfit/onset_step"] = 400 // batch * best_epoch
    records.append(
        {"event": "final", "full/loss": loss, "full/rows": 100, "model/step": 400 // batch * best_epoch, **place}
    )
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))


def test_fine_tuning_takes_the_best_arm_and_stops_where_it_overfits(tmp_path, capsys):
    words = ["recipe=small_batch", "format=json"]
    assert main(words) == 0
    fresh = json.loads(capsys.readouterr().out)
    assert {line["sure"] for line in fresh["lines"]} <= {"assumed", "given"} and "finetune" in fresh["next"]["command"]
    for seed in (0, 1, 2):
        write_reviews(tmp_path / f"runs/good{seed}", 1e-4, seed, 2, 0.50 + 0.01 * seed)
        write_reviews(tmp_path / f"runs/bad{seed}", 4e-4, seed, 1, 0.60 + 0.01 * seed)
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    lines = {line["name"]: line for line in result["lines"]}
    assert lines["batch"]["sure"] == "measured" and "0.510 ± 0.010" in lines["expected loss"]["value"]
    assert "best after 2" in lines["epochs"]["value"] and "overfitting" in lines["epochs"]["value"]
    recipe = load([f"recipe={result['saved']}"]).recipe
    assert recipe.optim.lr == 1e-4 and str(recipe.duration) == "3 epochs" and recipe.checkpoint.save == "best"
    assert lines["time"]["sure"] == "inferred" and lines["time"]["value"].startswith("27 s")  # of 54 s for 6 epochs
    assert "batch.size=8seq,32seq" in result["next"]["command"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["devices=0"], "not a number of devices"),
        (["devices=many"], "not a number of devices"),
        (["deadline=soon"], "deadline=soon: not a time"),
        (["deadline=-2h"], "not a time"),
        (["budget=0"], "budget=0: not a number above 0"),
        (["budget=1", "deadline=1h"], "give one of them"),
        (["target_loss=2"], "target_loss: no finished run"),
        (["target_loss=nan"], "target_loss=nan: not a number"),
        (["evidence=nowhere"], "no such folder"),
        (["format=xml"], "neither text nor json"),
        (["check=maybe"], "check=maybe"),
        (["check=true"], "0 schedules"),
        (["frontier.prize=2"], "no such option"),
        (["batch.siz=4seq"], "batch.siz"),
        (["parameters=1.5"], "not a whole number"),
    ],
)
def test_wrong_words_are_told(words, told, capsys):
    assert main([*WORDS, *words]) == 2
    assert told in capsys.readouterr().err


def test_other_files_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/small_batch_pretrain_advised.yaml").write_text("precious: true\n")
    assert main([*WORDS, "out=mine"]) == 2
    assert "another file is there" in capsys.readouterr().err
    assert (tmp_path / "mine/small_batch_pretrain_advised.yaml").read_text() == "precious: true\n"


def test_a_recipe_is_needed(capsys):
    assert main(["devices=8"]) == 2 and "recipe=NAME is missing" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "deadline" in capsys.readouterr().out
