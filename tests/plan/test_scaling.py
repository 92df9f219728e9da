"""Published numbers of the scaling rules, and deliberately wrong variants that must miss them."""

import math

import pytest

from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.plan.scaling import RateRule, beta2_half_life, sde, weight_decay_at
from hfbsz.recipe.load import load


def rate_multiplier(rule, ratio, exponent=1.0, noise=1.0):
    return RateRule(rule, exponent, noise).multiplier(ratio)


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


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt", "power", "sde", "noise", "surge"])
def test_weight_decay_keeps_the_timescale(rule):
    """τ = B/(ηλ) stays: Wang & Aitchison 2024."""
    for ratio in (0.25, 1, 3, 64):
        multiplier = rate_multiplier(rule, ratio, exponent=0.31, noise=5)
        rate, decay = 3e-3 * multiplier, weight_decay_at(0.1, ratio, multiplier)
        assert ratio / (rate * decay) == pytest.approx(1 / (3e-3 * 0.1))


def test_power():
    assert rate_multiplier("power", 16, exponent=0.31) == pytest.approx(16**0.31)
    assert rate_multiplier("power", 16, exponent=0.5) == pytest.approx(rate_multiplier("sqrt", 16))


def test_noise():
    """McCandlish et al. 2018: ε_opt(B) = ε_max/(1+B_noise/B); half of ε_max at B = B_noise; α = ½ takes the root."""
    noise, top = 1000, 1e9  # B_n at 1,000 times the reference
    highest = rate_multiplier("noise", top, exponent=1, noise=noise)
    assert rate_multiplier("noise", noise, exponent=1, noise=noise) / highest == pytest.approx(0.5, rel=1e-6)
    assert rate_multiplier("noise", 4, exponent=1, noise=noise) == pytest.approx(4, rel=0.01)  # far below: linear
    assert rate_multiplier("noise", 4, exponent=0.5, noise=noise) == pytest.approx(2, rel=0.01)  # and √κ for α = ½
    assert rate_multiplier("noise", 64, exponent=0.5, noise=1e-6) == pytest.approx(1, rel=1e-5)  # far above: flat


def test_surge():
    """Li et al. 2024: the rate peaks at B_n, and is 0.8 of the peak at B_n/4 and at 4·B_n."""
    noise = 32
    rates = {batch: rate_multiplier("surge", batch, noise=noise) for batch in (8, 16, 31, 32, 33, 64, 128)}
    assert max(rates, key=rates.get) == 32
    assert [rates[batch] / rates[32] for batch in (8, 128)] == pytest.approx([0.8, 0.8])
    assert rates[128] / rates[32] != pytest.approx(2)  # what √κ would say


def test_sde():
    """Malladi et al. 2022: κ and then 1/κ give back the start; √κ, κ(1−β), ε/√κ; refused where κ(1−β) reaches 1."""
    betas, eps = sde((0.9, 0.99), 1e-8, 4)
    assert betas == pytest.approx((0.6, 0.96)) and eps == pytest.approx(5e-9) and rate_multiplier("sde", 4) == 2
    back, first = sde(betas, eps, 1 / 4)
    assert back == pytest.approx((0.9, 0.99)) and first == pytest.approx(1e-8)
    assert rate_multiplier("sde", 4) * rate_multiplier("sde", 1 / 4) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"not below 1 for β = 0\.9 at"):
        sde((0.9, 0.99), 1e-8, 10)


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt", "power", "sde", "noise", "surge"])
def test_every_rule_is_1_at_the_reference(rule):
    assert rate_multiplier(rule, 1, exponent=0.31, noise=7) == pytest.approx(1)


def test_a_plan_far_below_the_reference_says_why_the_rate_is_uncertain():
    def warned(*words):
        given = load(["recipe=debug", "batch.start=null", "batch.ramp=null", "scaling.reference=64seq", *words]).recipe
        return [line for line in resolve(given, 1, Facts(rows=10_000)).warnings if "so far below the reference" in line]

    assert "0.56 with β2 kept and of 0.11 with scaling.beta2=half_life" in warned("batch.size=1seq")[0]
    assert not warned("batch.size=8seq") and not warned("batch.size=1seq", "scaling.rule=power")
    assert not warned("batch.size=1seq", "optim.name=sgd")
