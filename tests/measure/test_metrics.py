"""Classification metrics: published and hand-computed values, and edge cases; they load without network access."""

import math
from pathlib import Path

import numpy as np
import pytest

from hfbsz.errors import UserError
from hfbsz.measure import metrics
from hfbsz.records.metrics import METRICS


def compute(name, predictions, references, **options):
    return metrics.load(name).compute(predictions=predictions, references=references, **options)[name]


@pytest.mark.parametrize(
    ("name", "predictions", "references", "value"),
    [
        ("accuracy", [0, 2, 1, 3], [0, 1, 2, 3], 0.5),  # scikit-learn's documentation of accuracy_score
        ("macro_f1", [0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2], 4 / 15),  # of f1_score, there 0.266…
        ("macro_f1", [0, 0, 0, 0], [0, 0, 1, 1], 1 / 3),  # F1 of 0: 2·2 ÷ 6; 1 is never predicted: 0
        ("macro_f1", [0, 3, 0], [0, 0, 0], 0.4),  # F1 of 0: 2·2 ÷ 5; 3 is never right: 0; 1 and 2 do not occur
        ("macro_f1", [1, 1], [1, 1], 1.0),
        ("matthews", [1, -1, 1, 1], [1, 1, 1, -1], -1 / 3),  # scikit-learn's matthews_corrcoef, there -0.33
        ("matthews", [1, 2, 2, 0, 3, 3], [1, 3, 2, 0, 3, 2], 14 / 26),  # evaluate's matthews_correlation, there 0.54
        ("matthews", [1, 0, 1, 0], [1, 0, 1, 0], 1.0),
        ("matthews", [0, 1, 0, 1], [1, 0, 1, 0], -1.0),
        ("matthews", [0, 0, 0], [0, 1, 2], 0.0),  # one label predicted
        ("matthews", [0, 1, 2], [0, 0, 0], 0.0),  # one label true
        ("matthews", [0, 0], [0, 0], 0.0),
    ],
)
def test_of_labels(name, predictions, references, value):
    assert compute(name, predictions, references) == pytest.approx(value, abs=1e-12)


def test_two_labels_give_the_textbook_correlation():
    predictions, references = np.random.default_rng(0).integers(0, 2, (2, 500))
    expected = np.corrcoef(predictions, references)[0, 1]
    assert compute("matthews", predictions, references) == pytest.approx(expected, abs=1e-12)


class TestCalibrationError:
    THREE = ([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]], [0, 1, 2, 0])

    def test_published(self):
        """torchmetrics' documentation of MulticlassCalibrationError, norm l1: 0.2000 in 3 bins."""
        assert compute("calibration_error", *self.THREE, bins=3) == pytest.approx(0.2)

    def test_by_hand_in_15_bins(self):
        # (8/15, 9/15] holds .55 wrong, .55 wrong, .60 right: |1 − 1.7|; (13/15, 14/15] holds .90 right: |1 − .9|
        assert compute("calibration_error", *self.THREE) == pytest.approx((0.7 + 0.1) / 4)
        # .62 and .68 fall on two sides of 10/15, so their errors do not cancel as they would in one bin
        rows = [[0.62, 0.38], [0.68, 0.32]]
        assert compute("calibration_error", rows, [0, 1]) == pytest.approx((0.38 + 0.68) / 2)
        assert compute("calibration_error", rows, [0, 1], bins=1) == pytest.approx(abs(1 - 1.3) / 2)

    def test_sure_and_right_is_calibrated(self):
        assert compute("calibration_error", [[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0

    def test_sure_and_wrong_is_not(self):
        assert compute("calibration_error", [[1.0, 0.0], [0.0, 1.0]], [1, 0]) == 1

    def test_as_often_right_as_sure(self):
        assert compute("calibration_error", [[0.8, 0.2]] * 5, [0, 0, 0, 0, 1]) == pytest.approx(0, abs=1e-12)


class TestClassification:
    def test_of_logits(self):
        logits = np.log(np.array(TestCalibrationError.THREE[0], dtype=np.float32)) + 100  # a shift changes nothing
        values = metrics.classification(logits, np.array([0, 1, 2, 0]))
        # predicted 2 0 2 0, true 0 1 2 0: F1 of 0 is 2 ÷ 4, of 1 is 0, of 2 is 2 ÷ 3
        expected = {"accuracy": 0.5, "macro_f1": (1 / 2 + 2 / 3) / 3, "calibration_error": 0.2}
        expected["matthews"] = (2 * 4 - (2 * 2 + 2 * 1)) / math.sqrt((16 - 8) * (16 - 6))
        assert values == pytest.approx(expected, abs=1e-6)
        assert {f"eval/{name}" for name in values} <= set(METRICS)

    def test_huge_logits_do_not_overflow(self):
        assert metrics.classification(np.array([[1e4, -1e4]]), np.array([0]))["calibration_error"] == 0

    def test_without_rows(self):
        assert all(math.isnan(value) for value in metrics.classification(np.zeros((0, 3)), np.zeros(0, int)).values())

    def test_a_row_of_nan_predicts_nothing(self):
        values = metrics.classification(np.array([[np.nan, np.nan], [2.0, 1.0]]), np.array([0, 0]))
        assert values["accuracy"] == 0.5 and math.isnan(values["calibration_error"])


class TestLoad:
    def test_a_script_by_its_path(self, tmp_path):
        script = tmp_path / "hits.py"
        source = Path(metrics.__file__).with_name("accuracy.py").read_text()
        script.write_text(source.replace("class Accuracy", "class Hits").replace('"accuracy"', '"hits"'))
        assert compute_path(script) == {"hits": 0.5}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("glue", "metric 'glue': not in the cache, and HF_HUB_OFFLINE is set"),
            ("macrof1", "did you mean 'macro_f1'?"),
            ("somebody/metric", "metric 'somebody/metric': scripts of other users on the Hub are not run"),
            ("mine/nothing.py", "metric 'mine/nothing.py': no such file"),
        ],
    )
    def test_what_cannot_be_loaded_is_reported_in_one_line(self, name, message, monkeypatch):
        import evaluate
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
        before = evaluate.config.HF_EVALUATE_OFFLINE
        with pytest.raises(UserError) as problem:
            metrics.load(name)
        assert message in str(problem.value) and "\n" not in str(problem.value)
        assert before == evaluate.config.HF_EVALUATE_OFFLINE

    def test_case_s08_a_bare_name_runs_nothing_of_the_working_folder(self, tmp_path, monkeypatch):
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
        monkeypatch.chdir(tmp_path)
        for name in ("rouge", "rouge.py", "f1"):
            script = tmp_path / name if name.endswith(".py") else tmp_path / name / f"{name}.py"
            script.parent.mkdir(exist_ok=True)
            script.write_text(f"open('RAN', 'a').write({name!r})\n")
        for name in ("rouge", "f1", ".", ".."):
            with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
                metrics.load(name)
        (tmp_path / "evaluate-metric" / "f1").mkdir(parents=True)
        (tmp_path / "evaluate-metric" / "f1" / "f1.py").write_text("open('RAN', 'w').write('x')\n")
        with pytest.raises(UserError, match="the folder evaluate-metric/f1 would be loaded"):
            metrics.load("f1")
        assert not (tmp_path / "RAN").exists()
        for name, ran in (("./rouge", "rouge"), ("rouge.py", "rougerouge.py")):
            with pytest.raises(UserError, match="its script does not load"):
                metrics.load(name)
            assert (tmp_path / "RAN").read_text() == ran

    def test_a_script_that_needs_a_package_names_it(self, tmp_path):
        (tmp_path / "needy.py").write_text("import evaluate\nimport no_such_package\n")
        with pytest.raises(UserError, match=r"pip install no_such_package"):
            metrics.load(str(tmp_path / "needy.py"))

    def test_a_broken_script_is_reported_in_one_line(self, tmp_path):
        (tmp_path / "broken.py").write_text("import evaluate\n\n1 / 0\n")
        with pytest.raises(UserError, match="ZeroDivisionError: division by zero"):
            metrics.load(str(tmp_path / "broken.py"))


def compute_path(path):
    return metrics.load(str(path)).compute(predictions=[1, 0], references=[1, 1])
