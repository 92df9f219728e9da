"""Overfitting is seen where it is, dated at the best evaluation, and not seen where there is only noise."""

import json

import numpy as np
import pytest

from hfbsz.measure.overfit import Watch

ROWS = 256


def rows(generator, mean, moving=0.0):
    """Losses of the same rows: what each row costs by itself, plus the moment's mean and a little that moves."""
    own = np.random.default_rng(7).normal(0, 0.5, ROWS)
    return own + mean + generator.normal(0, moving, ROWS)


def follow(watch, validation, training, moving=0.05, seed=0):
    generator, seen = np.random.default_rng(seed), []
    for number, (mean, train) in enumerate(zip(validation, training, strict=True), 1):
        seen.append(watch.see(10 * number, rows(generator, mean, moving), np.ones(ROWS), train))
        if watch.stopped:
            break
    return seen


def test_an_overfit_is_dated_at_its_best():
    watch = Watch(patience=None)
    seen = follow(watch, [0.7, 0.6, 0.55, 0.6, 0.7, 0.9], [0.69, 0.5, 0.3, 0.2, 0.1, 0.05])
    assert watch.best_step == 30 and watch.onset == 30
    assert "overfit/onset_step" not in seen[2] and seen[3]["overfit/onset_step"] == 30
    assert seen[5]["overfit/gap"] == pytest.approx(0.85, abs=0.1)
    assert seen[5]["overfit/rise"] == pytest.approx(0.35, abs=0.02) and seen[2]["overfit/rise"] == 0


def test_noise_is_no_overfit():
    """Validation stays, and moves by less than its paired standard error lets one be sure of, in nearly all runs."""
    dated = 0
    for seed in range(100):
        watch = Watch(patience=None)
        follow(watch, [0.55] * 6, np.linspace(0.5, 0.4, 6), moving=0.2, seed=seed)
        dated += watch.onset is not None
    assert dated <= 35  # five looks at 2.3 % each, and the best of six is a lucky one


def test_worse_validation_with_worse_training_is_divergence_not_overfitting():
    watch = Watch(patience=None)
    follow(watch, [0.6, 0.55, 0.9, 1.5], [0.5, 0.4, 0.9, 1.5])
    assert watch.onset is None and watch.best_step == 20


def test_pairing_sees_what_an_unpaired_difference_would_not():
    """A rise of a thirtieth of the rows' spread: sure, because each row is compared with itself."""
    watch = Watch(patience=None)
    follow(watch, [0.60, 0.62], [0.5, 0.4], moving=0.05)
    assert watch.onset == 10
    unpaired = np.sqrt(2 * 0.5**2 / ROWS)
    assert 2 * unpaired > 0.02


def test_patience_ends_the_run_and_a_better_one_starts_it_anew():
    watch = Watch(patience=2)
    assert len(follow(watch, [0.7, 0.6, 0.7, 0.5, 0.6, 0.65, 0.7], [0.5] * 7)) == 6
    assert watch.stopped and watch.best_step == 40 and watch.worse == 2
    assert not Watch(patience=None).stopped


def test_it_goes_on_from_plain_data():
    whole, first = Watch(patience=3), Watch(patience=3)
    losses, training = [0.7, 0.6, 0.55, 0.6, 0.7], [0.6, 0.5, 0.3, 0.2, 0.1]
    expected = follow(whole, losses, training)
    generator, seen = np.random.default_rng(0), []
    watch = first
    for number, (mean, train) in enumerate(zip(losses, training, strict=True), 1):
        watch = Watch(3, json.loads(json.dumps(watch.to_dict())))
        seen.append(watch.see(10 * number, rows(generator, mean, 0.05), np.ones(ROWS), train))
    assert seen == expected and watch.worse == whole.worse == 2


def test_targets_weigh_rows():
    watch = Watch(patience=None)
    watch.see(1, np.array([2.0, 30.0]), np.array([1, 10]), None)
    assert watch.best_loss == pytest.approx(32 / 11)


def begun(patience: int | None, mean: float) -> Watch:
    watch = Watch(patience)
    watch.begin(rows(np.random.default_rng(99), mean, 0.05), np.ones(ROWS))
    return watch


def test_nothing_is_the_best_that_is_not_below_the_loss_before_training():
    """And neither overfitting nor a rise is dated from it."""
    watch = begun(patience=None, mean=0.6)
    seen = follow(watch, [0.65, 0.62, 0.8, 1.2], [0.5, 0.3, 0.2, 0.1])
    assert watch.best_step is None and watch.best_loss is None and watch.onset is None
    assert all(one["overfit/best_step"] == 0 and "overfit/onset_step" not in one for one in seen)
    assert seen[0]["overfit/change"] == seen[0]["overfit/rise"] == pytest.approx(0.05, abs=0.01)
    better = follow(watch, [0.5, 0.7], [0.1, 0.05])
    assert watch.best_step == 10 and better[0]["overfit/rise"] == 0 and better[0]["overfit/change"] < 0
    assert better[1]["overfit/change"] > 0  # worse than before training, though there is a best


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(lost):
    for watch in (begun(patience=2, mean=0.7), Watch(patience=2)):
        first = watch.see(1, np.array([lost] * ROWS), np.ones(ROWS), lost)
        assert watch.best_step is None and not first["overfit/rise"] <= 0
        watch.see(2, rows(np.random.default_rng(0), 0.6), np.ones(ROWS), 0.5)
        assert watch.best_step == 2
        for step in (3, 4):
            watch.see(step, np.array([lost] * ROWS), np.ones(ROWS), lost)
        assert watch.best_step == 2 and watch.onset is None and watch.stopped


def test_broken_weights_before_training_are_no_bar():
    watch = Watch(patience=None)
    watch.begin(np.full(ROWS, np.nan), np.ones(ROWS))
    watch.see(5, rows(np.random.default_rng(0), 0.6), np.ones(ROWS), 0.5)
    assert watch.best_step == 5 and watch.lowest == watch.best_loss


def test_a_slow_start_is_not_taken_for_the_end():
    watch = begun(patience=3, mean=0.692)
    follow(watch, [0.692] * 6, [0.69] * 6)
    assert not watch.stopped
    saved = json.loads(json.dumps(watch.to_dict()))
    assert len(follow(Watch(3, saved), [0.6, 0.5, 0.6, 0.7, 0.8, 0.9], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])) == 5


def test_a_run_that_only_gets_worse_than_the_untrained_model_is_ended():
    assert len(follow(begun(patience=2, mean=0.5), [0.6, 0.7, 0.8, 0.9], [0.5] * 4)) == 2  # no first one is a best
