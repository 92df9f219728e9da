"""The model of the loss recovers what was planted, and predicts runs that it has not seen."""

import numpy as np
import pytest

from hfbsz.advice.critical import OVER_THE_RUN
from hfbsz.advice.progress import Progress, effective, fit, slope_of

SCHEDULES = [[(1000.0, 8)], [(1000.0, 32)], [(1000.0, 128)], [(300.0, 8), (700.0, 32)], [(800.0, 8), (200.0, 64)]]


def test_small_batches_count_in_full_and_large_ones_in_part():
    assert effective([(1000.0, 1)], 1e9, 1000) == pytest.approx(1000, rel=1e-4)
    # a critical batch that grows in proportion: ∫ x ÷ (x + u) dx = 1 − u·log((1 + u) ÷ u), here with u = ½
    assert effective([(1000.0, 50)], 100, 1000) == pytest.approx(1000 * (1 - 0.5 * np.log(3)), rel=1e-3)
    early, late = [(200.0, 64), (800.0, 8)], [(800.0, 8), (200.0, 64)]
    assert effective(late, 100, 1000) > effective(early, 100, 1000)


def test_over_the_run_half_of_the_sequences_count_at_the_mean_critical_batch():
    assert effective([(1000.0, 40)], 40 / OVER_THE_RUN, 1000) == pytest.approx(500, rel=5e-3)


def curve_of(model, stages):
    """The validation curve of a run at one batch, by a model."""
    ((amount, batch),) = stages
    clocks = [amount * part / 10 for part in range(1, 11)]
    return [(clock, model.loss([(clock, batch)])) for clock in clocks]


def planted(noise=lambda: 0.0):
    true = Progress(100.0, 1000, 0.8, 9.0)
    runs = [(stages, true.loss(stages) + noise()) for stages in SCHEDULES]
    return fit(runs, SCHEDULES[0], curve_of(true, SCHEDULES[0]), 1000)


def test_a_planted_critical_batch_is_found_through_noise():
    generator = np.random.default_rng(0)
    found = [planted(lambda: generator.normal(0, 0.01)) for _ in range(40)]
    assert np.median([model.critical for model in found]) == pytest.approx(100, rel=0.15)
    assert np.median([model.error for model in found]) < 0.05
    exact = planted()
    assert exact.critical == pytest.approx(100, rel=0.05) and exact.slope == pytest.approx(0.8, rel=0.02)
    assert exact.low <= exact.critical <= exact.high and exact.error < 0.01


def test_too_little_gives_no_model():
    true = Progress(100.0, 1000, 0.8, 9.0)
    curve = curve_of(true, SCHEDULES[0])
    assert fit([(stages, true.loss(stages)) for stages in SCHEDULES[:2]], SCHEDULES[0], curve, 1000) is None
    assert fit([(stages, 5.0) for stages in SCHEDULES], SCHEDULES[0], curve, 1000) is None  # no bound
    assert slope_of([(200.0, 8)], [(100, 5.0), (200, 4.0)]) is None
    assert slope_of([(1000.0, 8)], [(clock, 3.0 + clock / 1000) for clock in range(100, 1000, 100)]) is None
    falls = [(clock, 9 - 0.8 * np.log(clock)) for clock in range(50, 1000, 50)]
    assert slope_of([(1000.0, 8)], falls) == pytest.approx(0.8)
