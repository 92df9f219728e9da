"""Main effects and interaction of a 2 × 2."""

import numpy as np
import pytest

from hfbsz.experiment.statistics.factorial import effects
from hfbsz.experiment.statistics.trials import Arm, Trial

BATCHES, VARIANTS = (8, 64), ("pretrained at 8", "pretrained at 64")


def trials(batch: float, variant: float, both: float, seeds: int = 4, noise: float = 0.002) -> list[Trial]:
    chance = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        shared = chance.normal(3, 0.1)
        for row, name in enumerate(VARIANTS):
            for column, size in enumerate(BATCHES):
                loss = shared + batch * column + variant * row + both * row * column + chance.normal(0, noise)
                found.append(Trial(Arm(size, 1e-3, 8, variant=name), seed, final_loss=loss))
    return found


def test_planted_effects_are_found_and_others_are_not():
    of_batch, of_variant, both = effects(trials(batch=0.1, variant=0.0, both=0.0))
    assert of_batch.contrast.mean == pytest.approx(0.1, abs=0.004) and of_batch.p_holm < 0.01
    assert of_batch.words.startswith("batch 64 − 8 sequences")
    assert of_variant.p_holm > 0.05 and both.p_holm > 0.05


def test_an_interaction_is_the_difference_of_differences():
    of_batch, of_variant, both = effects(trials(batch=0.1, variant=-0.05, both=0.08))
    assert both.contrast.mean == pytest.approx(0.08, abs=0.008)
    assert of_batch.contrast.mean == pytest.approx(0.14, abs=0.004)
    assert of_variant.contrast.mean == pytest.approx(-0.01, abs=0.004)


def test_two_seeds_are_shown_and_not_tested():
    assert all(np.isnan(one.p_holm) and one.contrast.n == 2 for one in effects(trials(0.1, 0, 0, seeds=2)))


def test_other_arms_than_two_by_two_have_no_effects():
    every = trials(0.1, 0.1, 0.0)
    assert effects([one for one in every if one.arm.variant == VARIANTS[0]]) == []
    assert effects([one for one in every if (one.arm.batch, one.arm.variant) != (64, VARIANTS[0])]) == []
