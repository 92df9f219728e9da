"""What the critical learning rates of a run say about its learning rate."""

import pytest

from hfbsz.records.run_data import RunData
from hfbsz.records.sharpness import RATIO, sharpness_of


def run_with(tmp_path, ratios):
    """A run whose ratio of rates was measured at equal distances."""
    records = [{"event": "step", "train/sequences": 10 * (i + 1), RATIO: ratio} for i, ratio in enumerate(ratios)]
    return RunData(tmp_path, tuple(records), {}, {}, "")


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.02, "far below 1"), (0.4, "below 1: steps lowered"), (1.3, "above 1: most steps")]
)
def test_the_verdict_is_that_of_the_median(tmp_path, ratio, verdict):
    found = sharpness_of(run_with(tmp_path, [9.0, ratio / 2, ratio, ratio * 2, ratio, ratio]))
    assert found.median == ratio and found.verdict.startswith(verdict)
    assert found.spread == f"median, {ratio / 2:.2g} to {ratio * 2:.2g} in 5 measurements"  # warmup is left out


def test_no_measurement_says_nothing(tmp_path):
    assert sharpness_of(run_with(tmp_path, [])) is None
    assert sharpness_of(RunData(tmp_path, ({"event": "step", "train/sequences": 5},), {}, {}, "")) is None
