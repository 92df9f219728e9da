"""Main effects and interaction of a 2 × 2."""

import numpy as np
import pytest

from hfbsz.experiment.statistics.factorial import effects
from hfbsz.experiment.statistics.trials import Arm, Trial

BATCHES, VARIANTS = (8, 64), ("pretrained at 8", "pretrained at 64")


def trials(batch: float, variant: float, interaction: float, seeds: int = 4, noise: float = 0.002) -> list[Trial]:
    rng = np.random.default_rng(0)
    simulated = []
    for seed in range(seeds):
        shared = rng.normal(3, 0.1)
        for row, name in enumerate(VARIANTS):
            for column, size in enumerate(BATCHES):
                loss = shared + batch * column + variant * row + interaction * row * column + rng.normal(0, noise)
                simulated.append(Trial(Arm(size, 1e-3, 8, variant=name), seed, final_loss=loss))
    return simulated


def test_true_effects_are_detected_and_others_are_not():
    batch, variant, interaction = effects(trials(batch=0.1, variant=0.0, interaction=0.0))
    assert batch.contrast.mean == pytest.approx(0.1, abs=0.004) and batch.p_holm < 0.01
    assert batch.words.startswith("batch 64 − 8 sequences")
    assert variant.p_holm > 0.05 and interaction.p_holm > 0.05


def test_an_interaction_is_the_difference_of_differences():
    batch, variant, interaction = effects(trials(batch=0.1, variant=-0.05, interaction=0.08))
    assert interaction.contrast.mean == pytest.approx(0.08, abs=0.008)
    assert batch.contrast.mean == pytest.approx(0.14, abs=0.004)
    assert variant.contrast.mean == pytest.approx(-0.01, abs=0.004)


def test_two_seeds_are_shown_and_not_tested():
    assert all(np.isnan(effect.p_holm) and effect.contrast.n == 2 for effect in effects(trials(0.1, 0, 0, seeds=2)))


def test_other_arms_than_two_by_two_have_no_effects():
    every = trials(0.1, 0.1, 0.0)
    assert effects([trial for trial in every if trial.arm.variant == VARIANTS[0]]) == []
    assert effects([trial for trial in every if (trial.arm.batch, trial.arm.variant) != (64, VARIANTS[0])]) == []
