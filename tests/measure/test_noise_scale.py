"""The noise scale against Gaussian gradients whose scale is known (formulas: McCandlish et al. 2018)."""

import math

import numpy as np
import pytest

from hfbsz.measure.noise_scale import Measurement, NoiseScale

SIZE, NOISE = 500, 100.0  # |G|² = 1 and tr Σ = 100: a noise scale of 100 sequences


def measured(draw, small, large, noise=NOISE):
    """The squared norms of one step: all small batches of a large one."""
    mean = np.zeros(SIZE)
    mean[0] = 1.0
    batches = mean + draw.normal(0, math.sqrt(noise / SIZE / small), (large // small, SIZE))
    return Measurement(float((batches**2).sum(1).mean()), float((batches.mean(0) ** 2).sum()), 1 / small, 1 / large)


@pytest.mark.parametrize(("small", "large", "within"), [(1, 64, 0.05), (8, 64, 0.05), (1, 16, 0.15)])
def test_the_scale_of_gaussian_gradients(small, large, within):
    draw, scale = np.random.default_rng(0), NoiseScale()
    for _ in range(200):
        scale.add(measured(draw, small, large))
    assert scale.scale == pytest.approx(100, rel=within)
    assert scale.noise == pytest.approx(100, rel=within)
    assert scale.signal == pytest.approx(1, rel=within + 0.05)


def test_the_mean_of_ratios_is_biased():
    draw = np.random.default_rng(0)
    steps = [measured(draw, 1, 16) for _ in range(2000)]
    scale = NoiseScale()
    for step in steps:
        scale.add(step)
    ratios = [step.noise / step.signal for step in steps]
    assert scale.scale == pytest.approx(100, rel=0.05)
    assert abs(np.mean(ratios) - 100) > 15


def test_small_batches_of_different_sizes():
    """Micro-batches of 2 and 6 sequences: the mean of 1 ÷ sequences stands for the small batch."""
    draw, scale = np.random.default_rng(1), NoiseScale()
    mean = np.zeros(SIZE)
    mean[0] = 1.0
    sizes = np.array([2, 6] * 8)
    for _ in range(400):
        batches = mean + draw.normal(0, 1, (len(sizes), SIZE)) * np.sqrt(NOISE / SIZE / sizes)[:, None]
        large = (batches * (sizes / sizes.sum())[:, None]).sum(0)
        small = float((batches**2).sum(1).mean())
        scale.add(Measurement(small, float((large**2).sum()), float((1 / sizes).mean()), 1 / sizes.sum()))
    assert scale.scale == pytest.approx(100, rel=0.05)


def test_the_standard_error_covers_the_true_scale():
    inside = 0
    for seed in range(200):
        draw, scale = np.random.default_rng(seed), NoiseScale(memory=40)
        for _ in range(120):
            scale.add(measured(draw, 4, 64))
        inside += abs(scale.scale - 100) < 1.96 * scale.error
    assert 0.90 <= inside / 200 <= 0.99


def test_it_follows_a_scale_that_grows():
    draw, scale = np.random.default_rng(0), NoiseScale(memory=20)
    for step in range(400):
        scale.add(measured(draw, 4, 64, NOISE if step < 200 else 4 * NOISE))
    assert scale.scale == pytest.approx(400, rel=0.15)
    assert scale.count == pytest.approx(39, rel=0.02)


def test_a_state_continues():
    draw = np.random.default_rng(0)
    whole, part = NoiseScale(memory=20), NoiseScale(memory=20)
    steps = [measured(draw, 4, 64) for _ in range(50)]
    for step in steps[:20]:
        part.add(step)
    part = NoiseScale(memory=20, saved=part.to_dict())
    for step in steps[20:]:
        part.add(step)
    for step in steps:
        whole.add(step)
    assert (part.scale, part.error) == (whole.scale, whole.error)


def test_what_determines_no_scale():
    scale = NoiseScale()
    assert (scale.scale, scale.error, scale.noise) == (None, None, None)
    scale.add(Measurement(math.nan, 1.0, 1.0, 0.1))
    scale.add(Measurement(1.0, 1.0, 0.5, 0.5))
    assert scale.count == 0
    scale.add(Measurement(1.0, 0.05, 1.0, 0.1))  # noise above 1, signal below 0
    assert scale.scale is None and scale.noise > 1 and scale.signal < 0
