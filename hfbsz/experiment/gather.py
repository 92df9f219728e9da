"""Reads the folders of runs into outcomes, arms and trials, and tests them."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.experiment.results import ArmResult, Experiment, Outcome
from hfbsz.experiment.statistics.evidence import Finding, findings
from hfbsz.experiment.statistics.factorial import Effect, effects
from hfbsz.experiment.statistics.trials import Arm, Comparison, Trial, compare
from hfbsz.records.evaluations import LOSS, best_evaluation, final_result, not_better, validation_curve
from hfbsz.records.overfitting import overfitting_of
from hfbsz.records.run_data import CLOCK, SECONDS, STEPS, RunData, is_number, read_run
from hfbsz.records.sharpness import final_sharpness

_BATCH_FIELDS = ("batch.size=", "batch.start=", "batch.ramp=", "batch.micro_max=")
_ARM_FIELDS = (*_BATCH_FIELDS, "scaling.rule=", "optim.lr=", "recipe=", "seed=")  # choices covered by fields of Arm


def outcome_of(folder: Path, seed: int, state: str | None = None, why: str | None = None) -> Outcome:
    """The outcome of a run as read from its folder; `state` and `why` from the launcher take precedence."""
    try:
        run = read_run(folder)
    except UserError:
        return Outcome(seed, folder, state or "waiting", why)
    status = run.status.get("state")
    state = state or (status if status in ("finished", "preempted", "failed", "diverged") else "waiting")
    status_why = run.status.get("why")
    overfitting = overfitting_of(run)
    best = best_evaluation(run)
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    done = min(1.0, clock / planned) if clock is not None and is_number(planned) and planned else 0.0
    padding = run.values("batch/padding")
    return Outcome(
        seed,
        folder,
        state,
        why or (status_why if state in ("failed", "diverged") else None),
        1.0 if state == "finished" else done,
        run,
        None,
        int(best[STEPS]) if best else None,
        best[CLOCK] / run.rows if best and CLOCK in best and run.rows else None,
        overfitting.onset.epoch if overfitting is not None and overfitting.onset is not None else None,
        best.get(SECONDS) if best else None,
        statistics.fmean(padding) if padding else None,
        not_better(run),
    )


def arm_of(plan: Mapping[str, Any], tuned: bool = False, searched: bool = False, variant: str = "") -> Arm:
    """The arm of a run's plan; `variant`: choices that no other field of the arm covers.

    Raises LookupError or ValueError if the plan is incomplete.
    """
    recipe, phases = plan["recipe"], plan["phases"]
    largest = max(phases, key=lambda phase: phase["batch"])
    grows = len(phases) > 1
    return Arm(
        batch=largest["batch"],
        learning_rate=plan["learning_rate"]["largest_batch"],
        micro_batch=plan["micro_batch"],
        accumulation=plan["accumulation"][phases.index(largest)],
        rule=plan["rule"]["name"],
        tuned=tuned,
        searched=searched,
        start=phases[0]["batch"] if grows else None,
        ramp=str(recipe["batch"]["ramp"] or "") if grows else "",
        decays=recipe["schedule"]["shape"] != "constant",
        variant=variant,
    )


def trial_of(outcome: Outcome, arm: Arm, target: float | None) -> Trial | None:
    """The numbers of a run for the statistics; None if it has neither finished nor diverged, or has no evaluation.

    `target` (nats/target): the validation loss (fixed part) for steps and seconds to target, which are interpolated
    linearly between two evaluations.
    """
    run = outcome.run
    if run is None or outcome.state not in ("finished", "diverged"):
        return None
    final, best = final_result(run), best_evaluation(run)
    if final is None:
        return None
    speeds = run.values("perf/tokens_per_second")[1:]
    sharpness = final_sharpness(run, outcome.folder)
    shifted = [value for name, value in final.values.items() if name.endswith("/loss")]
    return Trial(
        arm,
        outcome.seed,
        best_loss=best[LOSS] if best else None,
        final_loss=final.loss,
        gap=_gap(run, final.loss),
        shifted_loss=statistics.fmean(shifted) if shifted else None,
        accuracy=final.values.get("accuracy", final.values.get("preference_accuracy")),
        steps_to_target=None if target is None else position_of(run, target, STEPS),
        seconds_to_target=None if target is None else position_of(run, target, SECONDS),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=run.largest("perf/peak_memory_bytes"),
        optimizer_steps=run.largest(STEPS),
        eigenvalue=sharpness.eigenvalue,
        adaptive_sam=sharpness.adaptive_sam,
        critical_sharpness=sharpness.critical,
        setting=_setting(run, arm),
    )


def _gap(run: RunData, final_loss: float) -> float | None:
    """The last gap, nats/target; None: not measured; NaN: the run diverged."""
    overfitting = overfitting_of(run)
    if overfitting is None:
        return None
    return math.nan if overfitting.diverged_at is not None or math.isnan(final_loss) else overfitting.last.gap


def target_of(arms: Sequence[tuple[Arm, Sequence[Outcome]]]) -> float | None:
    """The lowest validation loss (fixed part, nats/target) that all finished runs reached; None without runs.

    Runs that were never better than before training are ignored. If there are tuned arms, only these count: an arm at a
    wrong rate would set a target that depends on the rate instead of the batch.
    """
    tuned = [outcomes for arm, outcomes in arms if arm.tuned] or [outcomes for _, outcomes in arms]
    runs = [outcome.run for outcomes in tuned for outcome in outcomes if outcome.run and outcome.state == "finished"]
    lowest = [best[LOSS] for best in map(best_evaluation, runs) if best is not None]
    return max(lowest, default=None)


def position_of(run: RunData, target: float, axis: str) -> float:
    """The position on the axis at which the loss first reaches the target; infinite if it never does."""
    previous: Mapping[str, Any] | None = None
    for record in (record for record in validation_curve(run) if axis in record):
        if record[LOSS] <= target:
            if previous is None:
                return float(record[axis])
            share = (previous[LOSS] - target) / (previous[LOSS] - record[LOSS])
            return float(previous[axis] + share * (record[axis] - previous[axis]))
        previous = record
    return math.inf


def _setting(run: RunData, arm: Arm) -> tuple[tuple[str, str], ...]:
    """What runs must share to be compared: task, model (unless the arm has a variant), data, optimizer and hardware."""
    recipe, facts, machine = run.plan.get("recipe", {}), run.plan.get("facts", {}), run.machine
    model_fields = {name: value for name, value in recipe.get("model", {}).items() if value is not None}
    model = {} if arm.variant else model_fields
    device = f"{machine.get('processes')} × {machine.get('device')}"
    parts = {
        "task": recipe.get("task"),
        "the model": json.dumps(model, sort_keys=True),
        "the data": facts.get("data_hash"),
        "optim.name": recipe.get("optim", {}).get("name"),
        "hardware": device,
    }
    return tuple((name, str(value)) for name, value in parts.items())


def gather(experiment: Experiment, planned: Sequence[tuple[ArmResult, Sequence[str], bool]]) -> Experiment:
    """The experiment with its arms, their trials, and the results of the tests.

    `planned`: for each arm, its runs, the choices of its first run, and whether it counts as tuned.
    """
    paired = _with_variants([(result, _arm(result, choices, tuned)) for result, choices, tuned in planned])
    target = target_of([(arm, result.outcomes) for result, arm in paired if arm is not None])
    arms = tuple(_with_trials(result, arm, target) for result, arm in paired)
    trials = [trial for result in arms for trial in result.trials]
    distinct = [trial for result in replace(experiment, arms=arms).distinct_arms for trial in result.trials]
    baseline = next((result.arm for result in arms if result.trials), None)
    notes = [*experiment.notes, *_quality_notes(arms), *_speed_notes(arms, experiment.jobs)]
    belief_findings: tuple[Finding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    factor_effects: tuple[Effect, ...] = ()
    try:
        belief_findings, finding_notes = _findings(trials)
        notes += finding_notes
        comparisons = tuple(compare(distinct, baseline=baseline)) if baseline is not None else ()
        factor_effects = tuple(effects(distinct))
    except ValueError as problem:  # settings differ in more than the batch: show the numbers without tests
        notes.append(f"no tests: {problem}")
    return replace(
        experiment,
        arms=arms,
        findings=belief_findings,
        comparisons=comparisons,
        effects=factor_effects,
        baseline=baseline,
        target=target,
        notes=tuple(notes),
    )


def _with_variants(paired: list[tuple[ArmResult, Arm | None]]) -> list[tuple[ArmResult, Arm | None]]:
    """Arms that are equal in all fields, such as two recipes that differ in warmup, get their words as variant."""
    count = Counter(arm for _, arm in paired)
    return [
        (result, replace(arm, variant=result.words) if arm is not None and count[arm] > 1 else arm)
        for result, arm in paired
    ]


def _quality_notes(arms: Sequence[ArmResult]) -> list[str]:
    """Caveats for comparing losses: runs that are no better than before training, and losses on part of validation."""
    notes = []
    for result in arms:
        runs = [outcome for outcome in result.outcomes if outcome.trial is not None]
        if worse := [outcome for outcome in runs if outcome.not_better is not None]:
            phrase = f"{worse[0].not_better} (seed {worse[0].seed})"
            notes.append(f"{result.words}: {len(worse)} of {len(runs)} runs {phrase}")
    ended = [outcome.run for result in arms for outcome in result.outcomes if outcome.trial and outcome.run]
    evaluations = [final for final in map(final_result, ended) if final is not None and not math.isnan(final.loss)]
    partial = [final for final in evaluations if not final.covers_validation]
    if partial and len(partial) < len(evaluations):
        notes.append(
            f"losses of {len(partial)} of {len(evaluations)} runs are from part of the validation set, the others from "
            "all of it"
        )
    elif partial:
        rows = sorted({int(final.values.get("rows", 0)) for final in evaluations})
        count = " and ".join(f"{number:,}" for number in rows)
        notes.append(f"losses are from part of the validation set ({count} rows): eval.full=true evaluates all of it")
    return notes


def _speed_notes(arms: Sequence[ArmResult], jobs: int) -> list[str]:
    """Caveats for comparing seconds and tokens/s."""
    runs = [outcome.run for result in arms for outcome in result.outcomes if outcome.trial and outcome.run]
    threads = {run.machine.get("threads") for run in runs if run.machine.get("device") == "cpu"}
    notes = [f"speeds were measured with {jobs} runs at a time on one machine"] if jobs > 1 else []
    counts = " and ".join(map(str, sorted(filter(None, threads))))
    return [*notes, *([f"runs used {counts} CPU threads: their speeds are not comparable"] if len(threads) > 1 else [])]


def _findings(trials: Sequence[Trial]) -> tuple[tuple[Finding, ...], list[str]]:
    """Findings within the first variant: pairing arms across variants would confound variant and batch."""
    variants = list(dict.fromkeys(trial.arm.variant for trial in trials))
    chosen = [trial for trial in trials if trial.arm.variant == variants[0]] if variants else []
    notes = [f"beliefs are tested on the arms of {variants[0]} only"] if len(variants) > 1 else []
    return tuple(findings(chosen)), notes


def _arm(result: ArmResult, choices: Sequence[str], tuned: bool) -> Arm | None:
    tried = [tried.outcome for tried in result.tried if tried.outcome is not None]
    for outcome in (*result.outcomes, *tried):
        if outcome.run is not None:
            variant = " ".join(choice for choice in choices if not choice.startswith(_ARM_FIELDS))
            with suppress(LookupError, ValueError):  # the plan is not written yet, or incomplete
                return arm_of(outcome.run.plan, tuned, bool(result.tried) and not tuned, variant)
    return None


def _with_trials(result: ArmResult, arm: Arm | None, target: float | None) -> ArmResult:
    if arm is None:
        return result
    outcomes = tuple(replace(outcome, trial=trial_of(outcome, arm, target)) for outcome in result.outcomes)
    return replace(result, arm=arm, outcomes=outcomes)
