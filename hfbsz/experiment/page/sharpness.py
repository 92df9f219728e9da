"""Sharpness at the end of the runs of a comparison: its rank correlations with the batch and with the gap."""

import math
from collections.abc import Sequence

from hfbsz.experiment.results import Experiment
from hfbsz.experiment.statistics.trials import MEASURES, Trial
from hfbsz.measure.rank_correlation import RankCorrelation, rank_correlation

_SHARPNESS = ("eigenvalue", "adaptive_sam", "critical_sharpness")
Correlations = dict[str, dict[str, RankCorrelation | None]]  # by heading: with the batch, with the gap


def correlations(experiment: Experiment) -> Correlations:
    """The rank correlations over all runs, by measure; measures of fewer than four runs are left out."""
    trials = [trial for result in experiment.distinct_arms for trial in result.trials]
    found = {MEASURES[name].words: _correlated(trials, name) for name in _SHARPNESS}
    return {name: pair for name, pair in found.items() if any(pair.values())}


def _correlated(trials: Sequence[Trial], name: str) -> dict[str, RankCorrelation | None]:
    known = [(trial, float(value)) for trial in trials if (value := getattr(trial, name)) is not None]
    finite = [(trial, value) for trial, value in known if math.isfinite(value)]
    gaps = [(value, trial.gap) for trial, value in finite if trial.gap is not None and math.isfinite(trial.gap)]
    return {
        "batch": rank_correlation([value for _, value in finite], [float(trial.arm.batch) for trial, _ in finite]),
        "gap": rank_correlation([value for value, _ in gaps], [gap for _, gap in gaps]),
    }
