"""What the runs of a comparison came to: read back from their folders, arm by arm, seed by seed.

`Experiment` is all that the comparison's page, its table and its run in W&B show.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.measure.evidence import Finding, findings
from hfbsz.measure.trials import Arm, Comparison, Trial, compare
from hfbsz.report.overfit import of_best_weights, overfitting_of
from hfbsz.report.runs import CLOCK, SECONDS, STEPS, RunData, is_number, read_run

LOSS = "eval/loss"
_TOLD = ("batch.", "scaling.rule=", "optim.lr=", "recipe=", "seed=")  # choices that an Arm's own numbers tell


@dataclass(frozen=True)
class Outcome:
    """One run of a comparison: planned, at work, or ended."""

    seed: int
    folder: Path
    state: str  # waiting | running | finished | preempted | failed
    why: str | None = None  # how it failed, in a line
    share: float = 0.0  # of its budget that is done, 0 to 1
    run: RunData | None = None  # its records; None: it has none yet
    trial: Trial | None = None  # None: it has not finished
    best_step: int | None = None  # of the lowest validation loss (fixed part)
    best_epoch: float | None = None
    onset_epoch: float | None = None  # of the onset of overfitting; None: none was sure
    seconds_to_best: float | None = None  # training time until then
    padding: float | None = None  # share of padding among the positions computed

    @property
    def loss(self) -> float | None:
        """Validation loss of the model that a finished run keeps, nats/target; NaN: diverged."""
        if self.run is None or self.state != "finished":
            return None
        return float(_kept(self.run)[LOSS])


@dataclass(frozen=True)
class ArmResult:
    """One arm over its seeds. `words` says it as it was asked for (`batch.size=16 scaling.rule=sqrt`)."""

    words: str
    arm: Arm | None  # None: no run of it has begun, so its numbers are not known
    outcomes: tuple[Outcome, ...]
    tried: tuple["Tried", ...] = ()  # of a tuned arm: what was tried for it, in ascending order

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(outcome.trial for outcome in self.outcomes if outcome.trial is not None)


@dataclass(frozen=True)
class Tried:
    """One value of a tuned field, on the tuning seed."""

    value: float  # as the recipe has it, at its reference batch
    loss: float | None  # best validation loss, nats/target; None: failed or not finished; NaN: diverged
    chosen: bool = False
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Experiment:
    """A comparison as it stands."""

    name: str
    command: str  # which brings it about, and goes on with it
    task: str
    folder: Path
    arms: tuple[ArmResult, ...]
    tuned: str | None = None  # the field that was tuned, such as optim.lr
    findings: tuple[Finding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()  # every arm against the baseline, in the kept model's loss
    baseline: Arm | None = None
    target: float | None = None  # loss to which steps and seconds are counted, nats/target
    notes: tuple[str, ...] = ()  # what a reader must know: mismatches, runs left out, several at a time
    seconds_left: float | None = None  # None: not known
    jobs: int = 1  # runs at a time
    before: tuple[ArmResult, ...] = ()  # runs that come before the arms: the pretraining of what is fine-tuned
    planned: int = 0  # runs in all, those included whose numbers a search has yet to find
    finished: bool = False  # nothing is left to run, whether or not all of it went well

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every run once, those of tuning too."""
        results = (*self.before, *self.arms)
        tried = [one.outcome for result in results for one in result.tried if one.outcome is not None]
        every = [*(outcome for result in results for outcome in result.outcomes), *tried]
        return tuple({outcome.folder: outcome for outcome in every}.values())


def outcome_of(folder: Path, seed: int, state: str | None = None, why: str | None = None) -> Outcome:
    """What a run's folder says; `state` and `why`: what the launcher knows better."""
    try:
        run = read_run(folder)
    except UserError:
        return Outcome(seed, folder, state or "waiting", why)
    status = run.status.get("state")
    state = state or (status if status in ("finished", "preempted", "failed") else "waiting")
    seen = overfitting_of(run)
    best = _best(run)
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    done = min(1.0, clock / planned) if clock is not None and is_number(planned) and planned else 0.0
    padding = run.values("batch/padding")
    return Outcome(
        seed,
        folder,
        state,
        why or (run.status.get("why") if state == "failed" else None),
        1.0 if state == "finished" else done,
        run,
        None,
        int(best[STEPS]) if best else None,
        best[CLOCK] / run.rows if best and run.rows else None,
        seen.onset.epoch if seen is not None and seen.onset is not None else None,
        best[SECONDS] if best else None,
        statistics.fmean(padding) if padding else None,
    )


def arm_of(plan: Mapping[str, Any], tuned: bool = False, variant: str = "") -> Arm:
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
        start=phases[0]["batch"] if grows else None,
        ramp=str(recipe["batch"]["ramp"] or "") if grows else "",
        decays=recipe["schedule"]["shape"] != "constant",
        variant=variant,
    )


def trial_of(outcome: Outcome, arm: Arm, target: float | None) -> Trial | None:
    """The numbers of a finished run as the statistics take them; None of one that has not finished.

    `target` (nats/target): the validation loss (fixed part) to which steps and seconds are counted, between two
    evaluations in proportion.
    """
    run = outcome.run
    if run is None or outcome.state != "finished":
        return None
    kept, best, seen = _kept(run), _best(run), overfitting_of(run)
    speeds = run.values("perf/tokens_per_second")[1:]
    shifted = [value for name, value in kept.items() if name.count("/") == 2 and name.endswith("/loss")]
    return Trial(
        arm,
        outcome.seed,
        best_loss=best[LOSS] if best else None,
        final_loss=kept[LOSS],
        gap=seen.last.gap if seen is not None else None,
        shifted_loss=statistics.fmean(shifted) if shifted else None,
        accuracy=kept.get("eval/accuracy"),
        steps_to_target=None if target is None else _reached(run, target, STEPS),
        seconds_to_target=None if target is None else _reached(run, target, SECONDS),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=run.largest("perf/peak_memory_bytes"),
        optimizer_steps=run.largest(STEPS),
        setting=_setting(run, arm),
    )


def target_of(arms: Sequence[tuple[Arm, Sequence[Outcome]]]) -> float | None:
    """The lowest validation loss (fixed part, nats/target) that every finished run of the arms reached: of the tuned
    arms alone, where there are any, for an arm at a wrong rate would set a target that says nothing of the batch."""
    tuned = [outcomes for arm, outcomes in arms if arm.tuned] or [outcomes for _, outcomes in arms]
    runs = [outcome.run for outcomes in tuned for outcome in outcomes if outcome.run and outcome.state == "finished"]
    lowest = [best[LOSS] for best in map(_best, runs) if best is not None]
    return max(lowest, default=None)


def _kept(run: RunData) -> Mapping[str, Any]:
    """The evaluation of the model that a finished run keeps."""
    return of_best_weights(run) or [record for record in run.records if _is_evaluation(record)][-1]


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    return record.get("event") == "eval" and is_number(record.get(LOSS)) and not record.get("eval/best")


def _curve(run: RunData) -> list[Mapping[str, Any]]:
    """Evaluations of the fixed part in order, from the first step on; `eval/loss` is that of the fixed part in each."""
    records: list[Mapping[str, Any]] = []
    for record in run.records:
        if not (_is_evaluation(record) and record[STEPS]):
            continue
        if is_number(record.get("overfit/gap")):
            records.append({**record, LOSS: record["overfit/train_loss"] + record["overfit/gap"]})
        elif not record.get("eval/full"):
            records.append(record)
    return records


def _best(run: RunData) -> Mapping[str, Any] | None:
    """The evaluation of the lowest validation loss (fixed part)."""
    finite = [record for record in _curve(run) if math.isfinite(record[LOSS])]
    return min(finite, key=lambda record: record[LOSS], default=None)


def _reached(run: RunData, target: float, axis: str) -> float:
    """Where on the axis the curve first comes down to the target; infinite where it never does."""
    before: Mapping[str, Any] | None = None
    for record in _curve(run):
        if record[LOSS] <= target:
            if before is None:
                return float(record[axis])
            share = (before[LOSS] - target) / (before[LOSS] - record[LOSS])
            return float(before[axis] + share * (record[axis] - before[axis]))
        before = record
    return math.inf


def _setting(run: RunData, arm: Arm) -> str:
    """What runs must share to be compared: task, model, data, optimizer and hardware; what `arm.variant` tells, not."""
    recipe, machine = run.plan["recipe"], run.machine
    model = {} if arm.variant else {name: value for name, value in recipe["model"].items() if value is not None}
    device = f"{machine.get('processes')} × {machine.get('device')}, {machine.get('threads')} threads"
    parts = (recipe["task"], model, run.plan["facts"]["data_hash"], recipe["optim"]["name"], device)
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def gather(stands: Experiment, asked: Sequence[tuple[ArmResult, Sequence[str], bool]]) -> Experiment:
    """The experiment with its arms, their trials, and what these bear out.

    `asked`: an arm's runs, the choices of its first one, and whether its rate is the best of several and inside them.
    """
    known = [(result, _arm(result, choices, tuned)) for result, choices, tuned in asked]
    target = target_of([(arm, result.outcomes) for result, arm in known if arm is not None])
    arms = tuple(_with_trials(result, arm, target) for result, arm in known)
    trials = [trial for result in arms for trial in result.trials]
    baseline = next((result.arm for result in arms if result.trials), None)
    notes = list(stands.notes)
    found: tuple[Finding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    try:
        found, told = _findings(trials)
        notes += told
        comparisons = tuple(compare(trials, baseline=baseline)) if baseline is not None else ()
    except ValueError as problem:  # what differs is no batch: the numbers stand, but no verdict does
        notes.append(f"no tests: {problem}")
    return replace(
        stands,
        arms=arms,
        findings=found,
        comparisons=comparisons,
        baseline=baseline,
        target=target,
        notes=tuple(notes),
    )


def _findings(trials: Sequence[Trial]) -> tuple[tuple[Finding, ...], list[str]]:
    """Findings within the first variant: two variants at once would take one's batch for the other's."""
    variants = list(dict.fromkeys(trial.arm.variant for trial in trials))
    chosen = [trial for trial in trials if trial.arm.variant == variants[0]] if variants else []
    told = [f"beliefs are judged by the arms of {variants[0]} alone"] if len(variants) > 1 else []
    return tuple(findings(chosen)), told


def _arm(result: ArmResult, choices: Sequence[str], tuned: bool) -> Arm | None:
    tried = [one.outcome for one in result.tried if one.outcome is not None]
    for outcome in (*result.outcomes, *tried):
        if outcome.run is not None and "phases" in outcome.run.plan:
            variant = " ".join(choice for choice in choices if not choice.startswith(_TOLD))
            return arm_of(outcome.run.plan, tuned, variant)
    return None


def _with_trials(result: ArmResult, arm: Arm | None, target: float | None) -> ArmResult:
    if arm is None:
        return result
    outcomes = tuple(replace(one, trial=trial_of(one, arm, target)) for one in result.outcomes)
    return replace(result, arm=arm, outcomes=outcomes)


def rows(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for every arm: mean and standard deviation over seeds, as plain data."""
    return [_row(result) for result in experiment.arms]


def _row(result: ArmResult) -> dict[str, Any]:
    trials = result.trials
    losses = [trial.final_loss for trial in trials if trial.final_loss is not None]
    last = [outcome.run for outcome in result.outcomes if outcome.run is not None and outcome.trial is not None]
    bits = [kept["eval/bits_per_byte"] for kept in map(_kept, last) if is_number(kept.get("eval/bits_per_byte"))]
    seconds = [longest for longest in (run.largest(SECONDS) for run in last) if longest is not None]
    return {
        "choices": result.words,
        "tuned": bool(result.tried),
        "learning_rate": result.arm.learning_rate if result.arm else None,
        "runs": len(trials),
        "failed": len(result.failed),
        "loss": statistics.fmean(losses) if losses else None,
        "loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "losses": losses,
        "bits_per_byte": statistics.fmean(bits) if bits else None,
        "steps": trials[0].optimizer_steps if trials else None,
        "seconds": statistics.fmean(seconds) if seconds else None,
    }
