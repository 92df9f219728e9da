"""Scores on tasks in the records of a run, and the names of their metrics."""

from hfbsz.records.harness import same, scores
from hfbsz.records.metrics import metric


def record(step, acc, task="t", examples=100, **more):
    name = f"harness/{task}"
    values = {f"{name}/acc": acc, f"{name}/acc_stderr": 0.05, f"{name}/examples": examples}
    return {"event": "harness", "model/step": step, **values, "harness/seconds": 1.5, **more}


def test_the_newest_scores_of_a_task_are_shown():
    (score,) = scores([record(10, 0.3), record(20, 0.4), record(20, 0.45), record(10, 0.35)])
    assert (score.task, score.measure, score.value, score.step) == ("t", "acc", 0.45, 20)
    assert (score.error, score.examples) == (0.05, 100)
    assert score.shown == "0.450 ± 0.050" and score.heading == "accuracy"


def test_those_of_the_saved_weights_come_first():
    lines = [record(10, 0.5), record(20, 0.4), record(30, 0.3, task="u")]
    assert [(one.task, one.value) for one in scores(lines, step=10)] == [("t", 0.5), ("u", 0.3)]


def test_other_records_hold_no_scores():
    assert scores([{"event": "eval", "eval/loss": 1.0}, {"event": "harness", "state": "x"}]) == []
    assert scores([{"event": "harness", "harness/t/acc": 0.5}]) == []  # of unknown weights
    assert scores([record(1, "half")]) == []


def test_a_score_without_an_error():
    (score,) = scores([{"event": "harness", "model/step": 3, "harness/t/word_perplexity": 12.345}])
    assert score.shown == "12.35" and score.examples is None and score.error is None


def test_equal_scores_are_the_same_however_long_they_took():
    assert same(record(10, 0.3), {**record(10, 0.3), "harness/seconds": 9.0})
    assert not same(record(10, 0.3), record(10, 0.4)) and not same(record(10, 0.3), record(20, 0.3))
    assert not same(record(10, 0.3), record(10, 0.3, **{"harness/u/acc": 0.1}))


def test_the_metrics_of_scores():
    assert metric("harness/hellaswag/acc_norm").heading == "accuracy by length"
    error = metric("harness/hellaswag/acc_stderr")
    assert error.heading == "error of the accuracy" and error.format == ".3f" and "standard error" in error.definition
    assert metric("harness/gsm8k/exact_match_strict-match").heading == "exact match strict-match"
