"""Rank correlation with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

_RESAMPLES = 2000
_LEAST = 4  # pairs


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of `count` pairs with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    count: int


def rank_correlation(one: Sequence[float], other: Sequence[float], seed: int = 0) -> RankCorrelation | None:
    """The rank correlation of pairs; None for fewer than four, or where one side does not vary."""
    x, y = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if len(x) < _LEAST or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    generator, values = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        picked = generator.integers(0, len(x), len(x))
        if len(set(x[picked])) > 1 and len(set(y[picked])) > 1:
            values.append(float(spearmanr(x[picked], y[picked]).statistic))
    low, high = np.quantile(values, [0.025, 0.975]) if values else (math.nan, math.nan)
    return RankCorrelation(float(spearmanr(x, y).statistic), float(low), float(high), len(x))
