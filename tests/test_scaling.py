"""Published numbers of the scaling rules, and deliberately wrong variants that must miss them."""

import math

import pytest

from hfbsz.scaling import beta2_half_life, rate_multiplier, weight_decay_at


def test_rules():
    assert [rate_multiplier(rule, 4) for rule in ("none", "linear", "sqrt")] == [1, 4, 2]
    assert all(rate_multiplier(rule, 1) == 1 for rule in ("none", "linear", "sqrt"))


def test_goyal_linear():
    """Goyal et al. 2017: 0.1 at 256 becomes 3.2 at 8,192."""
    assert 0.1 * rate_multiplier("linear", 8192 / 256) == pytest.approx(3.2)
    assert 0.1 * rate_multiplier("sqrt", 8192 / 256) != pytest.approx(3.2, rel=0.5)


def test_beta2_half_life():
    """Marek et al. 2025: β2 = 0.95 at 512 is 0.9999 at 1; the half-life at B = 512, T = 1,024 is 7.08 M tokens."""
    scaled, clamped = beta2_half_life(0.95, 1 / 512, 0.9)
    assert scaled == pytest.approx(0.99990, abs=5e-6) and not clamped
    lives = [batch * 1024 * math.log(0.5) / math.log(beta2) for batch, beta2 in ((512, 0.95), (1, scaled))]
    assert lives == pytest.approx([7.08e6, 7.08e6], rel=1e-3)
    linear = 1 - (1 - 0.95) / 512  # a wrong variant: 1−β2 in proportion
    assert math.log(0.5) / math.log(linear) * 1024 != pytest.approx(7.08e6, rel=0.01)


def test_beta2_is_held_above_beta1_squared():
    scaled, clamped = beta2_half_life(0.95, 8, 0.9)
    assert 0.95**8 < 0.9**2  # what would break Adam
    assert clamped and scaled == pytest.approx(max(0.9, 1.05 * 0.81))
    assert beta2_half_life(0.999, 4, 0.97)[0] > 0.97**2


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt"])
def test_weight_decay_keeps_the_timescale(rule):
    """τ = B/(ηλ) stays: Wang & Aitchison 2024."""
    for ratio in (0.25, 1, 3, 64):
        multiplier = rate_multiplier(rule, ratio)
        rate, decay = 3e-3 * multiplier, weight_decay_at(0.1, ratio, multiplier)
        assert ratio / (rate * decay) == pytest.approx(1 / (3e-3 * 0.1))
