"""Only what was measured on the model and data of a recipe counts, and what cannot be read is skipped."""

import json
import shutil

from past_runs import SCHEDULES, write_run

from hfbsz.advice.evidence import gather, key_of
from hfbsz.advice.rates import best_arms
from hfbsz.recipe.load import load

RECIPE = load(["recipe=small_batch_pretrain"]).recipe


def test_runs_of_the_model_and_data_alone_count(tmp_path):
    write_run(tmp_path / "runs/one", SCHEDULES["small"])
    write_run(tmp_path / "runs/faster", [*SCHEDULES["small"], "model.fused_loss=false"])
    write_run(tmp_path / "runs/other", [*SCHEDULES["small"], "model.shape.num_hidden_layers=2"])
    write_run(tmp_path / "runs/text", [*SCHEDULES["small"], "data.sequence_length=64"])
    write_run(tmp_path / "runs/sweep", [*SCHEDULES["small"], "eval.target=4"])
    evidence = gather(RECIPE, tmp_path)
    assert [run.folder.name for run in evidence.runs] == ["faster", "one"] and not evidence.notes


def test_what_cannot_be_read_is_skipped_with_a_note(tmp_path):
    good = write_run(tmp_path / "runs/good", SCHEDULES["ramp"])
    bad = write_run(tmp_path / "runs/bad", SCHEDULES["small"])
    (bad / "records.jsonl").write_text("")
    running = write_run(tmp_path / "runs/running", SCHEDULES["small"])
    (running / "status.json").write_text(json.dumps({"state": "running"}))
    (tmp_path / "runs/junk").mkdir()
    (tmp_path / "runs/junk/plan.json").write_text("{")
    sweep = tmp_path / "comparisons/sweep"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"recipe": RECIPE.to_dict(), "target": 4.0}))
    shutil.copytree(sweep, tmp_path / "comparisons/begun")
    (tmp_path / "comparisons/begun/steps.csv").write_text("batch,steps\n")
    (tmp_path / "probes/one").mkdir(parents=True)
    (tmp_path / "probes/one/probe.json").write_text(json.dumps({"recipe": RECIPE.to_dict(), "trials": []}))
    evidence = gather(RECIPE, tmp_path)
    (run,) = evidence.runs
    assert run.folder == good and not evidence.sweeps and not evidence.probes
    assert [size for _, size in run.stages] == [8, 32, 64] and run.tokens_per_second > 0
    told = sorted(note.split("/")[-1].split(":")[0] for note in evidence.notes)
    assert told == ["bad", "begun", "probe.json", "sweep"]
    assert any("begun: no batch of this sweep has its steps yet" in note for note in evidence.notes)


def test_arms_are_compared_on_the_seeds_that_they_share(tmp_path):
    for seed, error in ((0, -0.2), (1, 0.3)):
        write_run(tmp_path / f"runs/tuned{seed}", ["optim.lr=2e-3"], error=error, seed=seed)
    write_run(tmp_path / "runs/other", ["optim.lr=4e-3"], error=-0.1)  # better than the mean, worse on its seed
    ((run, _, count),) = best_arms(gather(RECIPE, tmp_path).runs)
    assert run.recipe.optim.lr == 2e-3 and count == 2


def test_the_key_ignores_what_changes_no_result():
    fused = load(["recipe=small_batch_pretrain", "model.fused_loss=false"]).recipe
    assert key_of(fused) == key_of(RECIPE) == key_of(load(["recipe=large_batch"]).recipe)
