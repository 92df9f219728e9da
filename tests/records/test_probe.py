"""The knee, the wall and the price of accumulation of trials."""

import math

import numpy as np
import pytest

from hfbsz.records.probe import (
    Probe,
    Trial,
    bytes_per_row,
    common_pace,
    has_certain_knee,
    predicted_bytes,
    probe_from_dict,
)


def probe(speeds, peaks, limit=10_000, error=0.0, **given):
    """A probe of micro-batches 1, 2, 4, … with these rows per second and peaks."""
    trials = tuple(
        Trial(2**power, 2**power / speed, error, peak)
        for power, (speed, peak) in enumerate(zip(speeds, peaks, strict=True))
    )
    return Probe({"device": "cpu"}, 128.0, trials, 0.5, None, limit, "the limit given", **given)


def test_the_knee_is_the_smallest_micro_batch_within_5_percent_of_the_best():
    assert probe([10, 19, 30, 31, 29], [1, 2, 3, 4, 5]).knee == 4
    assert probe([10, 19, 29, 31, 29], [1, 2, 3, 4, 5]).knee == 8
    assert probe([10], [1]).knee == 1


def test_a_micro_batch_at_the_bound_counts_only_beyond_its_error():
    assert probe([10, 19, 30, 31, 29], [1, 2, 3, 4, 5], error=0.008).knee == 4  # 30 is 0.968 of the best
    assert probe([10, 19, 30, 31, 29], [1, 2, 3, 4, 5], error=0.012).knee == 8


def test_a_knee_is_certain_if_errors_leave_no_other():
    speeds, peaks = [10, 19, 30, 31, 29], [1, 2, 3, 4, 5]
    assert has_certain_knee(probe(speeds, peaks, error=0.008).trials)
    assert not has_certain_knee(probe(speeds, peaks, error=0.012).trials)
    assert has_certain_knee(probe([10, 19, 29, 31, 29], peaks, error=0.005).trials)  # 29 is 0.935 of the best
    assert not has_certain_knee(probe([10, 19, 29, 31, 29], peaks, error=0.01).trials)


def test_what_slows_whole_rounds_down_does_not_count():
    """Three trials at a fifth, a half and the whole of a second, in rounds at different speeds, with noise of 2 %."""
    generator = np.random.default_rng(0)
    pace = [1, 1, 1.4, 1.4, 1.4, 1.05, 1.3, 1, 1.2]
    true = np.array([0.2, 0.5, 1.0])
    rounds = [speed * true * generator.lognormal(0, 0.02, 3) for speed in pace]
    rounds[4][1] *= 3  # one block disturbed
    (a, error), (b, _), (c, _) = common_pace(rounds)
    assert b / a == pytest.approx(2.5, rel=0.03) and c / a == pytest.approx(5, rel=0.03)
    assert a == pytest.approx(0.2, rel=0.1) and 0.002 < error < 0.03
    assert common_pace([[1.0, 2.0]] * 3) == [(pytest.approx(1), 0), (pytest.approx(2), 0)]


def test_the_wall_is_where_the_line_meets_the_limit():
    line = probe([1, 2, 3, 4], [1010, 1020, 1040, 1080])
    assert bytes_per_row(line.trials) == 10 and predicted_bytes(line.trials, 100) == 1000 + 10 * 100
    assert line.wall == 900
    assert probe([1, 2], [1010, 1020], limit=1000).wall == 0
    assert probe([1, 2, 3], [1010, 1020, 1040], failed=8).wall == 7


def test_a_prediction_ignores_a_flat_end():
    noisy = probe([1, 2, 3], [1000, 1100, 1110]).trials  # 100 bytes a row, then 5
    assert predicted_bytes(noisy, 8) == 1110 + 4 * 100


def test_the_wall_of_an_h200_is_predicted_within_5_percent():
    # GPT-2 124M of 1,024 tokens in bf16 on an H200 with 34.95 GiB allowed: 40 rows were the most that fit
    peaks = {1: 3.47, 2: 4.59, 4: 6.87, 8: 10.24, 16: 16.22}
    predicted = probe([*peaks], [round(peak * 2**30) for peak in peaks.values()], limit=round(34.95 * 2**30)).wall
    assert abs(predicted / 40 - 1) <= 0.05


def test_memory_that_does_not_grow_has_no_wall():
    flat = probe([1, 2], [1000, 1000])
    assert math.isinf(flat.wall) and flat.to_dict()["wall"] is None
    assert math.isinf(probe([1], [1000]).wall)


def test_the_price_of_accumulation_is_that_of_the_smallest_micro_batch():
    one = probe([10, 20, 40], [1, 2, 3])
    assert one.seconds_per_step(one.trials[0], 8) == 8 / 10 + 0.5
    assert one.accumulation_price(8) == pytest.approx((8 / 10 + 0.5) / (8 / 40 + 0.5))
    assert one.accumulation_price(2) == pytest.approx((2 / 10 + 0.5) / (2 / 20 + 0.5))
    assert one.accumulation_price(1) is None


def test_the_share_of_communication_falls_with_accumulation():
    one = Probe({}, 1.0, (Trial(4, 0.2, 0.0, 1),), 0.1, 0.1, 10, "")
    assert one.sync_share(1) == pytest.approx(0.25)
    assert one.sync_share(4) == pytest.approx(0.1)


def test_a_probe_survives_json():
    import json

    one = probe([10, 20], [1000, 1100], failed=4)
    assert probe_from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize("damage", [{}, {"trials": []}, {"trials": [{"micro_batch": 1}]}, {"trials": 3}])
def test_other_data_are_refused(damage):
    whole = probe([10, 20], [1000, 1100]).to_dict()
    with pytest.raises((KeyError, TypeError, ValueError)):
        probe_from_dict({**whole, **damage} if damage else {})
