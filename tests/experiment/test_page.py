"""The page of a comparison: its conclusions are those of the tests, at every stage, and it needs no network."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from synthetic_experiments import (
    full_sample,
    make_arm,
    make_experiment,
    make_outcome,
    make_result,
    make_run,
    unfinished_sample,
    words_of,
)

from hfbsz.experiment.page.page import render
from hfbsz.experiment.page.verdict import arm_names, conclusions
from hfbsz.experiment.results import ArmResult, Experiment, Outcome
from hfbsz.experiment.statistics.beliefs import BELIEFS
from hfbsz.experiment.statistics.factorial import effects
from hfbsz.experiment.statistics.simulation import Design, world
from hfbsz.experiment.statistics.trials import Arm, Trial


def text_of(page: str) -> str:
    """The text outside the figures, in one line."""
    bare = re.sub(r"<(svg|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


def section_of(page: str, title: str) -> str:
    return page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def rows_of(page: str, title: str) -> list[list[str]]:
    body = section_of(page, title).split("<tbody>")[1].split("</tbody>")[0]
    return [[text_of(cell).strip() for cell in re.split(r"<t[hd]\b", row)[1:]] for row in body.split("<tr")[1:]]


def from_trials(trials: list[Trial], **changes) -> Experiment:
    """A finished comparison with these trials and no records."""
    arms = {arm: [trial for trial in trials if trial.arm == arm] for arm in dict.fromkeys(t.arm for t in trials)}
    results = tuple(
        ArmResult(
            f"arm={number}",
            arm,
            tuple(
                Outcome(trial.seed, Path(f"runs/{number}-{trial.seed}"), "finished", share=1.0, trial=trial)
                for trial in arm_trials
            ),
        )
        for number, (arm, arm_trials) in enumerate(arms.items())
    )
    return make_experiment(results, **changes)


def with_losses(*arms: list[float]) -> Experiment:
    """A comparison of batches 8, 16, 32, … with the final losses of their seeds, nats/target."""
    return from_trials(
        [
            Trial(Arm(8 * 2**index, 1e-3, 8), seed, final_loss=loss)
            for index, arm_losses in enumerate(arms)
            for seed, loss in enumerate(arm_losses)
        ]
    )


def conclusions_of(experiment: Experiment) -> str:
    return " ".join(conclusions(experiment, arm_names(experiment.arms)))


@pytest.fixture(scope="module")
def full() -> str:
    return render(full_sample())


@pytest.fixture(scope="module")
def unfinished() -> str:
    return render(unfinished_sample())


def test_page_is_self_contained(full: str) -> None:
    references = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", full)
    assert all(reference.startswith("#") for reference in references)
    assert not re.findall(r"<script|<link|<iframe|<img|@import|@font-face|url\((?!#)", full)
    assert "default-src 'none'" in full


def test_runs_that_have_only_the_evaluation_before_training_are_drawn(recwarn) -> None:
    """A log scale has no step 0."""
    arm = make_arm(8, "none")
    outcome = make_outcome(arm, 0, 0.5)
    axes = ("train/sequences", "train/global_step", "train/num_input_tokens_seen", "train/seconds")
    before = {**outcome.run.records[0], **dict.fromkeys(axes, 0)}
    begun = replace(outcome, run=replace(outcome.run, records=(before,)))
    page = render(make_experiment((make_result(8, "none", outcomes=(begun,)),)))
    assert "Learning curves" in page and not recwarn.list


def test_the_same_comparison_gives_the_same_bytes(full: str) -> None:
    code = "import hashlib; from synthetic_experiments import full_sample; "
    code += "from hfbsz.experiment.page.page import render; "
    code += "print(hashlib.sha256(render(full_sample()).encode()).hexdigest())"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "experiment")))
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_the_page_reloads_only_while_runs_are_left(full: str, unfinished: str) -> None:
    assert '<meta http-equiv="refresh" content="15">' in unfinished
    assert "refresh" not in full


def test_progress_of_every_run(unfinished: str) -> None:
    text = text_of(unfinished)
    assert "13 of 36 runs done, 37 % of the work; time left: 1 h 11 min; 2 runs at a time" in text
    assert "8 sequences · rule sqrt seed 0 ✓ seed 1 45 % seed 2 ‖ at 20 %" in text.replace("\u00a0", " ")
    assert "batch.size=64 optim.lr=tuned seed 0 ·" in text
    assert 'aria-valuenow="37"' in unfinished


def test_failed_runs_are_named_with_their_reason_and_the_rest_is_shown(full: str) -> None:
    text = text_of(full).replace("\u00a0", " ")
    assert "finished, 3 runs failed" in text
    assert "64 sequences · rule sqrt , seed 0, seed 1, seed 2: failed: out of memory" in text
    assert len(rows_of(full, "Arms")) == 12


def test_table_of_measurements(full: str) -> None:
    sample = full_sample()
    heads = text_of(section_of(full, "Arms").split("</thead>")[0])
    row = rows_of(full, "Arms")[9]  # 16 sequences, tuned
    losses = [trial.final_loss for trial in sample.arms[9].trials if trial.final_loss is not None]
    for unit in ("sequences", "nats/target", "epoch, median", "s, median", "% of positions", "tokens/s", "GiB"):
        assert unit in heads
    assert f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}" in " ".join(row)
    assert "tuned" in " ".join(row) and "0.0014" in " ".join(row)
    assert all(cell.endswith("–") for cell in rows_of(full, "Arms")[7][5:])  # its runs failed


def test_scores_on_tasks_are_a_column(full: str) -> None:
    heads = text_of(section_of(full, "Arms").split("</thead>")[0])
    scores = full_sample().arms[9].scores["python_next_line/acc"]
    values = [score.value for score in scores]
    assert "Accuracy python_next_line, mean ± sd" in " ".join(heads.split())
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in " ".join(rows_of(full, "Arms")[9])
    assert len(values) == 3 and not full_sample().arms[7].scores  # its runs failed


def test_scores_of_other_weights_than_the_saved_ones_are_not_compared() -> None:
    outcome = make_outcome(make_arm(8, "none"), 0)
    *others, score = outcome.run.records
    other = replace(outcome.run, records=(*others, score | {"model/step": 7}))
    assert len(outcome.scores) == 1 and replace(outcome, run=other).scores == ()


def test_sharpness_is_correlated_with_the_batch_and_the_gap(full: str) -> None:
    heads = [row[0].removeprefix('scope="row">') for row in rows_of(full, "Sharpness")]
    assert heads == ["Largest eigenvalue of the Hessian", "Adaptive SAM", "Critical sharpness"]
    assert "n = 33" in text_of(section_of(full, "Sharpness")) and "contested" in section_of(full, "Sharpness")
    assert "Sharpness</h2>" not in render(with_losses([4.1, 4.2, 4.3], [4.2, 4.3, 4.5]))


def test_a_measure_that_no_arm_has_has_neither_column_nor_figure() -> None:
    page = render(with_losses([4.1, 4.2, 4.3], [4.2, 4.3, 4.5]))
    heads = text_of(section_of(page, "Arms").split("</thead>")[0])
    assert "Loss" in heads
    assert not any(word in heads for word in ("Accuracy", "gap", "Onset", "Padding", "Speed", "Peak memory"))
    assert page.count("<figure ") == 2 and "Learning curves" not in page  # loss by batch and the forest plot


def test_a_significant_lead() -> None:
    text = conclusions_of(with_losses([4.10, 4.20, 4.30, 4.25], [4.20, 4.31, 4.40, 4.35], [4.301, 4.40, 4.502, 4.45]))
    assert "8 sequences, 4.2125 nats/target over 4 seeds, 0.1025 below" in text
    assert "significantly lower than both other arms" in text and "not decided" not in text
    assert "paired t-tests on 4 seeds, Holm over 3 pairs of arms, family-wise error rate 5 %" in text


def test_a_lead_by_chance_is_not_significant() -> None:
    text = conclusions_of(with_losses([4.10, 4.25, 4.30], [4.20, 4.20, 4.28]))
    assert "No difference between arms is significant" in text and "not decided" in text


def test_an_arm_that_beats_only_some_is_not_the_best() -> None:
    text = conclusions_of(with_losses([4.10, 4.21, 4.30, 4.25], [4.11, 4.20, 4.31, 4.25], [4.601, 4.71, 4.803, 4.75]))
    assert "1 of the 2 other arms" in text and "but not than 16 sequences" in text and "not decided" in text


def test_two_seeds_decide_nothing() -> None:
    text = conclusions_of(with_losses([4.0, 4.1], [5.0, 5.1]))
    assert "fewer than 3 shared seeds" in text and "not decided" in text


def test_arms_with_fewer_or_diverged_seeds_are_not_ranked() -> None:
    text = conclusions_of(with_losses([4.2, 4.3, 4.4], [4.3, 4.45, 4.5], [3.0], [3.0, 3.1, math.nan]))
    assert "saved model: 8 sequences" in text
    assert text.endswith("unfinished seeds: 32 sequences, 64 sequences.")


def test_a_diverged_comparison_has_no_ranking() -> None:
    page = render(with_losses([math.nan, 4.2, 4.3], [4.3, math.inf, 4.5]))
    assert "No ranking" in text_of(page) and "lowest mean" not in page


def test_runs_of_several_settings_are_not_ranked() -> None:
    experiment = with_losses([4.2, 4.3, 4.4], [4.3, 4.45, 4.5])
    first, second = experiment.arms
    trial = second.outcomes[0].trial
    assert trial is not None
    outcomes = (replace(second.outcomes[0], trial=replace(trial, setting=(("data", "other"),))), *second.outcomes[1:])
    mixed = replace(experiment, arms=(first, replace(second, outcomes=outcomes)))
    assert "differ in more than" in conclusions_of(mixed)
    assert "differ in more than" in text_of(render(mixed))


def test_diverged_runs_are_reported_and_not_drawn() -> None:
    page = render(with_losses([4.2, 4.3, 4.4], [4.3, math.nan, 4.5], [math.inf, math.inf, math.inf]))
    assert "diverged 1 of 3 seeds" in " ".join(rows_of(page, "Arms")[1])
    assert "diverged 3 of 3 seeds" in " ".join(rows_of(page, "Arms")[2])
    assert "4 runs diverged" in section_of(page, "By batch size")
    assert "not tested: 1 of 3 seeds diverged" in text_of(section_of(page, "Paired tests"))
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL), re.IGNORECASE)


def test_paired_tests_show_what_was_tested() -> None:
    experiment = with_losses([4.10, 4.20, 4.30, 4.25], [4.20, 4.31, 4.40, 4.35])
    contrast = experiment.comparisons[0].contrast
    row = " ".join(rows_of(render(experiment), "Paired tests")[0])
    assert f"{contrast.mean:+.3f}" in row
    assert f"{contrast.low:+.3f} to {contrast.high:+.3f}" in row
    assert f"{contrast.effect:+.2f}" in row and f"{contrast.sign_flip_p:.3g}" in row
    assert "significantly higher" in row


def test_every_belief_has_its_verdict_its_measurements_and_what_it_needs() -> None:
    experiment = from_trials(world(Design(), True, np.random.default_rng(1)))
    beliefs = section_of(render(experiment), "Common beliefs")
    assert beliefs.count('class="belief"') == len(BELIEFS)
    for finding, part in zip(experiment.findings, beliefs.split('class="belief"')[1:], strict=True):
        text = text_of(part)
        assert finding.verdict in text and finding.source in text
        assert finding.measured and finding.measured in text
    few = section_of(render(with_losses([4.1], [4.2])), "Common beliefs")
    assert few.count('class="belief-verdict not-decided"') == len(BELIEFS)
    text = text_of(few)
    assert all(f"{belief.needs}." in text for belief in BELIEFS.values())


def test_every_axis_has_a_unit_and_every_picture_a_caption(full: str) -> None:
    figures = full.split("<figure ")[1:]
    assert len(figures) == 12
    for figure in figures:
        drawn = figure.split("</svg>")[0]
        assert re.search(r"\((nats/target|share of rows|s|tokens/s|no unit|1/learning rate)\)", drawn)
        assert re.search(r"sequences per optimizer step|tokens seen|optimizer steps|no unit|nats/target", drawn)
        assert len(text_of(figure.split("<figcaption>")[1].split("</figcaption>")[0])) > 40


def test_curves_have_a_legend_by_arm(full: str) -> None:
    legend = section_of(full, "Learning curves").split("</ul>")[0]
    text = text_of(legend).replace("\u00a0", " ")
    for family in ("rule none", "rule sqrt", "rule sqrt · rate tuned"):
        assert f"{family} 8 sequences 16 sequences 32 sequences 64 sequences" in text
    curves = section_of(full, "Learning curves").split("<figure ")[1].split("</svg>")[0]
    assert all(color in curves for color in set(re.findall(r'stroke="(#\w+)"', legend)))


def test_tuning_reports_diverged_runs(full: str) -> None:
    figure = next(part for part in full.split("<figure ") if "<h3>Tuning optim.lr</h3>" in part)
    assert "1 run diverged" in figure and "0.00025" in figure


def test_pretraining_and_runs_that_are_not_known_yet_count() -> None:
    pretraining = ArmResult("batch.size=256", None, (Outcome(0, Path("runs/p"), "failed", why="no space left"),))
    sample = replace(unfinished_sample(), pretraining=(pretraining,), planned=50)
    text = text_of(render(sample))
    assert "14 of 50 runs done, 29 % of the work" in text
    assert "batch.size=256 , seed 0: failed: no space left" in text


def test_variants_have_distinct_names() -> None:
    arms = [Arm(batch, 1e-3, 8, variant=f"model.path={base}") for base in ("a", "b") for batch in (8, 16)]
    trials = [Trial(arm, seed, final_loss=4.0 + seed / 10) for arm in arms for seed in range(3)]
    experiment = from_trials(trials)
    assert "8 sequences · model.path=a" in arm_names(experiment.arms)["arm=0"].replace("\u00a0", " ")
    assert "model.path=b · rule none" in section_of(render(experiment), "By batch size")


def test_zero_finished_runs() -> None:
    waiting = [Outcome(seed, Path(f"runs/{seed}"), "waiting") for seed in range(3)]
    page = render(make_experiment((ArmResult("batch.size=8", None, tuple(waiting)),)))
    text = text_of(page)
    assert "no run has finished" in text and "0 of 3 runs done" in text and "time left: unknown" in text
    assert "no run has started" in text and "No tests yet" in text


def test_one_arm_of_one_seed() -> None:
    page = render(make_experiment((make_result(16, "sqrt", seeds=1),)))
    assert "no other arm" in text_of(page)
    assert "1 seed" in " ".join(rows_of(page, "Arms")[0])
    assert "lowest mean" not in page


def test_one_evaluation_is_enough_for_a_curve() -> None:
    arm = make_arm(16, "none")
    outcome = make_outcome(arm, 0, share=0.03)
    page = render(make_experiment((ArmResult("batch.size=16", arm, (outcome,)),)))
    assert "Validation loss over tokens seen" in page


def test_growing_batches_and_variable_micro_batches() -> None:
    ramp = Arm(64, 4e-3, None, rule="sqrt", start=8, ramp="doubling:75%")
    trials = [Trial(arm, seed, final_loss=4.0 + seed / 10) for arm in (Arm(64, 4e-3, 8), ramp) for seed in range(3)]
    page = render(from_trials(trials))
    text = " ".join(rows_of(page, "Arms")[1])
    assert "8 → 64 sequences (doubling:75%)" in text and "None" not in page
    assert "a growing batch is drawn at" in page


def test_24_arms_have_distinct_names_and_lines() -> None:
    arms = tuple(
        ArmResult(f"batch.size={batch} optim.lr={rate}", arm, (make_outcome(arm, 0),))
        for batch in (8, 16, 32)
        for rate in range(1, 9)
        for arm in [make_arm(batch, "none", learning_rate=rate * 1e-3)]
    )
    names = arm_names(arms)
    legend = section_of(render(make_experiment(arms, findings=(), comparisons=())), "Learning curves").split("</ul>")[0]
    assert len(set(names.values())) == 24
    assert len(set(re.findall(r'stroke="(#\w+)" stroke-width="3" stroke-dasharray="([^"]*)"', legend))) == 24


def test_user_input_is_escaped() -> None:
    arm = make_arm(16, "none")
    failed = Outcome(0, Path("runs/x"), "failed", why="<b>$no$</b> & more")
    page = render(make_experiment((ArmResult(words_of(16, "none"), arm, (failed,)),), command="run 'a<b>'"))
    assert "&lt;b&gt;$no$&lt;/b&gt; &amp; more" in page and "a&lt;b&gt;" in page


def test_a_run_that_diverges_ends_its_curve() -> None:
    arm = make_arm(16, "none")
    good = make_outcome(arm, 0)
    run = make_run(arm, 1)
    records = tuple(r | {"eval/loss": math.nan} if index > 20 else r for index, r in enumerate(run.records))
    lost = replace(make_outcome(arm, 1), run=replace(run, records=records))
    page = render(make_experiment((ArmResult("batch.size=16", arm, (good, lost)),)))
    assert "1 run diverged" in page


def test_a_two_by_two_shows_main_effects_and_interaction():
    shifts = {("a", 8): 0.0, ("a", 64): 0.1, ("b", 8): 0.0, ("b", 64): 0.1}
    trials = [
        Trial(
            Arm(batch, 1e-3, 8, variant=variant), seed, final_loss=3 + shift + 0.1 * seed + 0.001 * (seed * batch % 5)
        )
        for (variant, batch), shift in shifts.items()
        for seed in range(3)
    ]
    page = render(from_trials(trials, effects=tuple(effects(trials))))
    rows = section_of(page, "Paired tests").split("(2 × 2)</h3>")[1]
    assert rows.count("<tr><th scope") == 3 and "batch 64 − 8 sequences" in rows and "interaction" in rows
    assert "significantly higher" in rows
    assert "(2 × 2)" not in render(from_trials(trials[:6]))
