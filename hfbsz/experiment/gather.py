"""From the folders of runs to what a comparison shows: outcomes, arms, trials, and what these bear out."""

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
from hfbsz.records.evaluations import LOSS, best_evaluation, kept_of, not_better, validation_curve
from hfbsz.records.overfitting import overfitting_of
from hfbsz.records.run_data import CLOCK, SECONDS, STEPS, RunData, is_number, read_run

_OF_BATCH = ("batch.size=", "batch.start=", "batch.ramp=", "batch.micro_max=")
_TOLD = (*_OF_BATCH, "scaling.rule=", "optim.lr=", "recipe=", "seed=")  # choices that an Arm's own numbers tell


def outcome_of(folder: Path, seed: int, state: str | None = None, why: str | None = None) -> Outcome:
    """What a run's folder says; `state` and `why`: what the launcher knows better."""
    try:
        run = read_run(folder)
    except UserError:
        return Outcome(seed, folder, state or "waiting", why)
    status = run.status.get("state")
    state = state or (status if status in ("finished", "preempted", "failed", "diverged") else "waiting")
    said = run.status.get("why")
    if state == "failed" and why is None and "not finite" in str(said):  # as earlier versions called it
        state = "diverged"
    seen = overfitting_of(run)
    best = best_evaluation(run)
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    done = min(1.0, clock / planned) if clock is not None and is_number(planned) and planned else 0.0
    padding = run.values("batch/padding")
    return Outcome(
        seed,
        folder,
        state,
        why or (said if state in ("failed", "diverged") else None),
        1.0 if state == "finished" else done,
        run,
        None,
        int(best[STEPS]) if best else None,
        best[CLOCK] / run.rows if best and CLOCK in best and run.rows else None,
        seen.onset.epoch if seen is not None and seen.onset is not None else None,
        best.get(SECONDS) if best else None,
        statistics.fmean(padding) if padding else None,
        not_better(run),
    )


def arm_of(plan: Mapping[str, Any], tuned: bool = False, searched: bool = False, variant: str = "") -> Arm:
    """The arm that a run's plan belongs to; `variant`: choices that no number of the batch tells."""
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
    """The numbers of a run that has finished or diverged as the statistics take them; None of any other.

    `target` (nats/target): the validation loss (fixed part) to which steps and seconds are counted, between two
    evaluations in proportion.
    """
    run = outcome.run
    if run is None or outcome.state not in ("finished", "diverged"):
        return None
    kept, best, seen = kept_of(run), best_evaluation(run), overfitting_of(run)
    if kept is None:
        return None
    speeds = run.values("perf/tokens_per_second")[1:]
    shifted = [value for name, value in kept.values.items() if name.endswith("/loss")]
    return Trial(
        arm,
        outcome.seed,
        best_loss=best[LOSS] if best else None,
        final_loss=kept.loss,
        gap=None if seen is None else math.nan if seen.lost is not None or math.isnan(kept.loss) else seen.last.gap,
        shifted_loss=statistics.fmean(shifted) if shifted else None,
        accuracy=kept.values.get("accuracy"),
        steps_to_target=None if target is None else _reached(run, target, STEPS),
        seconds_to_target=None if target is None else _reached(run, target, SECONDS),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=run.largest("perf/peak_memory_bytes"),
        optimizer_steps=run.largest(STEPS),
        setting=_setting(run, arm),
    )


def target_of(arms: Sequence[tuple[Arm, Sequence[Outcome]]]) -> float | None:
    """The lowest validation loss (fixed part, nats/target) that every finished run of the arms reached, but those that
    were never better than before training: of the tuned arms alone, where there are any, for an arm at a wrong rate
    would set a target that says nothing of the batch."""
    tuned = [outcomes for arm, outcomes in arms if arm.tuned] or [outcomes for _, outcomes in arms]
    runs = [outcome.run for outcomes in tuned for outcome in outcomes if outcome.run and outcome.state == "finished"]
    lowest = [best[LOSS] for best in map(best_evaluation, runs) if best is not None]
    return max(lowest, default=None)


def _reached(run: RunData, target: float, axis: str) -> float:
    """Where on the axis the curve first comes down to the target; infinite where it never does."""
    before: Mapping[str, Any] | None = None
    for record in (record for record in validation_curve(run) if axis in record):
        if record[LOSS] <= target:
            if before is None:
                return float(record[axis])
            share = (before[LOSS] - target) / (before[LOSS] - record[LOSS])
            return float(before[axis] + share * (record[axis] - before[axis]))
        before = record
    return math.inf


def _setting(run: RunData, arm: Arm) -> str:
    """What runs must share to be compared: task, model, data, optimizer and hardware; what `arm.variant` tells, not."""
    recipe, facts, machine = run.plan.get("recipe", {}), run.plan.get("facts", {}), run.machine
    named = {name: value for name, value in recipe.get("model", {}).items() if value is not None}
    model = {} if arm.variant else named
    device = f"{machine.get('processes')} × {machine.get('device')}"
    parts = (recipe.get("task"), model, facts.get("data_hash"), recipe.get("optim", {}).get("name"), device)
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def gather(stands: Experiment, asked: Sequence[tuple[ArmResult, Sequence[str], bool]]) -> Experiment:
    """The experiment with its arms, their trials, and what these bear out.

    `asked`: an arm's runs, the choices of its first one, and whether its rate is the best of several and inside them.
    """
    known = _told_apart([(result, _arm(result, choices, tuned)) for result, choices, tuned in asked])
    target = target_of([(arm, result.outcomes) for result, arm in known if arm is not None])
    arms = tuple(_with_trials(result, arm, target) for result, arm in known)
    trials = [trial for result in arms for trial in result.trials]
    once = [trial for result in replace(stands, arms=arms).distinct for trial in result.trials]
    baseline = next((result.arm for result in arms if result.trials), None)
    notes = [*stands.notes, *_of_quality(arms), *_of_speed(arms, stands.jobs)]
    found: tuple[Finding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    of_both: tuple[Effect, ...] = ()
    try:
        found, told = _findings(trials)
        notes += told
        comparisons = tuple(compare(once, baseline=baseline)) if baseline is not None else ()
        of_both = tuple(effects(once))
    except ValueError as problem:  # what differs is no batch: the numbers stand, but no verdict does
        notes.append(f"no tests: {problem}")
    return replace(
        stands,
        arms=arms,
        findings=found,
        comparisons=comparisons,
        effects=of_both,
        baseline=baseline,
        target=target,
        notes=tuple(notes),
    )


def _told_apart(known: list[tuple[ArmResult, Arm | None]]) -> list[tuple[ArmResult, Arm | None]]:
    """Arms that differ in what no number of theirs tells, such as two recipes' warmups, are variants by their words."""
    count = Counter(arm for _, arm in known)
    return [
        (result, replace(arm, variant=result.words) if arm is not None and count[arm] > 1 else arm)
        for result, arm in known
    ]


def _of_quality(arms: Sequence[ArmResult]) -> list[str]:
    """What a reader must know before they compare losses: runs that training made no better, and losses of a part."""
    told = []
    for result in arms:
        runs = [one for one in result.outcomes if one.trial is not None]
        if lost := [one for one in runs if one.not_better is not None]:
            told.append(f"{result.words}: {len(lost)} of {len(runs)} runs {lost[0].not_better} (seed {lost[0].seed})")
    ended = [outcome.run for result in arms for outcome in result.outcomes if outcome.trial and outcome.run]
    kept = [one for one in map(kept_of, ended) if one is not None and not math.isnan(one.loss)]
    parts = [one for one in kept if not one.is_all]
    if parts and len(parts) < len(kept):
        told.append(f"losses of {len(parts)} of {len(kept)} runs are of a part of validation, the others of all")
    elif parts:
        rows = sorted({int(one.values.get("rows", 0)) for one in kept})
        count = " and ".join(f"{number:,}" for number in rows)
        told.append(f"losses of the kept models are of a part of validation ({count} rows): eval.full=true takes all")
    return told


def _of_speed(arms: Sequence[ArmResult], jobs: int) -> list[str]:
    """What a reader must know before they compare seconds and tokens/s."""
    runs = [outcome.run for result in arms for outcome in result.outcomes if outcome.trial and outcome.run]
    threads = {run.machine.get("threads") for run in runs if run.machine.get("device") == "cpu"}
    told = [f"speeds are those of {jobs} runs at a time on one machine"] if jobs > 1 else []
    differ = " and ".join(map(str, sorted(filter(None, threads))))
    return [*told, *([f"runs had {differ} CPU threads: their speeds do not compare"] if len(threads) > 1 else [])]


def _findings(trials: Sequence[Trial]) -> tuple[tuple[Finding, ...], list[str]]:
    """Findings within the first variant: two variants at once would take one's batch for the other's."""
    variants = list(dict.fromkeys(trial.arm.variant for trial in trials))
    chosen = [trial for trial in trials if trial.arm.variant == variants[0]] if variants else []
    told = [f"beliefs are judged by the arms of {variants[0]} alone"] if len(variants) > 1 else []
    return tuple(findings(chosen)), told


def _arm(result: ArmResult, choices: Sequence[str], tuned: bool) -> Arm | None:
    tried = [one.outcome for one in result.tried if one.outcome is not None]
    for outcome in (*result.outcomes, *tried):
        if outcome.run is not None:
            variant = " ".join(choice for choice in choices if not choice.startswith(_TOLD))
            with suppress(LookupError, ValueError):  # of a plan that is not there yet, or not whole
                return arm_of(outcome.run.plan, tuned, bool(result.tried) and not tuned, variant)
    return None


def _with_trials(result: ArmResult, arm: Arm | None, target: float | None) -> ArmResult:
    if arm is None:
        return result
    outcomes = tuple(replace(one, trial=trial_of(one, arm, target)) for one in result.outcomes)
    return replace(result, arm=arm, outcomes=outcomes)
