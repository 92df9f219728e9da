"""What the runs of a comparison came to: read back from their folders, arm by arm, seed by seed.

`Experiment` is all that the comparison's page, its table and its run in W&B show.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hfbsz.measure.evidence import Finding, findings
from hfbsz.measure.trials import Arm, Comparison, Trial, compare
from hfbsz.report.overfit import of_best_weights, overfitting_of
from hfbsz.report.runs import CLOCK, SECONDS, STEPS, RunData, is_number

LOSS = "eval/loss"


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

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every run once, those of tuning too."""
        tried = [one.outcome for result in self.arms for one in result.tried if one.outcome is not None]
        every = [*(outcome for result in self.arms for outcome in result.outcomes), *tried]
        return tuple({outcome.folder: outcome for outcome in every}.values())

    @property
    def finished(self) -> bool:
        return all(outcome.state in ("finished", "failed") for outcome in self.outcomes)
