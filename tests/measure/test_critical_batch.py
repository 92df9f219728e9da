"""The fit S = a + b ÷ B against published tables and planted numbers."""

import math

import numpy as np
import pytest

from hfbsz.errors import UserError
from hfbsz.measure.critical_batch import fit

ZHANG = [64 * 2**power for power in range(9)]  # sequences of 512 tokens (Zhang et al. 2024, arXiv 2410.21676)


@pytest.mark.parametrize(
    ("steps", "overhead"),
    [
        ([46000, 23000, 13282, 7000, 3840, 2528, 1917, 1600, 1600], 745.3),  # 85M parameters
        ([96000, 49000, 24000, 12000, 7128, 4350, 2940, 2400, 2300], 955.2),  # 151M
        ([311000, 166000, 81000, 37440, 21320, 11400, 7199, 4700, 3800], 1888.5),  # 604M
    ],
)
def test_published_tables(steps, overhead):
    result = fit(ZHANG, steps)
    assert result.overhead(256).value == pytest.approx(overhead, rel=1e-3)
    assert result.balance.value > 2 * overhead and result.is_bounded


def test_planted_numbers_are_recovered_within_the_band():
    """a = 1,000 steps, b = 64,000 sequences, log-normal noise of 5 %: 95 % intervals hold in about 95 % of cases."""
    batches = [2.0 * 2**power for power in range(9)]
    held = {"balance": 0, "steps": 0, "overhead": 0}
    for seed in range(300):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.05, len(batches)))
        result = fit(batches, (1000 + 64_000 / np.array(batches)) * noise)
        for name, interval, truth in (
            ("balance", result.balance, 64),
            ("steps", result.band_at(32), 3000),
            ("overhead", result.overhead(2), 64 / 5 + 2.4),
        ):
            held[name] += interval.low <= truth <= interval.high
    assert all(0.91 <= count / 300 <= 0.99 for count in held.values()), held


def test_the_definitions_hold_at_the_fitted_batches():
    result = fit(ZHANG, [10_000 + 5_000_000 / batch for batch in ZHANG])
    assert result.least_steps == pytest.approx(10_000) and result.least_sequences == pytest.approx(5_000_000)
    balance = result.balance.value
    assert result.steps_at(balance) == pytest.approx(2 * result.least_steps)
    assert result.steps_at(balance) * balance == pytest.approx(2 * result.least_sequences)
    overhead = result.overhead(256).value
    assert result.steps_at(overhead) * overhead == pytest.approx(1.2 * result.steps_at(256) * 256)
    assert result.slope_at(balance) == pytest.approx(-0.5)
    near = [result.steps_at(batch) for batch in (499.0, 501.0)]
    assert result.slope_at(500.0) == pytest.approx(math.log(near[1] / near[0]) / math.log(501 / 499), rel=1e-4)


def test_perfect_scaling_has_no_critical_batch_and_a_flat_curve_no_lower_bound():
    batches = np.array([2.0 * 2**power for power in range(7)])
    unbounded = flat = 0
    for seed in range(100):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.03, len(batches)))
        unbounded += not fit(batches, 64_000 / batches * noise).is_bounded
        flat += fit(batches, 1000 * noise).balance.low == 0
    assert unbounded >= 95 and flat >= 95


def test_three_points_are_enough_and_exact_ones_have_no_error():
    result = fit([4, 32, 256], [10 + 640 / batch for batch in (4, 32, 256)])
    assert result.balance.value == pytest.approx(64, rel=1e-5)
    assert result.balance.low == pytest.approx(64, rel=1e-3) and result.balance.high == pytest.approx(64, rel=1e-3)


@pytest.mark.parametrize(
    ("batches", "steps"),
    [([8, 16], [10, 5]), ([8, 8, 8], [10, 9, 10]), ([8, 16, 32], [10, 5, 0]), ([8, 16, 32], [10, 5]),
     ([8, 16, 32], [10, math.nan, 3])],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(batches, steps):
    with pytest.raises(UserError, match="critical batch"):
        fit(batches, steps)
