"""Findings on runs written by hand: those of LOG.md, too few, diverged, misleading, and missing arms."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from hfbsz.experiment.statistics.beliefs import BELIEFS, Claim, SmallestEffects
from hfbsz.experiment.statistics.evidence import Verdict, evaluate_claims, findings
from hfbsz.experiment.statistics.paired import contrast, equivalence
from hfbsz.experiment.statistics.simulation import Design, world
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Trial, compare, summarize

SMALL = Arm(8, 2e-3, 8, rule="sqrt", tuned=True)
LARGE = Arm(64, 2e-3, 64, rule="sqrt", tuned=True)
RAMP = replace(LARGE, start=8, ramp="doubling:75%")
GROWN = replace(RAMP, decays=False)
# LOG.md, arms at equal tokens, 3 seeds: final validation loss and optimizer steps
LOGGED = {
    SMALL: ((4.3911, 4.3726, 4.6447), 1172),
    LARGE: ((5.4323, 5.4692, 5.5013), 147),
    RAMP: ((4.4589, 4.4526, 4.7324), 550),
    GROWN: ((4.3817, 4.3096, 4.5710), 825),
}


def logged():
    return [
        Trial(arm, seed, final_loss=loss, optimizer_steps=steps)
        for arm, (losses, steps) in LOGGED.items()
        for seed, loss in enumerate(losses)
    ]


def trials(arm, **measures):
    """Trials of an arm from one list per measure."""
    rows = zip(*measures.values(), strict=True)
    return [Trial(arm, seed, **dict(zip(measures, row, strict=True))) for seed, row in enumerate(rows)]


def finding_of(runs, name, smallest=None):
    return next(finding for finding in findings(runs, smallest) if finding.name == name)


def test_summaries_and_comparisons_give_what_the_log_gives():
    summary = {arm_summary.arm: arm_summary for arm_summary in summarize(logged())}
    assert (summary[SMALL].n, summary[SMALL].values) == (3, (4.3911, 4.3726, 4.6447))
    assert (summary[SMALL].mean, summary[SMALL].sd) == (pytest.approx(4.4695, abs=5e-5), pytest.approx(0.152, abs=5e-4))
    against = {pair.left: pair for pair in compare(logged(), baseline=SMALL)}
    ramp = against[RAMP].contrast
    assert (ramp.mean, ramp.sd) == (pytest.approx(0.079, abs=5e-4), pytest.approx(0.010, abs=5e-4))
    assert ramp.sign_flip_p == 0.25  # the smallest p with three seeds
    smallest = against[LARGE].contrast.p
    assert 2 * ramp.p < 3 * smallest == against[LARGE].p_holm == against[RAMP].p_holm  # Holm's p-values are monotone
    assert len(compare(logged())) == 6


def test_verdicts_from_the_three_seeds_of_the_log():
    start = finding_of(logged(), "start")
    assert start.verdict is Verdict.SUPPORTED  # 0.92 nats
    assert all(text in start.measured for text in ("+0.920 nats/target (95 % CI", "3 seeds", "p = 0.25"))
    growth = finding_of(logged(), "growth")  # "an indication, not a law" in the log
    assert growth.verdict is Verdict.NOT_DECIDED
    assert "about" in growth.needs and "0.020 nats/target with power 0.8" in growth.sentence


def test_missing_arms_are_named():
    for finding in findings([]):
        assert finding.verdict is Verdict.NOT_DECIDED and not finding.measured
        assert finding.needs == BELIEFS[finding.name].needs and finding.needs in finding.sentence
    assert "rule none" in finding_of(logged(), "rate").needs


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_there_is_no_verdict(seeds):
    design = Design(seeds=seeds, effect=1.0, sd_differences=1e-3)
    for finding in findings(world(design, True, np.random.default_rng(0))):
        assert finding.verdict is Verdict.NOT_DECIDED
        assert finding.needs == f"at least 3 shared seeds; there are {seeds}"


def test_seeds_that_are_not_shared_do_not_count():
    moved = [replace(trial, seed=trial.seed + 1) if trial.arm == LARGE else trial for trial in logged()]
    assert finding_of(moved, "start").needs == "at least 3 shared seeds; there are 2"


def test_equivalence_is_distinguished_from_too_few_runs():
    generator = np.random.default_rng(0)
    for seeds, verdict in {5: Verdict.NOT_DECIDED, 40: Verdict.NOT_SUPPORTED}.items():
        base = generator.normal(4.4, 0.1, seeds)
        runs = trials(LARGE, final_loss=base + generator.normal(0, 0.02, seeds))
        runs += trials(RAMP, final_loss=base + generator.normal(0, 0.02, seeds))
        finding = finding_of(runs, "start")
        assert finding.verdict is verdict
        assert ("within ±0.020 nats/target" in finding.sentence) == (seeds == 40)
    assert finding_of(runs, "start", SmallestEffects(loss=0.001)).verdict is Verdict.NOT_DECIDED


def test_a_significant_effect_that_is_too_small_to_matter_does_not_support():
    offsets = np.array([0.001, 0.0012, 0.0009, 0.0011, 0.0010])
    runs = trials(LARGE, final_loss=4.4 + offsets) + trials(RAMP, final_loss=[4.4] * 5)
    assert finding_of(runs, "start").verdict is Verdict.NOT_SUPPORTED
    assert finding_of(runs, "start", SmallestEffects(loss=1e-5)).verdict is Verdict.SUPPORTED


def test_the_opposite_contradicts():
    offsets = np.array([0.1, 0.12, 0.09, 0.11, 0.10])
    runs = trials(LARGE, final_loss=4.4 - offsets) + trials(RAMP, final_loss=[4.4] * 5)
    assert finding_of(runs, "start").verdict is Verdict.CONTRADICTED


def test_a_run_that_diverged_is_neither_dropped_nor_averaged():
    runs = logged()
    runs[3] = replace(runs[3], final_loss=math.nan)  # the large batch, seed 0
    finding = finding_of(runs, "start")
    assert finding.verdict is Verdict.NOT_DECIDED and "1 of 3 seeds diverged" in finding.needs
    missed = [
        trial
        for batch in (8, 16, 32)
        for trial in trials(replace(SMALL, batch=batch), steps_to_target=[900 / batch, 950 / batch, math.inf])
    ]
    assert "1 of 3 seeds diverged or missed the target" in finding_of(missed, "diminishing").needs


def test_numbers_without_variation_decide_nothing():
    runs = [
        t
        for b, s in {8: 800, 16: 400, 32: 400}.items()
        for t in trials(replace(SMALL, batch=b), steps_to_target=[s] * 5)
    ]
    assert "vary over seeds" in finding_of(runs, "diminishing").needs


def test_a_smaller_gap_of_a_model_that_fits_less_is_not_decisive():
    """The large batch has the smaller gap, first with a higher loss, then with an equal one."""
    noise = np.array([0.001, -0.002, 0.0, 0.002, -0.001])
    small = trials(SMALL, gap=0.9 + noise, final_loss=4.4 + noise, shifted_loss=5.4 + 3 * noise)
    worse = trials(LARGE, gap=0.5 - noise, final_loss=5.4 - noise, shifted_loss=6.0 - noise)
    level = trials(LARGE, gap=0.5 - noise, final_loss=4.4 - noise, shifted_loss=5.0 - noise)
    for name in ("gap", "shift"):
        finding = finding_of(small + worse, name)
        assert finding.verdict is Verdict.NOT_DECIDED and "fit no worse" in finding.needs
        assert finding_of(small + level, name).verdict is Verdict.CONTRADICTED


def test_a_minimum_is_sharper_only_in_a_plain_and_an_adaptive_measure():
    noise = np.array([1.01, 0.98, 1.0, 1.02, 0.99])
    small = trials(SMALL, eigenvalue=20 * noise, adaptive_sam=0.3 * noise)
    sharper = trials(LARGE, eigenvalue=40 / noise, adaptive_sam=0.5 / noise)
    rescaled = trials(LARGE, eigenvalue=40 / noise, adaptive_sam=0.3 * noise**2)
    flatter = trials(LARGE, eigenvalue=10 / noise, adaptive_sam=0.2 / noise)
    assert finding_of(small + sharper, "flat").verdict is Verdict.SUPPORTED
    assert finding_of(small + rescaled, "flat").verdict is Verdict.NOT_SUPPORTED
    assert finding_of(small + flatter, "flat").verdict is Verdict.CONTRADICTED


def test_untuned_rates_do_not_compare_batches():
    runs = [replace(trial, arm=replace(trial.arm, tuned=trial.arm != LARGE)) for trial in logged()]
    assert finding_of(runs, "start").needs == BELIEFS["start"].needs


UNSCALED = Arm(64, 2e-3, 64)
SCALED = replace(UNSCALED, rule="sqrt", learning_rate=5.6e-3)
UNLIKE = {
    "rate: one rate under two names": ("rate", [UNSCALED, replace(SCALED, learning_rate=2e-3)]),
    "rate: tuned": ("rate", [replace(UNSCALED, tuned=True), replace(SCALED, tuned=True)]),
    "rate: other batches": ("rate", [UNSCALED, replace(SCALED, batch=32)]),
    "throughput: accumulating": ("throughput", [Arm(b, 2e-3, 8, accumulation=b // 8) for b in (16, 32, 64)]),
    "throughput: two batches": ("throughput", [Arm(b, 2e-3, b) for b in (16, 32)]),
    "diminishing: untuned": ("diminishing", [Arm(b, 2e-3, b) for b in (16, 32, 64)]),
    "diminishing: growing": ("diminishing", [replace(RAMP, batch=b) for b in (16, 32, 64)]),
    "flat: untuned": ("flat", [Arm(b, 2e-3, b) for b in (8, 64)]),
    "gap: some decay": ("gap", [SMALL, replace(LARGE, decays=False)]),
    "accumulation: other rates": ("accumulation", [UNSCALED, Arm(64, 1e-3, 8, accumulation=8)]),
    "growth: decays too": ("growth", [SMALL, RAMP]),
    "growth: from another batch": ("growth", [replace(SMALL, batch=16), GROWN]),
    "start: one decays": ("start", [LARGE, GROWN]),
    "start: to another batch": ("start", [replace(LARGE, batch=32), RAMP]),
}


@pytest.mark.parametrize(("name", "arms"), UNLIKE.values(), ids=UNLIKE)
def test_arms_that_differ_in_more_are_not_compared(name, arms):
    numbers = {measure: [1.0, 1.2, 1.1] for measure in MEASURES if measure != "shift_rise"}
    assert finding_of([trial for arm in arms for trial in trials(arm, **numbers)], name).needs == BELIEFS[name].needs


def test_the_claims_of_one_call_are_one_family():
    values = (0.011, 0.009, 0.012, 0.008, 0.010)
    claim = Claim("loss", tuple(range(5)), values, 0.02, "nats/target", str)
    short = replace(claim, values=values[:2])
    results = evaluate_claims([claim, claim, short, claim])
    assert [result.family for result in results] == [3] * 4
    for result in results[:2]:
        assert result.p_holm == pytest.approx(3 * contrast(values).p)
        assert result.p_equivalence == pytest.approx(3 * equivalence(values, 0.02))
    assert math.isnan(results[2].p_holm) and math.isnan(results[2].p_equivalence)


def test_one_rule_that_helps_is_enough_for_the_rate_to_follow():
    noise = np.array([0.001, -0.002, 0.0, 0.002, -0.001])
    none = Arm(64, 2e-3, 64)
    good, bad = replace(none, rule="sqrt", learning_rate=5.6e-3), replace(none, rule="linear", learning_rate=1.6e-2)
    runs = trials(none, final_loss=4.5 + noise) + trials(bad, final_loss=4.9 - noise)
    assert finding_of(runs, "rate").verdict is Verdict.CONTRADICTED
    assert finding_of(runs + trials(good, final_loss=4.4 - noise), "rate").verdict is Verdict.SUPPORTED


def test_accumulation_needs_both_sides_of_the_trade():
    few, many = Arm(64, 2e-3, 64), Arm(64, 2e-3, 8, accumulation=8)
    speed = np.array([15.0, 15.2, 14.9, 15.1, 15.0])
    runs = trials(few, tokens_per_second=speed, peak_memory_bytes=[8e9] * 5)
    trade = trials(many, tokens_per_second=speed[::-1] * 0.8, peak_memory_bytes=[2e9] * 5)
    assert finding_of(runs + trade, "accumulation").verdict is Verdict.SUPPORTED
    free = trials(many, tokens_per_second=speed[::-1], peak_memory_bytes=[2e9] * 5)
    assert finding_of(runs + free, "accumulation").verdict is Verdict.NOT_SUPPORTED
    useless = trials(many, tokens_per_second=speed[::-1] * 0.8, peak_memory_bytes=[8e9] * 5)
    assert finding_of(runs + useless, "accumulation").verdict is Verdict.NOT_SUPPORTED


def test_arms_of_a_sweep_with_one_seed_do_not_stand_in_for_arms_with_three():
    swept = Trial(Arm(128, 2e-3, 128, tuned=True), 0, gap=0.1, final_loss=4.0)
    noise = np.array([0.001, -0.002, 0.0])
    runs = trials(SMALL, gap=0.3 + noise, final_loss=4.4 + noise)
    runs += trials(LARGE, gap=0.9 - noise, final_loss=4.4 - 0.5 * noise)
    assert finding_of([*runs, swept], "gap").verdict is Verdict.SUPPORTED


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"seed 0 of .* twice"):
        findings([*logged(), logged()[0]])
    with pytest.raises(ValueError, match=r"differ in model, optimizer \(adamw and muon\) are not compared"):
        one, other = (("model", "a" * 99), ("optimizer", "adamw")), (("model", "b" * 99), ("optimizer", "muon"))
        runs = [replace(trial, setting=one) for trial in logged()]
        findings([*runs, replace(runs[0], seed=9, setting=other)])


def test_evidence_needs_no_torch():
    module = "hfbsz.experiment.statistics.simulation"
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
