"""The results of a comparison, by arm and seed, as read from the folders of its runs.

`Experiment` holds everything that the comparison's page, its table and its W&B run show.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.experiment.statistics.evidence import Finding
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.trials import Arm, Comparison, Trial
from hfbsz.records.evaluations import final_result
from hfbsz.records.harness import Score, scores
from hfbsz.records.run_data import SECONDS, RunData, is_number


@dataclass(frozen=True)
class Outcome:
    """One run of a comparison: planned, running, or ended."""

    seed: int
    folder: Path
    state: str  # waiting | running | finished | preempted | failed | diverged
    why: str | None = None  # why it failed or diverged, in one line
    share: float = 0.0  # share of the training budget that is done, 0 to 1
    run: RunData | None = None  # its records; None: no records yet
    trial: Trial | None = None  # None: neither finished nor diverged
    best_step: int | None = None  # step of the lowest validation loss (fixed part); None: no loss below the initial one
    best_epoch: float | None = None  # epoch of that step
    onset_epoch: float | None = None  # epoch of the onset of overfitting; None: no significant onset
    seconds_to_best: float | None = None  # training time until best_step, s
    padding: float | None = None  # share of padding among the positions computed
    not_better: str | None = None  # if the model is no better than before training: a phrase that says so

    @property
    def ended(self) -> bool:
        """Whether the run finished, failed or diverged; a preempted run has not ended."""
        return self.state in ("finished", "failed", "diverged")

    @property
    def seconds(self) -> float | None:
        """Training time, s; None if the run has not finished."""
        return self.run.largest(SECONDS) if self.run is not None and self.state == "finished" else None

    @property
    def loss(self) -> float | None:
        """Validation loss of the saved model, nats/target; NaN if the run diverged, None if it has not ended."""
        if self.run is None or self.state not in ("finished", "diverged"):
            return None
        evaluation = final_result(self.run)
        return evaluation.loss if evaluation is not None else None

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores of the saved model on tasks; none if the run has not ended, or only other weights were scored."""
        evaluation = final_result(self.run) if self.run is not None and self.trial is not None else None
        if self.run is None or evaluation is None:
            return ()
        return tuple(score for score in scores(self.run.records, evaluation.step) if score.step == evaluation.step)


@dataclass(frozen=True)
class ArmResult:
    """The runs of one arm. `words`: the arm's choices as requested (`batch.size=16 scaling.rule=sqrt`)."""

    words: str
    arm: Arm | None  # None: no run of the arm has a plan yet, so its numbers are unknown
    outcomes: tuple[Outcome, ...]
    tried: tuple["TriedValue", ...] = ()  # of a tuned arm, in ascending order of value

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    @property
    def diverged(self) -> tuple[Outcome, ...]:
        """The runs that diverged."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "diverged")

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials of the runs that finished or diverged."""
        return tuple(outcome.trial for outcome in self.outcomes if outcome.trial is not None)

    @property
    def scores(self) -> dict[str, tuple[Score, ...]]:
        """The scores of its saved models, one of each seed, by `<task>/<measure>`."""
        found: dict[str, list[Score]] = {}
        for outcome in self.outcomes:
            for score in outcome.scores:
                found.setdefault(score.name, []).append(score)
        return {name: tuple(found[name]) for name in sorted(found)}


@dataclass(frozen=True)
class TriedValue:
    """One value of a tuned field, on the tuning seed."""

    value: float  # as set in the recipe, at its reference batch
    loss: float | None  # validation loss of the saved model, nats/target; None: failed or not finished; inf: diverged
    chosen: bool = False
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Experiment:
    """The current state of a comparison."""

    name: str
    command: str  # starts and resumes the comparison
    task: str
    folder: Path
    arms: tuple[ArmResult, ...]
    tuned: str | None = None  # the field that was tuned, such as optim.lr
    findings: tuple[Finding, ...] = ()
    comparisons: tuple[Comparison, ...] = ()  # every arm against the baseline, in the saved model's loss
    baseline: Arm | None = None
    target: float | None = None  # loss for steps and seconds to target, nats/target
    notes: tuple[str, ...] = ()  # caveats for the reader: mismatches, runs left out, parallel runs
    seconds_left: float | None = None  # None: unknown
    jobs: int = 1  # runs at a time
    effects: tuple[Effect, ...] = ()  # of a 2 × 2 design, in the saved model's loss
    pretraining: tuple[ArmResult, ...] = ()  # runs whose models the arms fine-tune
    planned: int = 0  # number of runs, including those whose tuned value is not known yet
    finished: bool = False  # no run is left to do; some may have failed
    picture: Path | None = None  # a figure that was drawn on request

    @property
    def page(self) -> Path:
        """The path of the HTML page."""
        return self.folder / "report.html"

    @property
    def results(self) -> Path:
        """The path of the results as JSON."""
        return self.folder / "results.json"

    @property
    def distinct_arms(self) -> tuple[ArmResult, ...]:
        """Arms without repeated sets of runs: if the recipe's own rate is best, the tuned arm equals the arm of the
        rule, and must not be tested twice."""
        by_folders: dict[frozenset[Path], ArmResult] = {}
        for result in self.arms:
            by_folders.setdefault(frozenset(outcome.folder for outcome in result.outcomes), result)
        return tuple(by_folders.values())

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every run once, including pretraining and tuning."""
        results = (*self.pretraining, *self.arms)
        tried = [tried.outcome for result in results for tried in result.tried if tried.outcome is not None]
        every = [*(outcome for result in results for outcome in result.outcomes), *tried]
        return tuple({outcome.folder: outcome for outcome in every}.values())


def rows(experiment: Experiment) -> list[dict[str, Any]]:
    """One row per arm as plain data: mean and standard deviation of the loss (nats/target) over seeds, and others."""
    return [_row(result) for result in experiment.arms]


def _row(result: ArmResult) -> dict[str, Any]:
    trials = result.trials
    losses = [trial.final_loss for trial in trials if trial.final_loss is not None]
    runs = [outcome.run for outcome in result.outcomes if outcome.run is not None and outcome.trial is not None]
    evaluations = [evaluation.values for evaluation in map(final_result, runs) if evaluation is not None]
    bits = [values["bits_per_byte"] for values in evaluations if is_number(values.get("bits_per_byte"))]
    finite = bool(losses) and all(map(math.isfinite, losses))
    seconds = [duration for duration in (run.largest(SECONDS) for run in runs) if duration is not None]
    return {
        "choices": result.words,
        "tuned": result.arm is not None and result.arm.tuned,
        "learning_rate": result.arm.learning_rate if result.arm else None,
        "runs": len(trials),
        "failed": len(result.failed),
        "diverged": sum(not math.isfinite(loss) for loss in losses),
        "loss": statistics.fmean(losses) if finite else None,
        "loss_sd": statistics.stdev(losses) if finite and len(losses) > 1 else None,
        "losses": losses,
        "bits_per_byte": statistics.fmean(bits) if bits else None,
        "steps": trials[0].optimizer_steps if trials else None,
        "seconds": statistics.fmean(seconds) if seconds else None,
    }
