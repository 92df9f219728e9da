"""Outcomes, arms and trials read from the folders of runs."""

import json
import math
from pathlib import Path

import pytest

from hfbsz.experiment.gather import arm_of, gather, outcome_of, target_of, trial_of
from hfbsz.experiment.page.terminal import lines_of
from hfbsz.experiment.results import ArmResult, Experiment, TriedValue, rows
from hfbsz.experiment.statistics.evidence import Verdict
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load

ROWS = 100
CURVE = ((10, 0.7, 0.6), (20, 0.5, 0.4), (30, 0.6, 0.2))  # step, validation and training loss


def write(folder: Path, *words: str, curve=CURVE, shift: float = 0.0, final: float | None = None, **files) -> Path:
    """Write the folder of a finished run with evaluations `curve`; `final`: full loss of the best weights."""
    recipe = load(["recipe=tests/tiny.yaml", "duration=3epochs", *words]).recipe
    plan = resolve(recipe, 1, Facts(ROWS, 64.0, "a hash")).to_dict()
    records = []
    for step, validation, train in curve:
        axes = {"train/global_step": step, "train/sequences": 10 * step, "train/seconds": step / 2}
        axes["train/num_input_tokens_seen"] = 640 * step
        loss = validation + shift
        overfit = {"overfit/train_loss": train, "overfit/gap": loss - train}
        records.append({"event": "step", **axes, "perf/tokens_per_second": 100.0 * step, "batch/padding": 0.1})
        records.append({"event": "eval", **axes, **overfit, "eval/loss": loss, "eval/accuracy": 0.7})
    if final is not None:
        best = min(curve, key=lambda point: point[1])[0]
        record = {"event": "final", **axes, "model/step": best}
        records.append({**record, "full/loss": final + shift, "full/accuracy": 0.8})
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "machine.json").write_text(json.dumps({"device": "cpu", "processes": 1, "threads": 1}))
    (folder / "status.json").write_text(json.dumps({"state": "finished", **files}))
    return folder


def arm_of_one(folder: Path, seed: int = 0, words: str = "an arm") -> ArmResult:
    """An arm with one run."""
    return ArmResult(words, None, (outcome_of(folder, seed),))


EMPTY = Experiment("a name", "compare.py …", "language_modeling", Path("comparisons/a"), ())


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_case_d03_a_run_that_diverged_has_no_loss_of_an_earlier_step(tmp_path):
    lost = write(tmp_path / "lost", state="diverged", why="weights are not finite")
    (result,) = gather(EMPTY, [(arm_of_one(lost), (), False)]).arms
    (outcome,), (trial,) = result.outcomes, result.trials
    assert outcome.state == "diverged" and math.isnan(outcome.loss) and math.isnan(trial.final_loss)
    assert outcome.why == "weights are not finite" and result.diverged == (outcome,) and not result.failed
    (row,) = rows(gather(EMPTY, [(arm_of_one(lost), (), False)]))
    assert row["loss"] is None and row["bits_per_byte"] is None and row["diverged"] == 1
    lines = lines_of(gather(EMPTY, [(arm_of_one(lost), (), False)]))
    assert "diverged" in lines[2] and f"diverged: {lost}: weights are not finite" in lines


def test_a_trial_has_the_loss_of_the_saved_model(tmp_path):
    experiment = gather(EMPTY, [(arm_of_one(write(tmp_path / "run", final=0.52)), (), False)])
    (result,) = experiment.arms
    (trial,) = result.trials
    assert trial.final_loss == 0.52 and trial.accuracy == 0.8  # the best weights on the full validation set
    assert trial.best_loss == 0.5 and trial.gap == pytest.approx(0.4)  # fixed part; the gap at the end of training
    outcome = result.outcomes[0]
    assert (outcome.best_step, outcome.best_epoch, outcome.seconds_to_best) == (20, 2.0, 10.0)
    assert outcome.padding == pytest.approx(0.1)


def test_the_sharpness_is_that_of_the_saved_weights_where_it_is_known(tmp_path):
    folder = write(tmp_path / "run")
    outcome = outcome_of(folder, 0)
    arm = arm_of(outcome.run.plan)
    assert trial_of(outcome, arm, None).eigenvalue is None
    with (folder / "records.jsonl").open("a") as records:
        for value in (5.0, 7.0):
            record = {"event": "step", "train/global_step": 30, "sharpness/eigenvalue": value}
            records.write("\n" + json.dumps({**record, "sharpness/adaptive_sam": 0.2, "sharpness/critical": 90.0}))
    during = trial_of(outcome_of(folder, 0), arm, None)
    assert (during.eigenvalue, during.adaptive_sam, during.critical_sharpness) == (7.0, 0.2, 90.0)
    (folder / "sharpness.json").write_text(
        json.dumps({"key": {}, "minimum": {"eigenvalues": [12.0, 3.0], "adaptive_sam": {"0.5": 0.4}}})
    )
    after = trial_of(outcome_of(folder, 0), arm, None)
    assert (after.eigenvalue, after.adaptive_sam, after.critical_sharpness) == (12.0, 0.4, 90.0)
    (folder / "sharpness.json").write_text('{"minimum": {"eigenvalues": []}}')
    assert trial_of(outcome_of(folder, 0), arm, None).eigenvalue == 7.0


def test_steps_to_the_target_are_interpolated_between_evaluations(tmp_path):
    outcome = outcome_of(write(tmp_path / "run"), 0)
    (result,) = gather(EMPTY, [(ArmResult("a", None, (outcome,)), (), False)]).arms
    trial = trial_of(outcome, result.arm, target=0.6)
    assert trial.steps_to_target == pytest.approx(15) and trial.seconds_to_target == pytest.approx(7.5)
    assert trial_of(outcome, result.arm, target=0.8).steps_to_target == 10  # there is no earlier evaluation
    assert trial_of(outcome, result.arm, target=0.4).steps_to_target == math.inf


def test_the_target_is_the_lowest_loss_that_all_tuned_runs_reach(tmp_path):
    good, worse, untuned = (outcome_of(write(tmp_path / str(shift), shift=shift), 0) for shift in (0.0, 0.1, 2.0))
    arm = gather(EMPTY, [(ArmResult("a", None, (good,)), (), True)]).arms[0].arm
    other = gather(EMPTY, [(ArmResult("a", None, (untuned,)), (), False)]).arms[0].arm
    assert arm.tuned and not other.tuned
    assert target_of([(arm, [good]), (arm, [worse]), (other, [untuned])]) == pytest.approx(0.6)
    assert target_of([(other, [good]), (other, [untuned])]) == pytest.approx(2.5)


def test_an_arm_is_read_from_its_plan(tmp_path):
    fixed = write(tmp_path / "fixed", "batch.size=32seq", "scaling.reference=8seq", "scaling.rule=sqrt")
    ramp = write(tmp_path / "ramp", "batch.start=4seq", "batch.size=16seq", "batch.ramp=doubling:75%")
    arms = gather(EMPTY, [(arm_of_one(path), ("model.attention=eager",), False) for path in (fixed, ramp)]).arms
    assert arms[0].arm.batch == 32 and arms[0].arm.accumulation == 4 and arms[0].arm.rule == "sqrt"
    assert arms[0].arm.learning_rate == pytest.approx(6e-3) and not arms[0].arm.grows
    assert (arms[1].arm.start, arms[1].arm.batch) == (4, 16)
    assert arms[0].arm.variant == "model.attention=eager"


def test_beliefs_with_enough_runs_are_decided_and_others_are_not(tmp_path):
    def arm(rule: str, shifts: tuple[float, ...]):
        words = ("batch.size=32seq", "scaling.reference=8seq", f"scaling.rule={rule}")
        outcomes = (
            outcome_of(write(tmp_path / f"{rule}-{shift}", *words, shift=shift), seed)
            for seed, shift in enumerate(shifts)
        )
        return ArmResult(rule, None, tuple(outcomes)), (words[-1],), False

    sqrt, none = arm("sqrt", (0.0, 0.01, 0.04)), arm("none", (0.3, 0.311, 0.342))
    experiment = gather(EMPTY, [none, sqrt])
    verdicts = {finding.name: finding.verdict for finding in experiment.findings}
    assert verdicts.pop("rate") is Verdict.SUPPORTED
    assert set(verdicts.values()) == {Verdict.NOT_DECIDED}
    (comparison,) = experiment.comparisons
    assert comparison.contrast.n == 3 and comparison.contrast.mean < 0 and comparison.right == experiment.baseline


def test_runs_on_other_data_are_shown_and_not_tested(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", "batch.size=16seq")
    plan = json.loads((second / "plan.json").read_text())
    plan["facts"]["data_hash"] = "another"
    (second / "plan.json").write_text(json.dumps(plan))
    experiment = gather(EMPTY, [(arm_of_one(first), (), False), (arm_of_one(second), (), False)])
    assert not experiment.findings and not experiment.comparisons and all(result.trials for result in experiment.arms)
    assert any("no tests" in note for note in experiment.notes)


def test_different_thread_counts_are_noted(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", "batch.size=16seq")
    (second / "machine.json").write_text(json.dumps({"device": "cpu", "processes": 1, "threads": 2}))
    experiment = gather(EMPTY, [(arm_of_one(first), (), False), (arm_of_one(second), (), False)])
    assert experiment.comparisons and any("1 and 2 CPU threads" in note for note in experiment.notes)


def test_runs_that_have_not_started_or_were_killed_have_no_trial(tmp_path):
    killed = write(tmp_path / "killed")
    (killed / "status.json").write_text(json.dumps({"state": "running"}))
    absent, started = outcome_of(tmp_path / "none", 0), outcome_of(killed, 1)
    assert (absent.state, absent.share) == ("waiting", 0.0) and (started.state, started.share) == ("waiting", 1.0)
    failed = outcome_of(tmp_path / "none", 2, "failed", "no memory")
    (result,) = gather(EMPTY, [(ArmResult("a", None, (absent, started, failed)), (), False)]).arms
    assert not result.trials and result.failed[0].why == "no memory"


def test_the_best_of_a_search_that_did_not_end_is_not_evidence_for_a_rule(tmp_path):
    """Its rate is neither tuned nor given by the rule, so a comparison with rule none says nothing about the rule."""
    results = []
    for rule, shifts in (("none", (0.3, 0.311, 0.342)), ("sqrt", (0.0, 0.01, 0.04))):
        words = ("batch.size=32seq", "scaling.reference=8seq", f"scaling.rule={rule}")
        folders = [write(tmp_path / f"{rule}{shift}", *words, shift=shift) for shift in shifts]
        outcomes = tuple(outcome_of(folder, seed) for seed, folder in enumerate(folders))
        tried = (TriedValue(1e-3, 0.6), TriedValue(2e-3, 0.5, chosen=True)) if rule == "sqrt" else ()
        results.append((ArmResult(rule, None, outcomes, tried), (words[-1],), False))
    experiment = gather(EMPTY, results)
    assert experiment.arms[1].arm.searched and not experiment.arms[1].arm.tuned
    assert {finding.name: finding.verdict for finding in experiment.findings}["rate"] is Verdict.NOT_DECIDED


def test_arms_that_are_equal_in_all_numbers_are_variants_by_their_words(tmp_path):
    folders = [write(tmp_path / warmup, f"schedule.warmup={warmup}") for warmup in ("5%", "20%")]
    results = [(arm_of_one(path, words=f"recipe={path.name}"), (f"recipe={path.name}",), False) for path in folders]
    experiment = gather(EMPTY, results)
    assert [result.arm.variant for result in experiment.arms] == ["recipe=5%", "recipe=20%"]
    assert len(experiment.comparisons) == 1 and not any("no tests" in note for note in experiment.notes)


def test_a_run_that_diverged_has_no_mean_in_the_table(tmp_path):
    curve = ((10, 0.7, 0.6), (20, float("nan"), 0.4))
    experiment = gather(EMPTY, [(arm_of_one(write(tmp_path / "run", curve=curve)), (), False)])
    (row,) = rows(experiment)
    assert row["runs"] == 1 and row["loss"] is None and row["loss_sd"] is None
