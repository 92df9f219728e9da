"""The statistics against published examples and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from hfbsz.experiment.statistics.paired import (
    contrast,
    equivalence,
    hedges_correction,
    holm,
    power,
    seeds_needed,
    sign_flip,
)

SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]  # hours gained, ten patients: Student 1908
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]  # ⅛ inch, fifteen pairs: Darwin 1876


def test_student_1908():
    """Mean 1.58, sd 1.23; t = 4.0621 on 9 degrees, p = 0.002833, 95 % interval 0.7001 to 2.4599 (R's `sleep`)."""
    result = contrast(SLEEP)
    assert (result.n, result.mean) == (10, pytest.approx(1.58))
    assert result.sd == pytest.approx(1.229995, rel=1e-6)
    assert result.p == pytest.approx(0.002833, rel=2e-4)
    assert (result.low, result.high) == (pytest.approx(0.7001, abs=5e-5), pytest.approx(2.4599, abs=5e-5))
    assert result.effect == pytest.approx(1.58 / 1.229995 * 0.9139, rel=1e-3)  # d_z = 1.285, J(9)


def test_fisher_1935():
    """The Design of Experiments, section 21: 1,726 of 32,768 flips reach Darwin's sum; t gives 0.0497."""
    result = contrast(MAIZE)
    assert result.sign_flip_p == 1726 / 32768
    assert result.p == pytest.approx(0.0497, abs=5e-5)


def test_few_seeds_have_a_smallest_sign_flip_p():
    for n in range(2, 8):
        assert sign_flip(np.linspace(1, 2, n)) == 2 / 2**n
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip([0.1, -0.1]) == 1
    assert math.isnan(sign_flip(np.ones(17)))


def test_hedges_1981():
    """Table 1 of the paper, to its four figures."""
    for freedom, correction in {2: 0.5642, 3: 0.7236, 4: 0.7979, 5: 0.8408, 10: 0.9228}.items():
        assert hedges_correction(freedom) == pytest.approx(correction, abs=6e-5)
    assert math.isnan(hedges_correction(1))


def test_holm_1979():
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])  # R: p.adjust(.., "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    untested = holm([0.01, math.nan, 0.02])
    assert untested[0] == 0.02 and math.isnan(untested[1]) and untested[2] == 0.02


def test_equivalence_is_the_90_percent_interval_within_the_margin():
    low, high = stats.ttest_1samp(SLEEP, 0).confidence_interval(0.90)
    assert low > 0
    assert equivalence(SLEEP, high * 1.001) < 0.05 < equivalence(SLEEP, high * 0.999)
    reference = stats.ttest_1samp(SLEEP, 3.0, alternative="less").pvalue
    assert equivalence(SLEEP, 3.0) == pytest.approx(reference) == equivalence([-x for x in SLEEP], 3.0)


def test_a_threshold_moves_the_test_and_not_the_interval():
    result, plain = contrast(SLEEP, threshold=1.0), contrast(SLEEP)
    assert result.p == pytest.approx(stats.ttest_1samp(SLEEP, 1.0).pvalue)
    assert (result.low, result.high) == (plain.low, plain.high)


def test_power():
    """34 pairs detect d_z = 0.5 with power 0.808 (G*Power, two-sided, 0.05); 33 do not reach 0.8."""
    assert power(0.5, 1, 34) == pytest.approx(0.8078, abs=5e-4)
    assert seeds_needed(0.5, 1) == 34
    assert power(0.0, 1, 5) == pytest.approx(0.05, abs=5e-4)
    assert power(0.1, 0.025, 3) == pytest.approx(0.908, abs=1e-3)  # scipy's noncentral t
    assert power(1.0, 0.025, 5) == pytest.approx(1.0)  # there scipy's is NaN
    assert seeds_needed(1e-6, 1) is None and seeds_needed(0, 1) is None


def test_statistics_that_need_more_seeds_are_nan():
    assert math.isnan(contrast([]).mean)
    one = contrast([0.3])
    assert one.mean == 0.3 and all(map(math.isnan, (one.sd, one.low, one.high, one.p, one.effect)))
    assert math.isnan(contrast([0.3, math.inf, 0.2]).p) and not contrast([0.3, math.inf, 0.2]).finite


def test_differences_that_do_not_vary_are_certain_only_where_exact():
    assert math.isnan(contrast([0.1 + 0.2, 0.3, 0.3]).p)  # rounding is not spread
    assert math.isnan(equivalence([0.3] * 3, 1.0))
    assert contrast([0.3] * 3, exact=True).p == 0
    assert contrast([0.0] * 3, exact=True).p == 1
    assert equivalence([0.3] * 3, 1.0, exact=True) == 0 and equivalence([0.3] * 3, 0.1, exact=True) == 1
