"""The page of a run that watches its training rows: the panel of overfitting, what it says, and what it leaves out."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import watched
from rich.console import Console as RichConsole

from hfbsz.record import Reading
from hfbsz.report import figures, html, runs
from hfbsz.report.console import Console
from hfbsz.report.overfit import overfitting_of
from hfbsz.report.panel import loss_limits
from hfbsz.report.runs import STEPS, TOKENS


def page_of(*folders: Path) -> str:
    return html.render([runs.read_run(folder) for folder in folders])


def text_of(page: str) -> str:
    """What a person reads outside the figures, in one line."""
    bare = re.sub(r"<(svg|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


def panel_of(page: str) -> str:
    return page.split('<div class="plot">')[1].split("</svg>")[0]


def section_of(page: str) -> str:
    return text_of(page.split("<h2>Overfitting</h2>")[1].split("<h2>")[0])


@pytest.fixture
def overfits(tmp_path: Path) -> Path:
    plan = watched.classification()
    return watched.make(tmp_path / "overfits", plan, watched.records_of(plan, True))


@pytest.fixture
def fits(tmp_path: Path) -> Path:
    plan = watched.classification()
    return watched.make(tmp_path / "fits", plan, watched.records_of(plan, False))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    plan = watched.classification("checkpoint.save=best", "eval.patience=5")
    records = watched.records_of(plan, True, stop=160, save_best=True)
    return watched.make(tmp_path / "stopped", plan, records, why="5 evaluations without a better one")


def evaluations(folder: Path) -> list[Any]:
    records = runs.read_run(folder).records
    return [record for record in records if record["event"] == "eval" and not record.get("eval/best")]


def change(folder: Path, step: int, **values: Any) -> None:
    """Overwrite values of the evaluations from `step` on."""
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["event"] == "eval" and record[STEPS] >= step:
            record.update(values)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


class TestOneRun:
    def test_says_where_it_was_best_and_what_came_after(self, overfits: Path) -> None:
        found, text = overfitting_of(runs.read_run(overfits)), section_of(page_of(overfits))
        assert found is not None and found.onset == found.best
        last = evaluations(overfits)[-1]
        assert "It overfits. Since step 32 (epoch 1.00) the validation loss has risen" in text
        assert f"risen by {last['overfit/rise']:.3f} nats/target" in text
        assert f"Best evaluation step 32 epoch 1.00 lowest validation loss, {found.best.validation:.4f}" in text
        assert f"Gap there {found.best.gap:+.3f} nats/target" in text
        assert f"Gap at the last {last['overfit/gap']:+.3f} nats/target at step 320" in text
        assert f"Rise since the best {last['overfit/rise']:+.3f} nats/target" in text
        assert "Onset of overfitting step 32 epoch 1.00 sure since step 64" in text
        assert "Stopped early no" in text
        assert "Saved model holds last weights of step 320" in text
        assert "flatter" not in text

    def test_panel_has_units_marks_and_epochs(self, overfits: Path) -> None:
        drawn = panel_of(page_of(overfits))
        for words in ("loss (nats/target)", "tokens seen", "epochs", "accuracy", "(share of rows)"):
            assert f">{words}</text>" in drawn
        assert ">best evaluation = onset of overfitting</text>" in drawn
        assert ">step 32, epoch 1.00</text>" in drawn

    def test_onset_that_was_made_up_for_has_a_mark_of_its_own(self, overfits: Path) -> None:
        change(overfits, 224, **{"overfit/train_loss": 0.1, "overfit/gap": 0.4, "overfit/best_step": 224})
        change(overfits, 240, **{"overfit/gap": 0.6, "overfit/rise": 0.2})
        page = page_of(overfits)
        drawn, text = panel_of(page), section_of(page)
        assert ">best evaluation</text>" in drawn and ">step 224, epoch 7.00</text>" in drawn
        assert ">onset of overfitting</text>" in drawn and ">step 32, epoch 1.00</text>" in drawn
        assert "Overfitting began at step 32 (epoch 1.00), but was made up for" in text
        assert "since then the loss has risen by 0.200 nats/target" in text

    def test_no_overfitting(self, fits: Path) -> None:
        page = page_of(fits)
        text = section_of(page)
        assert "No overfitting seen: the last evaluation is the best." in text
        assert "Onset of overfitting not seen" in text
        assert ">best evaluation</text>" in panel_of(page) and "onset" not in panel_of(page)

    def test_a_rise_that_is_not_sure_is_no_verdict(self, overfits: Path) -> None:
        plan = watched.classification()
        some = [
            {name: value for name, value in record.items() if name != "overfit/onset_step"}
            for record in watched.records_of(plan, True, stop=48)
        ]
        text = section_of(page_of(watched.make(overfits.parent / "short", plan, some, state="preempted")))
        assert "No overfitting is sure. The last evaluation is" in text
        assert "Stopped early – the run has not finished" in text

    def test_stopped_early_with_the_best_weights(self, stopped: Path) -> None:
        page = page_of(stopped)
        text = section_of(page)
        best = runs.read_run(stopped).records[-1]["eval/loss"]
        assert "Stopped early step 160 of 320 planned, after 5 evaluations without a better one" in text
        assert "Saved model holds best weights" in text
        assert f"The last weights {evaluations(stopped)[-1]['eval/loss']:.4f} nats/target" in text
        assert "flatter a little" in text
        assert f"Validation loss {best:.4f} nats/target, whole validation set, best weights" in text_of(page)

    def test_evaluation_of_the_best_weights_is_no_point_of_a_curve(self, stopped: Path) -> None:
        run = runs.read_run(stopped)
        assert len(run.series("eval/loss", TOKENS)[0]) == len(evaluations(stopped))
        found = overfitting_of(run)
        assert found is not None and len(found.moments) == len(evaluations(stopped))

    def test_the_last_loss_is_compared_on_the_fixed_part(self, overfits: Path) -> None:
        """At the end `eval/loss` is of the whole set; the curve goes on with the fixed part's."""
        found, last = overfitting_of(runs.read_run(overfits)), evaluations(overfits)[-1]
        assert found is not None and last["eval/full"] == 1
        assert found.last.validation == pytest.approx(last["eval/loss"] - 0.02)

    def test_best_weights_of_an_earlier_end_are_not_taken_for_the_last(self, stopped: Path) -> None:
        """A longer budget went on from a finished run, whose last record stays."""
        longer = watched.records_of(watched.classification(), True)
        later = [record for record in longer if record[STEPS] > 160]
        with (stopped / "records.jsonl").open("a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in later))
        text = text_of(page_of(stopped))
        assert "Saved model holds last weights" in text and "whole validation set, best" not in text

    def test_extractable_rows(self, overfits: Path) -> None:
        change(overfits, 0, **{"overfit/train_extractable": 0.123, "eval/extractable": 0.01})
        text = text_of(page_of(overfits))
        assert "Extractable 12.3 % of the training rows, 1.0 % of validation" in text
        assert "Extractable 0.010 share of rows" in text

    def test_without_rows_epochs_are_left_out(self, overfits: Path) -> None:
        (overfits / "plan.json").unlink()
        page = page_of(overfits)
        assert "epoch" not in panel_of(page) and "Since step 32 the validation loss" in section_of(page)

    def test_first_fall_is_cut(self, overfits: Path) -> None:
        change(overfits, 0, **{"overfit/train_loss": 0.5})
        path = overfits / "records.jsonl"
        lines = path.read_text().splitlines()
        lines[0] = json.dumps({**json.loads(lines[0]), "overfit/train_loss": 9.0})
        path.write_text("\n".join(lines))
        found = overfitting_of(runs.read_run(overfits))
        assert found is not None
        _, top, cut = loss_limits([found])
        assert cut and top < 4
        assert "The axis is cut above the fall of the first steps." in section_of(page_of(overfits))


class TestWithoutPanel:
    def test_run_that_did_not_watch(self, overfits: Path) -> None:
        plan = watched.classification()
        bare = [
            {name: value for name, value in record.items() if not name.startswith("overfit/")}
            for record in watched.records_of(plan, True)
        ]
        page = page_of(watched.make(overfits.parent / "bare", plan, bare))
        assert "<h2>Overfitting</h2>" not in page and "Accuracy 0.7" in text_of(page)

    @pytest.mark.parametrize("count", [0, 1])
    def test_run_that_has_just_begun(self, count: int, tmp_path: Path) -> None:
        plan = watched.classification()
        page = page_of(watched.make(tmp_path / "young", plan, watched.records_of(plan, True)[:count], state="running"))
        assert "<h2>Overfitting</h2>" not in page

    def test_losses_that_are_not_finite(self, overfits: Path) -> None:
        change(overfits, 0, **{"overfit/train_loss": float("nan")})
        assert "<h2>Overfitting</h2>" not in page_of(overfits)


class TestSeveral:
    def test_are_laid_over_each_other_in_their_styles(self, overfits: Path, stopped: Path, fits: Path) -> None:
        page = page_of(overfits, stopped, fits)
        drawn, section = panel_of(page), page.split("<h2>Overfitting</h2>")[1].split("<h2>")[0]
        assert all(colour in drawn for colour in figures.PALETTE[:3])
        assert page.count('<div class="plot">') == 1
        rows = [text_of(row) for row in section.split("<tbody>")[1].split("<tr>")[1:]]
        assert "stopped step 32 epoch 1.00 0.5740" in rows[1] and "step 160 best weights" in rows[1]
        assert "fits step 320 epoch 10.00" in rows[2] and "not seen no last weights" in rows[2]
        assert "Numbers marked “best weights” are of the best evaluation's weights" in text_of(page)

    def test_a_run_that_did_not_watch_keeps_its_colour_to_itself(self, overfits: Path) -> None:
        plan = watched.plan_of()
        bare = watched.make(overfits.parent / "bare", plan, [])
        drawn = panel_of(page_of(bare, overfits))
        assert figures.PALETTE[1] in drawn and figures.PALETTE[0] not in drawn

    def test_tasks_do_not_compare(self, overfits: Path) -> None:
        plan = watched.plan_of()
        words = watched.make(overfits.parent / "words", plan, watched.records_of(plan, True, shift=2))
        text = text_of(page_of(overfits, words))
        assert "The runs have different tasks: their losses do not compare" in text


class TestMeasures:
    def test_a_classifier_has_no_perplexity(self, overfits: Path, fits: Path) -> None:
        for page in (page_of(overfits), page_of(overfits, fits)):
            text = text_of(page)
            assert "Perplexity" not in text and "Bits per byte" not in text
            for heading in ("Accuracy", "Macro F1", "Matthews correlation", "Calibration error"):
                assert heading in text

    def test_a_language_model_has_no_accuracy(self, tmp_path: Path) -> None:
        plan = watched.plan_of()
        page = page_of(watched.make(tmp_path / "words", plan, watched.records_of(plan, True, shift=2)))
        text = text_of(page)
        assert "Perplexity" in text and "bits/byte, compares across tokenizers" in text
        assert "ccuracy" not in text and "(share of rows)" not in panel_of(page)

    def test_further_metrics_of_the_recipe_are_shown(self, overfits: Path) -> None:
        change(overfits, 0, **{"eval/brier_score": 0.2512})
        assert "brier_score 0.2512 in its own unit" in text_of(page_of(overfits))

    def test_console_tells_of_accuracy_and_gap(self) -> None:
        console, out = Console(), io.StringIO()
        console.out = RichConsole(file=out, highlight=False)
        values = {"eval/loss": 0.6, "eval/accuracy": 0.7421, "overfit/train_loss": 0.35, "overfit/gap": 0.25}
        console.evaluation(Reading("eval", 32, 512, 16_077, 14.0, values))
        console.evaluation(Reading("eval", 320, 5120, 160_768, 140.0, {"eval/loss": 0.61, "eval/best": 1}))
        first, second = out.getvalue().splitlines()
        assert first.endswith("validation loss 0.6000 nats/target  accuracy 0.742  training rows 0.3500 (gap +0.2500)")
        assert second.endswith("validation loss 0.6100 nats/target  (best weights)")
