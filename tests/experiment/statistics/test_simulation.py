"""The stated error rates, measured on simulated runs; wrong decision rules must violate them."""

import numpy as np
import pytest
from scipy import stats

from hfbsz.experiment.statistics.evidence import Verdict
from hfbsz.experiment.statistics.paired import ALPHA, contrast, equivalence, holm
from hfbsz.experiment.statistics.simulation import Design, rates, verdicts

EXPERIMENTS = 100


def most(rate):
    """The largest plausible measured rate: exceeded once in a thousand repetitions."""
    return stats.binom.ppf(0.999, EXPERIMENTS, rate) / EXPERIMENTS


def least(rate):
    """The smallest plausible measured rate."""
    return stats.binom.ppf(0.001, EXPERIMENTS, rate) / EXPERIMENTS


DESIGNS = [Design(), Design(seeds=3, comparisons=1, effect=0.1), Design(seeds=8, effect=0.05)]


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_the_planted_effect_is_found_and_the_null_is_not(design):
    assert design.stated_power >= 0.8
    measured = rates(design, experiments=EXPERIMENTS)
    assert measured.power >= least(design.stated_power)
    assert measured.false_positives <= most(ALPHA)


def unpaired(pairs):
    return [p < ALPHA for p in holm([stats.ttest_ind(*pair, equal_var=False).pvalue for pair in pairs])]


def uncorrected(pairs):
    return [contrast(left - right).p < ALPHA for left, right in pairs]


def larger_mean(pairs):
    return [left.mean() != right.mean() for left, right in pairs]


def normal_quantiles(pairs):
    """z for t."""
    p_values = [2 * stats.norm.sf(abs((d := x - y).mean()) / d.std(ddof=1) * np.sqrt(len(d))) for x, y in pairs]
    return [p < ALPHA for p in holm(p_values)]


def test_without_pairing_the_effect_is_lost_in_the_spread_of_seeds():
    assert rates(Design(), unpaired, EXPERIMENTS).power < least(Design().stated_power)


@pytest.mark.parametrize("wrong", [uncorrected, normal_quantiles])
def test_wrong_tests_find_what_is_not_there(wrong):
    assert rates(Design(), wrong, EXPERIMENTS).false_positives > most(ALPHA)


def test_verdicts_from_one_seed_are_worth_nothing():
    one = Design(seeds=1)
    assert rates(one, larger_mean, EXPERIMENTS).false_positives == 1
    assert rates(one).power == rates(one).false_positives == 0


def equivalent(pairs):
    return [p < ALPHA for p in holm([equivalence(left - right, 0.02) for left, right in pairs])]


def absence_of_evidence(pairs):
    return [contrast(left - right).p > ALPHA for left, right in pairs]


@pytest.mark.parametrize("seeds", [5, 40])
def test_an_effect_of_interest_is_not_called_none(seeds):
    """The true effect is the smallest of interest; `power` counts families in which it was declared equivalent to 0."""
    design = Design(seeds=seeds, effect=0.02)
    assert rates(design, equivalent, EXPERIMENTS).power <= most(ALPHA)
    if seeds == 5:
        assert rates(design, absence_of_evidence, EXPERIMENTS).power > most(ALPHA)


def test_every_belief_is_supported_where_it_holds():
    counts = verdicts(Design(), True, EXPERIMENTS)
    assert all(count[Verdict.SUPPORTED] >= 100 * least(0.8) for name, count in counts.items() if name != "any")
    assert all(count[Verdict.CONTRADICTED] == 0 for count in counts.values())


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_no_belief_is_supported_or_contradicted_where_none_holds(seeds):
    assert verdicts(Design(seeds=seeds), False, EXPERIMENTS)["any"]["found"] <= 100 * most(ALPHA)


def test_with_enough_runs_no_effect_is_found_to_be_none():
    counts = verdicts(Design(seeds=40), False, 20)
    for name in ("throughput", "diminishing", "gap", "shift", "flat", "rate", "accumulation", "start"):
        assert counts[name][Verdict.NOT_SUPPORTED] >= 18, name
    assert counts["growth"][Verdict.SUPPORTED] <= 5  # worse by just its margin: neither
