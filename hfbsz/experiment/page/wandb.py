"""The comparison's own W&B run, in the group of its runs: tables, plots and the HTML page."""

import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hfbsz.errors import UserError
from hfbsz.experiment.results import ArmResult, Experiment, Outcome
from hfbsz.experiment.statistics.evidence import Finding
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Comparison
from hfbsz.report.wandb.group import Cell, Plot, Table, send
from hfbsz.report.wandb.identity import Identity, id_of, read_identity
from hfbsz.report.wandb.reporter import Mode, one_line_fault

BATCH, LOSS, MEAN_LOSS = "batch (sequences)", "final loss (nats/target)", "final loss, mean (nats/target)"
PLOTS = {
    "loss_over_batch": Plot("seeds", BATCH, LOSS, "Final validation loss over batch, every seed"),
    "mean_loss_over_batch": Plot("arms", BATCH, MEAN_LOSS, "Final validation loss over batch, mean over seeds", "kind"),
}
TRIAL_COLUMNS = {  # field of Trial → column
    "final_loss": LOSS,
    "best_loss": "best loss (nats/target)",
    "gap": "gap (nats/target)",
    "optimizer_steps": "optimizer steps",
    "tokens_per_second": "tokens/s",
    "peak_memory_bytes": "peak memory (B)",
}
SETTING = (BATCH, "first batch (sequences)", "kind", "learning rate", "tuned")  # columns of an arm's configuration
Row = Mapping[str, Cell]


def log_comparison(
    experiment: Experiment,
    mode: Mode,
    project: str,
    entity: str | None,
    group: str | None,
    warn: Callable[[str], None],
    page: str | None = None,
) -> None:
    """Create or update the comparison's W&B run. `page`: the comparison's page as HTML text.

    W&B's local files are in the comparison's folder. Raises nothing: faults are reported to `warn`, in one line.
    """
    if mode == "off":
        return
    try:
        name = f"comparison {experiment.name}"
        identity = Identity(_id(experiment, group), project, entity, group, "comparison", name)
        config, media = {"comparison": _config(experiment)}, {} if page is None else {"page": page}
        send(experiment.folder, mode, identity, config, summary(experiment), tables(experiment), media, warn, PLOTS)
    except Exception as fault:  # a W&B fault must not fail the comparison
        warn(f"the comparison's W&B run was not updated: {one_line_fault(fault)}")


def _id(experiment: Experiment, group: str | None) -> str:
    """The W&B run id: the same when the comparison is run again, even with more seeds or arms."""
    words = f"{group}\n{experiment.name}"
    return id_of(group or experiment.name, hashlib.sha256(words.encode()).hexdigest()[:8])


def _config(experiment: Experiment) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "command": experiment.command,
        "task": experiment.task,
        "tuned": experiment.tuned,
        "baseline": next((result.words for result in experiment.arms if result.arm == experiment.baseline), None),
        "target_loss": experiment.target,  # nats/target
        "jobs": experiment.jobs,
        "notes": list(experiment.notes),
    }


def summary(experiment: Experiment) -> dict[str, Cell]:
    """The arm with the lowest mean final loss (nats/target) among arms without diverged seeds, and counts of arms and
    of runs by state; tuning runs count as runs."""
    losses = {result.words: _mean(trial.final_loss for trial in result.trials) for result in experiment.arms}
    finite = {words: loss for words, loss in losses.items() if loss is not None}
    best = min(finite, key=finite.__getitem__, default=None)
    states = [outcome.state for outcome in experiment.outcomes]
    return {
        "comparison/best_arm": best,
        "comparison/best_arm_final_loss": finite.get(best) if best is not None else None,
        "comparison/arms": len(experiment.arms),
        "comparison/runs": len(states),
        "comparison/finished": states.count("finished"),
        "comparison/failed": states.count("failed"),
        "comparison/diverged": states.count("diverged"),
    }


def tables(experiment: Experiment) -> dict[str, Table]:
    """The tables that have rows, by name: (columns, rows); column names include units."""
    words = {result.arm: result.words for result in experiment.arms if result.arm is not None}
    names = sorted({name for result in experiment.arms for name in result.scores})
    rows: dict[str, list[Row]] = {
        "arms": [_arm(result, names) for result in experiment.arms],
        "seeds": [_seed(result, outcome, names) for result in experiment.arms for outcome in result.outcomes],
        "tests": [_test(pair, words) for pair in experiment.comparisons],
        "beliefs": [_belief(finding) for finding in experiment.findings],
        "tuning": _tuning(experiment),
    }
    return {name: _table(table) for name, table in rows.items() if table}


def _table(rows: list[Row]) -> Table:
    """The columns in order, but those of the setting that are the same in all of several rows last."""
    names = list(rows[0])
    same = [name for name in names if name in SETTING and len(rows) > 1 and len({row[name] for row in rows}) == 1]
    columns = [name for name in names if name not in same] + same
    return columns, [[row[name] for name in columns] for row in rows]


def _arm(result: ArmResult, names: Sequence[str]) -> Row:
    """Means over the finished seeds; None if nothing was measured or a seed diverged. `names`: of scores on tasks."""
    trials, ended = result.trials, [outcome for outcome in result.outcomes if outcome.trial is not None]
    losses = [trial.final_loss for trial in trials if trial.final_loss is not None]
    sd = statistics.stdev(losses) if len(losses) > 1 and all(map(math.isfinite, losses)) else None
    onsets = [outcome.onset_epoch for outcome in ended if outcome.onset_epoch is not None]
    memory = [trial.peak_memory_bytes for trial in trials if trial.peak_memory_bytes is not None]
    return {
        "arm": result.words,
        **_setting(result),
        "seeds": len(trials),
        "runs": len(result.outcomes),
        "failed": len(result.failed),
        "diverged": len(result.diverged),
        MEAN_LOSS: _mean(losses),
        "final loss, sd (nats/target)": sd,
        **{f"{name}, mean": _mean(score.value for score in result.scores.get(name, ())) for name in names},
        "gap, mean (nats/target)": _mean(trial.gap for trial in trials),
        "best epoch, mean": _mean(outcome.best_epoch for outcome in ended),
        "onset of overfitting, mean (epochs)": _mean(onsets),
        "onset of overfitting (seeds)": len(onsets),
        "time to best, mean (s)": _mean(outcome.seconds_to_best for outcome in ended),
        "padding, mean (share)": _mean(outcome.padding for outcome in ended),
        "optimizer steps, mean": _mean(trial.optimizer_steps for trial in trials),
        "tokens/s, mean": _mean(trial.tokens_per_second for trial in trials),
        "peak memory, highest (B)": max(memory, default=None),
    }


def _setting(result: ArmResult) -> Row:
    """The arm's configuration, which is known before its runs end."""
    arm = result.arm
    if arm is None:
        return dict.fromkeys(SETTING)
    kind = f"{arm.rule}, growing" if arm.grows else arm.rule
    return dict(zip(SETTING, (arm.batch, arm.start or arm.batch, kind, arm.learning_rate, arm.tuned), strict=True))


def _seed(result: ArmResult, outcome: Outcome, names: Sequence[str]) -> Row:
    scores = {score.name: score.value for score in outcome.scores}
    return {
        "arm": result.words,
        "seed": outcome.seed,
        BATCH: result.arm.batch if result.arm else None,
        **_location(outcome),
        "done (share)": outcome.share,
        "why it failed": outcome.why,
        "diverged": _diverged(outcome.trial.final_loss) if outcome.trial else None,
        **{title: getattr(outcome.trial, name, None) for name, title in TRIAL_COLUMNS.items()},
        **{name: scores.get(name) for name in names},
        "best step": outcome.best_step,
        "best epoch": outcome.best_epoch,
        "onset of overfitting (epochs)": outcome.onset_epoch,
        "time to best (s)": outcome.seconds_to_best,
        "padding (share)": outcome.padding,
    }


def _location(outcome: Outcome | None) -> dict[str, str | None]:
    """A run's state, its W&B id and the name of its folder."""
    if outcome is None:
        return dict.fromkeys(("state", "run in W&B", "folder"))
    try:
        run: str | None = read_identity(outcome.folder).id
    except UserError:
        run = None
    return {"state": outcome.state, "run in W&B": run, "folder": outcome.folder.name}


def _test(pair: Comparison, words: Mapping[Arm, str]) -> Row:
    """The difference left − right over the shared seeds; in percent for a relative measure."""
    measure, contrast = MEASURES[pair.measure], pair.contrast

    return {
        "left": words.get(pair.left, pair.left.name),
        "right": words.get(pair.right, pair.right.name),
        "measure": measure.words,
        "unit": measure.unit_of_difference,
        "n (seeds)": contrast.n,
        "mean of left − right": measure.in_unit(contrast.mean),
        "95 % CI, low": measure.in_unit(contrast.low),
        "95 % CI, high": measure.in_unit(contrast.high),
        "effect (mean ÷ sd, Hedges)": contrast.effect,
        "p after Holm": pair.p_holm,
        "sign-flip p": contrast.sign_flip_p,
    }


def _belief(finding: Finding) -> Row:
    return {
        "belief": finding.statement,
        "verdict": finding.verdict.value,
        "what the runs say": finding.sentence,
        "source": finding.source,
    }


def _tuning(experiment: Experiment) -> list[Row]:
    return [
        {
            "arm": result.words,
            BATCH: result.arm.batch if result.arm else None,
            "field": experiment.tuned,
            "value": tried.value,
            "best loss (nats/target)": tried.loss,
            "diverged": _diverged(tried.loss),
            "chosen": tried.chosen,
            **_location(tried.outcome),
        }
        for result in experiment.arms
        for tried in result.tried
    ]


def _diverged(loss: float | None) -> bool | None:
    """None: unknown."""
    return None if loss is None else not math.isfinite(loss)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the measured values; None if there are none or one is not finite."""
    measured = [value for value in values if value is not None]
    return statistics.fmean(measured) if measured and all(map(math.isfinite, measured)) else None
