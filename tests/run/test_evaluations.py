"""The evaluations of a run: all points of a curve are of the same rows, complete sets have their own names, and the
best evaluation is better than before training."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, records

from hfbsz.data.batches import Batch
from hfbsz.measure.overfit import OverfittingMonitor
from hfbsz.measure.quality import Quality
from hfbsz.recipe.load import load
from hfbsz.records import run_data as runs
from hfbsz.records.evaluations import best_evaluation, final_result, not_better, validation_curve
from hfbsz.records.folder import read_status
from hfbsz.records.overfitting import overfitting_of
from hfbsz.records.record import Clock, Step
from hfbsz.report.page import page as html
from hfbsz.run.evaluations import Evaluator
from hfbsz.train.checkpoint import steps
from hfbsz.train.setup import setup

STEP = "train/global_step"


def text_of(page: str) -> str:
    bare = re.sub(r"<(svg|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


def page_of(folder: Path) -> str:
    return text_of(html.render([runs.read_run(folder)]))


@pytest.fixture(scope="module")
def overfitted(hfbsz, ragged, tmp_path_factory):
    """A run on few rows that overfits; 16 validation rows are evaluated during the run, and all of them at its end."""
    folder = tmp_path_factory.mktemp("overfitted") / "run"
    words = [TINY, f"data.files={ragged}", "data.validation=96%", "duration=160steps", "optim.lr=1e-2", "eval.every=5%"]
    words += ["schedule.shape=constant", "checkpoint.save=best", "eval.full=true", "threads=1", f"output_dir={folder}"]
    ended = hfbsz("pretrain.py", *words)
    assert ended.code == 0, ended.err
    return folder, ended


@pytest.fixture(scope="module")
def worse(hfbsz, ragged, tmp_path_factory):
    """A run with a learning rate far too high: no evaluation is better than before training."""
    folder = tmp_path_factory.mktemp("worse") / "run"
    words = [TINY, f"data.files={ragged}", "duration=40steps", "optim.lr=5", "schedule.warmup=0%", "eval.every=10%"]
    words += ["eval.watch=true", "checkpoint.save=best", "eval.patience=4", "threads=1", f"output_dir={folder}"]
    ended = hfbsz("pretrain.py", *words)
    assert ended.code == 0, ended.err
    return folder, ended


def test_an_evaluation_that_runs_out_of_memory_is_repeated_with_fewer_rows(ragged, cache, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    run = setup(load([TINY, f"data.files={ragged}", "precision=fp64"]).recipe)
    evaluate_batch, passes, told = run.task.evaluate_batch, [], []
    quality = Quality(run.plan.recipe.row_kind, ())
    expected = Evaluator(run, OverfittingMonitor(None), quality).evaluate(Step(Clock(), 0, 0, 0, 0.0, 0.0, 0.0, 0, 0))

    def limited(model, batch):
        passes.append(len(batch.labels))
        if len(batch.labels) > 2:
            raise MemoryError
        return evaluate_batch(model, batch)

    run.task.evaluate_batch = limited
    evaluator = Evaluator(run, OverfittingMonitor(None), quality, warn=told.append)
    found = evaluator.evaluate(Step(Clock(), 0, 0, 0, 0.0, 0.0, 0.0, 0, 0))
    assert passes[:3] == [8, 4, 2] and set(passes[3:]) == {2} and len(told) == 2
    assert found.values["eval/loss"] == pytest.approx(expected.values["eval/loss"], rel=1e-12)
    run.task.evaluate_batch = lambda model, batch: limited(model, Batch(batch.inputs, [0] * 3, 0, 0))
    with pytest.raises(MemoryError):
        evaluator.evaluate(Step(Clock(), 0, 0, 0, 0.0, 0.0, 0.0, 0, 0))


def test_case_12_every_point_of_the_curve_is_of_the_same_rows(overfitted):
    folder, _ = overfitted
    evaluations = records(folder, "eval")
    assert [record[STEP] for record in evaluations] == list(range(0, 161, 8))
    assert {record["eval/rows"] for record in evaluations} == {16}
    assert len({record["eval/targets"] for record in evaluations}) == 1
    assert not any(name.startswith(("full/", "last/")) for record in evaluations for name in record)


def test_case_12_metrics_of_complete_sets_have_their_own_names(overfitted):
    folder, ended = overfitted
    (final,) = records(folder, "final")
    assert final["full/rows"] == final["last/rows"] > 200 and not any(name.startswith("eval/") for name in final)
    reached = read_status(folder)["reached"]
    assert reached["loss"].startswith(f"{final['full/loss']:.4f} nats/target (all {final['full/rows']:,} rows of")
    assert reached["last weights"].startswith(f"{final['last/loss']:.4f} nats/target (the same rows; step 160)")
    assert all(f"{name}" in ended.out and value in ended.out for name, value in reached.items())
    assert f"Validation loss {final['full/loss']:.4f}" in page_of(folder)
    assert f"| loss | {reached['loss']} |" in (folder / "README.md").read_text()


def test_case_12_the_gap_is_the_difference_of_the_two_losses_shown_with_it(overfitted):
    folder, ended = overfitted
    lines = re.findall(r"validation loss (\S+) .*training rows (\S+) \(gap (\S+)\)", ended.out)
    assert len(lines) == len(records(folder, "eval")) == 21
    for validation, train, gap in lines:
        assert float(gap) == pytest.approx(float(validation) - float(train), abs=1e-9)
    beside = re.findall(
        r"Gap at the (?:best|last) evaluation (\S+) nats/target validation (\S+) − training rows ([\d.]+)",
        page_of(folder),
    )
    assert len(beside) == 2
    for gap, validation, train in beside:
        assert float(gap) == pytest.approx(float(validation) - float(train), abs=1e-9)


def test_case_12_the_best_has_the_lowest_loss_of_the_curve_everywhere(overfitted):
    folder, ended = overfitted
    losses = {record[STEP]: record["eval/loss"] for record in records(folder, "eval") if record[STEP]}
    best = min(losses, key=losses.__getitem__)
    assert 0 < best < 160
    lines = [line for line in ended.out.splitlines() if "the best so far" in line]
    lowest = np.minimum.accumulate(list(losses.values()))
    assert len(lines) == len(set(lowest)) and f"{losses[best]:.4f}" in lines[-1]
    (final,) = records(folder, "final")
    run = runs.read_run(folder)
    evaluation, result, overfitting = best_evaluation(run), final_result(run), overfitting_of(run)
    assert evaluation is not None and result is not None and overfitting is not None
    assert final["model/step"] == evaluation[STEP] == result.step == overfitting.best.step == best
    assert best in steps(folder)
    fixed = read_status(folder)["reached"]["fixed part"]
    assert fixed.startswith(f"{losses[best]:.4f} nats/target (the fixed 16 rows") and "the best there" in fixed
    line = f"Validation loss, fixed part {losses[best]:.4f} nats/target, 16 rows"
    assert line in page_of(folder) and "this is the best" in page_of(folder)


def test_case_12_without_complete_sets_the_loss_is_named_as_that_of_the_fixed_part(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", "duration=8steps", "eval.full=false", "threads=1"]
    ended = hfbsz("pretrain.py", *words, f"output_dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    (final,) = records(tmp_path / "run", "final")
    assert final["model/step"] == 8 and not any(name.startswith("full/") for name in final)
    assert "the fixed 16 rows of validation, at step 8" in read_status(tmp_path / "run")["reached"]["loss"]
    assert "nats/target, a fixed part of validation (16 rows), step 8" in page_of(tmp_path / "run")


@pytest.mark.parametrize("words", [[], ["eval.full=true"]])
def test_the_final_evaluation_is_in_proportion_to_the_run_or_complete(hfbsz, ragged, tmp_path, words):
    folder = tmp_path / "run"
    recipe = [TINY, f"data.files={ragged}", "duration=8steps", "threads=1", *words]
    ended = hfbsz("pretrain.py", *recipe, f"output_dir={folder}")
    assert ended.code == 0, ended.err
    (final,) = records(folder, "final")
    rows, of = final["full/rows"], final["full/set_rows"]
    assert rows == of if words else 32 <= rows <= 32 + 16 < of
    text = f"all {of} rows of validation" if rows == of else f"{rows} of {of} rows of validation, evenly spread"
    assert text in read_status(folder)["reached"]["loss"] and text in page_of(folder) and text in ended.out


def test_case_22_there_is_no_best_evaluation_if_none_is_better_than_before_training(worse):
    folder, ended = worse
    first, *curve = records(folder, "eval")
    assert all(record["eval/loss"] > first["eval/loss"] for record in curve)
    assert all(record["overfit/best_step"] == 0 and "overfit/onset_step" not in record for record in curve)
    lines = [line for line in ended.out.splitlines() if re.match(r"step +[1-9]", line) and "validation loss" in line]
    assert len(lines) == len(curve)
    at_start = f"not better than before training ({first['eval/loss']:.4f} at step 0)"
    assert all(at_start in line for line in lines)
    card = (folder / "README.md").read_text()
    for text in (ended.out, card, page_of(folder), json.dumps(read_status(folder), ensure_ascii=False)):
        assert "not better than before training" in text.lower()
        assert "the best so far" not in text and "overfitting since" not in text and "The run overfits" not in text
    assert "Best evaluation none" in page_of(folder) and "Onset of overfitting not detected" in page_of(folder)


def test_case_22_the_last_weights_are_saved_with_a_note(worse):
    folder, _ = worse
    last, status = records(folder, "eval")[-1][STEP], read_status(folder)
    assert records(folder, "final")[0]["model/step"] == last == status["step"] == max(steps(folder))
    note = "checkpoint.save=best finds none to keep, the last weights are saved"
    assert note in status["reached"]["before training"] and note in (folder / "README.md").read_text()
    assert f"Saved model last weights of step {last}: no evaluation was better than before training" in page_of(folder)
    assert status["cause"] == "patience" and " in 4" in status["why"]


def write(folder: Path, *lines: dict) -> runs.RunData:
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs.read_run(folder)


def at(step: int, event: str = "eval") -> dict:
    axes = {STEP: step, "train/sequences": 8 * step, "train/num_input_tokens_seen": 512 * step, "train/seconds": step}
    return {"event": event, **axes}


def old(step: int, loss: float, train: float, gap: float, **marks: int) -> dict:
    """A record in the form of earlier versions: `full` and `best` mark evaluations of other rows and other weights."""
    overfit = {"overfit/train_loss": train, "overfit/gap": gap, "overfit/best_step": 10.0}
    marks = {"full": 0, **marks}
    return {**at(step), "eval/loss": loss, **overfit, **{f"eval/{name}": value for name, value in marks.items()}}


def test_records_of_earlier_versions_are_converted(tmp_path):
    start, first = old(0, 0.7, 0.7, 0.0), old(10, 0.5, 0.4, 0.1)
    full = old(20, 0.93, 0.001, 0.62, full=1)  # the loss is of all rows, the gap of the fixed part
    best = {**at(20), "eval/loss": 0.55, "overfit/best_step": 10.0, "eval/full": 1, "eval/best": 1}
    run = write(tmp_path / "best", start, first, full, best)
    assert [record["eval/loss"] for record in validation_curve(run)] == [0.5, pytest.approx(0.621)]
    result = final_result(run)
    assert result is not None and (result.step, result.measured_at_end, result.loss) == (10, True, 0.55)
    assert result.fixed_part["loss"] == 0.5 and result.last_weights["loss"] == 0.93
    alone = final_result(write(tmp_path / "last", start, first, full))
    assert alone is not None and (alone.step, alone.loss, dict(alone.last_weights)) == (20, 0.93, {})
    unwatched = write(
        tmp_path / "unwatched", {**at(0), "eval/loss": 3.0, "eval/full": 0}, {**at(5), "eval/loss": 2.0, "eval/full": 1}
    )
    assert validation_curve(unwatched) == [] and final_result(unwatched).loss == 2.0
    assert "Validation loss 2.0000 nats/target, all rows of validation" in text_of(html.render([unwatched]))


def test_a_run_that_was_better_and_ends_worse_is_reported_with_both_losses(tmp_path):
    lines = ({**at(step), "eval/loss": loss, "eval/rows": 16} for step, loss in ((0, 0.7), (10, 0.5), (20, 0.8)))
    run = write(tmp_path / "run", *lines, {**at(20, "final"), "model/step": 20, "full/loss": 0.9, "full/rows": 99})
    message = not_better(run)
    assert message is not None and "step 20 is 0.8000, 0.7000 nats/target before training" in message
    assert "the best evaluation: 0.5000 at step 10" in message


def test_a_loss_that_was_not_finite_is_not_replaced_by_another(tmp_path):
    """Earlier versions omitted it from its record: it is neither the best loss nor that of the step before."""
    lost = {**at(20), "eval/rows": 16}
    run = write(tmp_path / "run", {**at(0), "eval/loss": 0.7}, {**at(10), "eval/loss": 0.6}, lost)
    result, best = final_result(run), best_evaluation(run)
    assert result is not None and result.step == 20 and math.isnan(result.loss)
    assert best is not None and best[STEP] == 10
    assert "the validation loss of step 20 is not finite" in str(not_better(run))
    assert "Validation loss not finite" in text_of(html.render([run]))


ROWS = {
    "rows": [
        {"number": 0, "parts": [["<|user|> a < b & c\n\n  indented", False], ["no<script>", True]],
         "tokens": 1234, "learned": 3, "label": None}
    ],
    "of": 5485, "read": ["prompt", "response"], "unused": ["id", "<b>"],
    "end": "<|end|> ends an answer, and is trained on",
}  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
def test_the_page_marks_the_targets_of_training_rows(tmp_path, several):
    run = write(tmp_path / "run", {**at(0), "eval/loss": 0.7})
    (run.folder / "rows.json").write_text(json.dumps(ROWS))
    others = [write(tmp_path / "other", {**at(0), "eval/loss": 0.7})] if several else []
    page = html.render([runs.read_run(run.folder), *others])
    assert "&lt;|user|&gt; a &lt; b &amp; c\n\n  indented<mark>no&lt;script&gt;</mark></div>" in page
    text = text_of(page)
    assert (
        "1 of 5,485 training rows" in text
        and "1,234 tokens, 3 in the loss" in text
        and text.count("Training examples") == 1
    )
    assert "Columns used prompt, response Columns not used id, &lt;b&gt; End token &lt;|end|&gt; ends an answer" in text


def test_the_page_shows_labels_and_omits_invalid_rows(tmp_path):
    run = write(tmp_path / "run", {**at(0), "eval/loss": 0.7})
    rows = [{"number": 7, "parts": [["fine", False]], "tokens": 3, "learned": 1, "label": "a<b"}]
    (run.folder / "rows.json").write_text(
        json.dumps({"rows": rows, "of": 9, "read": ["text"], "unused": [], "end": ""})
    )
    page = html.render([runs.read_run(run.folder)])
    assert 'fine <mark class="label">a&lt;b</mark></div>' in page and "Columns" not in page and "End token" not in page
    for bad in ("{", "[]", '{"rows": []}', '{"rows": [3], "of": 1}', '{"rows": [{"number": 1}], "of": 1}'):
        (run.folder / "rows.json").write_text(bad)
        assert "Training examples" not in html.render([runs.read_run(run.folder)])
