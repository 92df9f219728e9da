"""The page of a run that watches its training rows: the panel of overfitting, what it says, and what it leaves out."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import watched
from rich.console import Console as RichConsole

from hfbsz.records import run_data as runs
from hfbsz.records.overfitting import overfitting_of
from hfbsz.records.record import Clock, Reading
from hfbsz.records.run_data import STEPS, TOKENS
from hfbsz.report.console import Console
from hfbsz.report.page import figures, style
from hfbsz.report.page import page as html
from hfbsz.report.page.overfitting import loss_limits


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
    return [record for record in records if record["event"] == "eval"]


def change(folder: Path, step: int, event: str = "eval", **values: Any) -> None:
    """Overwrite values of the evaluations from `step` on."""
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["event"] == event and record[STEPS] >= step:
            record.update(values)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


class TestOneRun:
    def test_says_where_it_was_best_and_what_came_after(self, overfits: Path) -> None:
        found, text = overfitting_of(runs.read_run(overfits)), section_of(page_of(overfits))
        assert found is not None and found.onset == found.best
        last = evaluations(overfits)[-1]
        assert "The run overfits: since step 32 (epoch 1.00) the validation loss rose by" in text
        assert f"rose by {last['overfit/rise']:.3f} nats/target" in text
        assert f"Best evaluation step 32 epoch 1.00 lowest validation loss, {found.best.validation:.4f}" in text
        for name, at in (("best", found.best), ("last", found.last)):  # the two numbers beside it
            beside = re.search(
                rf"Gap at the {name} evaluation (\S+) nats/target validation (\S+) − training rows (\S+?),? ", text
            )
            assert beside is not None and float(beside[1]) == round(float(beside[2]) - float(beside[3]), 4)
            assert (beside[2], beside[3]) == (f"{at.validation:.4f}", f"{at.train:.4f}")
        assert f"Rise since the best evaluation {last['overfit/rise']:+.4f} nats/target" in text
        assert "Onset of overfitting step 32 epoch 1.00 statistically significant since step 64" in text
        assert "Stopped early no" in text
        assert "Saved model last weights of step 320" in text
        assert "optimistic" not in text

    def test_panel_has_units_marks_and_epochs(self, overfits: Path) -> None:
        drawn = panel_of(page_of(overfits))
        for words in ("loss (nats/target)", "tokens seen", "epochs", "accuracy", "(share of rows)"):
            assert f">{words}</text>" in drawn
        assert ">best evaluation = onset of overfitting</text>" in drawn
        assert ">step 32, epoch 1.00</text>" in drawn

    def test_onset_that_was_made_up_for_has_a_mark_of_its_own(self, overfits: Path) -> None:
        change(overfits, 224, **{"overfit/train_loss": 0.1, "eval/loss": 0.5})
        change(overfits, 240, **{"eval/loss": 0.7})
        page = page_of(overfits)
        drawn, text = panel_of(page), section_of(page)
        assert ">best evaluation</text>" in drawn and ">step 224, epoch 7.00</text>" in drawn
        assert ">onset of overfitting</text>" in drawn and ">step 32, epoch 1.00</text>" in drawn
        assert "Overfitting began at step 32 (epoch 1.00), but the validation loss recovered" in text
        assert "since then it rose by 0.200 nats/target" in text

    def test_no_overfitting(self, fits: Path) -> None:
        page = page_of(fits)
        text = section_of(page)
        assert "No overfitting: the last evaluation is the best." in text
        assert "Onset of overfitting not detected" in text
        assert ">best evaluation</text>" in panel_of(page) and "onset" not in panel_of(page)

    def test_a_rise_that_is_not_sure_is_no_verdict(self, overfits: Path) -> None:
        plan = watched.classification()
        some = [
            {name: value for name, value in record.items() if name != "overfit/onset_step"}
            for record in watched.records_of(plan, True, stop=48)
        ]
        text = section_of(page_of(watched.make(overfits.parent / "short", plan, some, state="preempted")))
        assert "No significant overfitting" in text
        assert "Stopped early – the run has not finished" in text

    def test_stopped_early_with_the_best_weights(self, stopped: Path) -> None:
        page = page_of(stopped)
        text = section_of(page)
        final = runs.read_run(stopped).records[-1]
        assert "Stopped early step 160 of 320 planned, after 5 evaluations without a better one" in text
        assert "Saved model best weights" in text
        assert "optimistic" in text
        whole = text_of(page)
        assert (
            f"Validation loss {final['full/loss']:.4f} nats/target, all 2,000 rows of validation, best weights, step 32"
            in whole
        )
        assert f"Validation loss, fixed part {final['full/loss'] - 0.015:.4f} nats/target, 256 rows" in whole
        assert f"Validation loss, last weights {final['last/loss']:.4f} nats/target, the same rows, step 160" in whole
        assert "lower than the saved" not in whole

    def test_best_weights_that_are_worse_on_all_rows_are_said_to_be(self, stopped: Path) -> None:
        change(stopped, 0, event="final", **{"last/loss": 0.3417, "full/loss": 0.3468})
        text = text_of(page_of(stopped))
        assert "Validation loss 0.3468" in text and "Validation loss, last weights 0.3417" in text
        assert "lower than the saved weights, which were chosen on the fixed part" in text

    def test_the_curve_is_of_the_fixed_part_to_its_end(self, stopped: Path) -> None:
        run = runs.read_run(stopped)
        assert run.series("eval/loss", TOKENS)[1].tolist() == [one["eval/loss"] for one in evaluations(stopped)]
        found = overfitting_of(run)
        assert found is not None and len(found.moments) == len(evaluations(stopped))
        assert figures.saved_model_points(run, "eval/loss", STEPS)[0].tolist() == [32]  # where its weights were trained

    def test_best_weights_of_an_earlier_end_are_not_taken_for_the_last(self, stopped: Path) -> None:
        """A longer budget went on from a finished run, whose last record stays."""
        longer = watched.records_of(watched.classification(), True)
        later = [record for record in longer if record[STEPS] > 160]
        with (stopped / "records.jsonl").open("a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in later))
        text = text_of(page_of(stopped))
        assert "Saved model last weights" in text and "best weights, step" not in text

    def test_extractable_rows(self, overfits: Path) -> None:
        change(overfits, 0, **{"overfit/train_extractable": 0.123, "eval/extractable": 0.01})
        text = text_of(page_of(overfits))
        assert "Extractable rows 12.3 % of the training rows, 1.0 % of validation rows" in text
        change(overfits, 0, event="final", **{"full/extractable": 0.02})
        assert "Extractable 0.020 share of rows" in text_of(page_of(overfits))  # of all rows

    def test_without_rows_epochs_are_left_out(self, overfits: Path) -> None:
        (overfits / "plan.json").unlink()
        page = page_of(overfits)
        assert "epoch" not in panel_of(page) and "since step 32 the validation loss" in section_of(page)

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
        assert "The loss axis is cut off" in section_of(page_of(overfits))


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
        assert all(color in drawn for color in style.PALETTE[:3])
        assert page.count('<div class="plot">') == 1
        rows = [text_of(row) for row in section.split("<tbody>")[1].split("<tr>")[1:]]
        assert "stopped step 32 epoch 1.00 0.5740" in rows[1] and "step 160 best weights" in rows[1]
        assert "fits step 320 epoch 10.00" in rows[2] and "not detected no last weights" in rows[2]
        assert "Losses marked “best weights”" in text_of(page)

    def test_a_run_that_did_not_watch_keeps_its_color_to_itself(self, overfits: Path) -> None:
        plan = watched.plan_of()
        bare = watched.make(overfits.parent / "bare", plan, [])
        drawn = panel_of(page_of(bare, overfits))
        assert style.PALETTE[1] in drawn and style.PALETTE[0] not in drawn

    def test_tasks_do_not_compare(self, overfits: Path) -> None:
        plan = watched.plan_of()
        words = watched.make(overfits.parent / "words", plan, watched.records_of(plan, True, shift=2))
        text = text_of(page_of(overfits, words))
        assert "The runs have different tasks" in text


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
        assert "Perplexity" in text and "bits/byte" in text
        assert "ccuracy" not in text and "(share of rows)" not in panel_of(page)

    def test_further_metrics_of_the_recipe_are_shown(self, overfits: Path) -> None:
        change(overfits, 0, event="final", **{"full/brier_score": 0.2512})
        assert "Brier score 0.2512" in text_of(page_of(overfits))

    def test_console_tells_of_accuracy_and_gap(self) -> None:
        console, out = Console(), io.StringIO()
        console.out = RichConsole(file=out, highlight=False)
        values = {"eval/loss": 0.6, "eval/accuracy": 0.7421, "overfit/train_loss": 0.35, "overfit/gap": 0.25}
        console.evaluation(Reading("eval", Clock(32, 512, 16_077, 14.0), values))
        worse = {"eval/loss": 0.7236, "overfit/change": 0.0179, "overfit/best_step": 0.0}
        console.evaluation(Reading("eval", Clock(6, 512, 16_077, 14.0), worse))
        near = {"eval/loss": 1.01344, "overfit/train_loss": 0.00096, "overfit/gap": 1.01248}
        console.evaluation(Reading("eval", Clock(7, 512, 16_077, 14.0), near))
        first, second, third = out.getvalue().splitlines()
        assert first.endswith("validation loss 0.6000 nats/target  accuracy 0.742  training rows 0.3500 (gap +0.2500)")
        assert second.endswith("loss 0.7236 nats/target  not better than before training (0.7057 at step 0)")
        assert third.endswith("loss 1.0134 nats/target  training rows 0.0010 (gap +1.0124)")  # of the two beside it
