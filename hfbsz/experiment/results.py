"""What the runs of a comparison came to: read back from their folders, arm by arm, seed by seed.

`Experiment` is all that the comparison's page, its table and its run in W&B show.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.experiment.statistics.evidence import Finding
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.trials import Arm, Comparison, Trial
from hfbsz.records.evaluations import kept_of
from hfbsz.records.run_data import SECONDS, RunData, is_number


@dataclass(frozen=True)
class Outcome:
    """One run of a comparison: planned, at work, or ended."""

    seed: int
    folder: Path
    state: str  # waiting | running | finished | preempted | failed | diverged
    why: str | None = None  # why it failed or diverged, in a line
    share: float = 0.0  # of its budget that is done, 0 to 1
    run: RunData | None = None  # its records; None: it has none yet
    trial: Trial | None = None  # None: it has not finished
    best_step: int | None = None  # of the lowest validation loss (fixed part); None: none below that before training
    best_epoch: float | None = None
    onset_epoch: float | None = None  # of the onset of overfitting; None: none was sure
    seconds_to_best: float | None = None  # training time until then
    padding: float | None = None  # share of padding among the positions computed
    not_better: str | None = None  # where the model is no better than before training: what is to be said of it

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to run."""
        return self.state in ("finished", "failed", "diverged")

    @property
    def loss(self) -> float | None:
        """Validation loss of the model that a finished run keeps, nats/target; NaN of a run that diverged."""
        if self.run is None or self.state not in ("finished", "diverged"):
            return None
        kept = kept_of(self.run)
        return kept.loss if kept is not None else None


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
    def diverged(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state == "diverged")

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(outcome.trial for outcome in self.outcomes if outcome.trial is not None)


@dataclass(frozen=True)
class Tried:
    """One value of a tuned field, on the tuning seed."""

    value: float  # as the recipe has it, at its reference batch
    loss: float | None  # of the kept model, validation, nats/target; None: failed or not finished; infinite: diverged
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
    effects: tuple[Effect, ...] = ()  # of a 2 × 2, in the kept model's loss
    before: tuple[ArmResult, ...] = ()  # runs that come before the arms: the pretraining of what is fine-tuned
    planned: int = 0  # runs in all, those included whose numbers a search has yet to find
    finished: bool = False  # nothing is left to run, whether or not all of it went well

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def distinct(self) -> tuple[ArmResult, ...]:
        """Arms whose runs are not those of an arm before: where the recipe's own rate was best, the tuned arm is the
        rule's, and no test is to count it twice."""
        first: dict[frozenset[Path], ArmResult] = {}
        for result in self.arms:
            first.setdefault(frozenset(outcome.folder for outcome in result.outcomes), result)
        return tuple(first.values())

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every run once, those of tuning too."""
        results = (*self.before, *self.arms)
        tried = [one.outcome for result in results for one in result.tried if one.outcome is not None]
        every = [*(outcome for result in results for outcome in result.outcomes), *tried]
        return tuple({outcome.folder: outcome for outcome in every}.values())


def rows(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for every arm: mean and standard deviation over seeds, as plain data."""
    return [_row(result) for result in experiment.arms]


def _row(result: ArmResult) -> dict[str, Any]:
    trials = result.trials
    losses = [trial.final_loss for trial in trials if trial.final_loss is not None]
    last = [outcome.run for outcome in result.outcomes if outcome.run is not None and outcome.trial is not None]
    kept = [one.values for one in map(kept_of, last) if one is not None]
    bits = [values["bits_per_byte"] for values in kept if is_number(values.get("bits_per_byte"))]
    finite = bool(losses) and all(map(math.isfinite, losses))
    seconds = [longest for longest in (run.largest(SECONDS) for run in last) if longest is not None]
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
