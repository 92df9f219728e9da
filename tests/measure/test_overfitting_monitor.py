"""Overfitting is detected and dated at the best evaluation, and not detected in noise."""

import json

import numpy as np
import pytest

from hfbsz.measure.overfit import OverfittingMonitor

ROWS = 256


def rows(generator, mean, moving=0.0):
    """Losses of the same rows: each row's own level, plus the mean of the evaluation and noise of scale `moving`."""
    levels = np.random.default_rng(7).normal(0, 0.5, ROWS)
    return levels + mean + generator.normal(0, moving, ROWS)


def follow(monitor, validation, training, moving=0.05, seed=0):
    """Update the monitor with evaluations of these mean losses until it stops; returns the metrics of each."""
    generator, seen = np.random.default_rng(seed), []
    for number, (mean, train) in enumerate(zip(validation, training, strict=True), 1):
        seen.append(monitor.update(10 * number, rows(generator, mean, moving), np.ones(ROWS), train))
        if monitor.stopped:
            break
    return seen


def test_an_overfit_is_dated_at_its_best():
    monitor = OverfittingMonitor(patience=None)
    seen = follow(monitor, [0.7, 0.6, 0.55, 0.6, 0.7, 0.9], [0.69, 0.5, 0.3, 0.2, 0.1, 0.05])
    assert monitor.best_step == 30 and monitor.onset == 30
    assert "overfit/onset_step" not in seen[2] and seen[3]["overfit/onset_step"] == 30
    assert seen[5]["overfit/gap"] == pytest.approx(0.85, abs=0.1)
    assert seen[5]["overfit/rise"] == pytest.approx(0.35, abs=0.02) and seen[2]["overfit/rise"] == 0


def test_noise_is_no_overfit():
    """Validation loss stays, and varies by less than what is significant, in nearly all runs."""
    dated = 0
    for seed in range(100):
        monitor = OverfittingMonitor(patience=None)
        follow(monitor, [0.55] * 6, np.linspace(0.5, 0.4, 6), moving=0.2, seed=seed)
        dated += monitor.onset is not None
    assert dated <= 35  # five tests at 2.3 % each, and the best of six is low by chance


def test_worse_validation_with_worse_training_is_divergence_not_overfitting():
    monitor = OverfittingMonitor(patience=None)
    follow(monitor, [0.6, 0.55, 0.9, 1.5], [0.5, 0.4, 0.9, 1.5])
    assert monitor.onset is None and monitor.best_step == 20


def test_pairing_sees_what_an_unpaired_difference_would_not():
    """A rise of a thirtieth of the spread between rows is significant, because each row is compared with itself."""
    monitor = OverfittingMonitor(patience=None)
    follow(monitor, [0.60, 0.62], [0.5, 0.4], moving=0.05)
    assert monitor.onset == 10
    unpaired = np.sqrt(2 * 0.5**2 / ROWS)
    assert 2 * unpaired > 0.02


def test_patience_ends_the_run_and_a_better_evaluation_resets_it():
    monitor = OverfittingMonitor(patience=2)
    assert len(follow(monitor, [0.7, 0.6, 0.7, 0.5, 0.6, 0.65, 0.7], [0.5] * 7)) == 6
    assert monitor.stopped and monitor.best_step == 40 and monitor.worse == 2
    assert not OverfittingMonitor(patience=None).stopped


def test_it_resumes_from_plain_data():
    unbroken, monitor = OverfittingMonitor(patience=3), OverfittingMonitor(patience=3)
    losses, training = [0.7, 0.6, 0.55, 0.6, 0.7], [0.6, 0.5, 0.3, 0.2, 0.1]
    expected = follow(unbroken, losses, training)
    generator, seen = np.random.default_rng(0), []
    for number, (mean, train) in enumerate(zip(losses, training, strict=True), 1):
        monitor = OverfittingMonitor(3, json.loads(json.dumps(monitor.to_dict())))
        seen.append(monitor.update(10 * number, rows(generator, mean, 0.05), np.ones(ROWS), train))
    assert seen == expected and monitor.worse == unbroken.worse == 2


def test_targets_weigh_rows():
    monitor = OverfittingMonitor(patience=None)
    monitor.update(1, np.array([2.0, 30.0]), np.array([1, 10]), None)
    assert monitor.best_loss == pytest.approx(32 / 11)


def started(patience: int | None, mean: float) -> OverfittingMonitor:
    monitor = OverfittingMonitor(patience)
    monitor.begin(rows(np.random.default_rng(99), mean, 0.05), np.ones(ROWS))
    return monitor


def test_nothing_is_the_best_that_is_not_below_the_loss_before_training():
    """And overfitting is not dated from it."""
    monitor = started(patience=None, mean=0.6)
    seen = follow(monitor, [0.65, 0.62, 0.8, 1.2], [0.5, 0.3, 0.2, 0.1])
    assert monitor.best_step is None and monitor.best_loss is None and monitor.onset is None
    assert all(one["overfit/best_step"] == 0 and "overfit/onset_step" not in one for one in seen)
    assert seen[0]["overfit/change"] == seen[0]["overfit/rise"] == pytest.approx(0.05, abs=0.01)
    better = follow(monitor, [0.5, 0.7], [0.1, 0.05])
    assert monitor.best_step == 10 and better[0]["overfit/rise"] == 0 and better[0]["overfit/change"] < 0
    assert better[1]["overfit/change"] > 0  # worse than before training, though there is a best


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(lost):
    for monitor in (started(patience=2, mean=0.7), OverfittingMonitor(patience=2)):
        first = monitor.update(1, np.array([lost] * ROWS), np.ones(ROWS), lost)
        assert monitor.best_step is None and not first["overfit/rise"] <= 0
        monitor.update(2, rows(np.random.default_rng(0), 0.6), np.ones(ROWS), 0.5)
        assert monitor.best_step == 2
        for step in (3, 4):
            monitor.update(step, np.array([lost] * ROWS), np.ones(ROWS), lost)
        assert monitor.best_step == 2 and monitor.onset is None and monitor.stopped


def test_a_loss_before_training_that_is_not_finite_is_ignored():
    monitor = OverfittingMonitor(patience=None)
    monitor.begin(np.full(ROWS, np.nan), np.ones(ROWS))
    monitor.update(5, rows(np.random.default_rng(0), 0.6), np.ones(ROWS), 0.5)
    assert monitor.best_step == 5 and monitor.lowest == monitor.best_loss


def test_a_slow_start_does_not_end_the_run():
    monitor = started(patience=3, mean=0.692)
    follow(monitor, [0.692] * 6, [0.69] * 6)
    assert not monitor.stopped
    saved = json.loads(json.dumps(monitor.to_dict()))
    resumed = OverfittingMonitor(3, saved)
    assert len(follow(resumed, [0.6, 0.5, 0.6, 0.7, 0.8, 0.9], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])) == 5


def test_a_run_that_only_gets_worse_than_the_untrained_model_is_ended():
    seen = follow(started(patience=2, mean=0.5), [0.6, 0.7, 0.8, 0.9], [0.5] * 4)
    assert len(seen) == 2  # the first evaluation is not a best one
