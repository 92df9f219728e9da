"""Branches of a checkpoint at multiples of its batch: an ordinary comparison, and its losses by batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfbsz.display import with_minus
from hfbsz.errors import UserError
from hfbsz.experiment.results import Experiment
from hfbsz.measure.branching import Bracket, Branch
from hfbsz.plan.plan import Plan
from hfbsz.plan.resolve import from_dict
from hfbsz.recipe.amounts import short
from hfbsz.train.checkpoint import read
from hfbsz.train.checkpoint_state import check_complete

MULTIPLES = (1, 2, 4, 8)
_SHARE, _STEPS = 0.2, 20  # of the tokens so far, and steps of the largest batch: how long branches train by default
_EVALUATIONS = 5


@dataclass(frozen=True)
class Point:
    """Where branches start: a checkpoint with the plan of its run."""

    checkpoint: Path
    plan: Plan
    clock: int  # sequences

    @property
    def batch(self) -> int:
        """The batch of the last step before the checkpoint, in sequences."""
        return self.plan.batch_at(max(0, self.clock - 1))


def point_of(path: Path) -> Point:
    """The point at a checkpoint. Raises UserError for a folder that is not a complete checkpoint of a started run."""
    checkpoint = read(path)
    check_complete(checkpoint.state, checkpoint.path)
    progress = checkpoint.state["progress"]
    if progress.get("decisions"):
        raise UserError(f"checkpoint={path}: the batch of its run followed the noise scale: branch from another run")
    if not progress["clock"]:
        raise UserError(f"checkpoint={path}: it was saved before the first step: take a later one")
    return Point(path.resolve(), from_dict(checkpoint.state["plan"]), progress["clock"])


def words_of(point: Point, multiples: Sequence[float], sequences: int | None, seeds: str) -> list[str]:
    """The words of the comparison: the run's recipe at each multiple of its batch, at a constant rate,
    without averaged weights, which are mostly those before the branch.

    The rate and weight decay are those of the checkpoint at its batch, and follow the batch by the recipe's rules.
    `sequences`: how many each branch trains on; None: a fifth of those so far, and at least 20 steps of the largest
    batch. `seeds`: separated by commas; another seed than the run's orders the rows otherwise, so that a branch may see
    some again. Raises UserError for multiples that do not rise from 1.
    """
    batches = [int(multiple * point.batch) for multiple in multiples]
    fractional = any(not float(multiple).is_integer() for multiple in multiples)
    if fractional or batches != sorted(set(batches)) or batches[0] != point.batch or len(batches) < 2:
        raise UserError("multiples must be whole and rise from 1, the run's own batch, such as multiples=1,2,4,8")
    largest = batches[-1]
    wanted = sequences or max(_SHARE * point.clock, _STEPS * largest)
    length = math.ceil(wanted / largest) * largest  # full steps of every batch
    last = max(0, point.clock - point.batch)
    step = point.plan.step(last)
    return [
        f"recipe={point.checkpoint.parent / 'recipe.yaml'}",
        "output_dir=null",
        f"branch={point.checkpoint}",
        f"batch.size={','.join(f'{batch}seq' for batch in batches)}",
        "batch.start=null",
        "batch.ramp=null",
        f"scaling.reference={point.batch}seq",
        f"optim.lr={step.learning_rate!r}",
        f"optim.weight_decay={step.weight_decay!r}",
        f"optim.betas=[{step.betas[0]!r},{step.betas[1]!r}]",
        f"optim.eps={step.eps!r}",
        "schedule.shape=constant",
        "schedule.warmup=0%",
        f"duration={point.clock + length}seq",
        f"eval.every={math.ceil(length / _EVALUATIONS)}seq",
        "checkpoint.save=last",
        "eval.patience=null",
        "eval.target=null",
        "optim.average=null",
        f"seed={seeds}",
    ]


def branches_of(experiment: Experiment) -> list[Branch]:
    """The branches of a finished comparison, by rising batch. Raises UserError if one has no loss."""
    branches = []
    for result in experiment.arms:
        losses = tuple(math.inf if trial.final_loss is None else trial.final_loss for trial in result.trials)
        if result.arm is None or len(losses) < len(result.outcomes):
            raise UserError(f"critical: {result.words} has failed: the same command runs it again")
        branches.append(Branch(result.arm.batch, losses))
    return sorted(branches, key=lambda branch: branch.batch)


def lines_of(point: Point, branches: Sequence[Branch], found: Bracket) -> list[str]:
    """The branches and the bracket as text."""
    tokens = short(point.clock * point.plan.tokens_per_row)
    upper = "no larger batch was tried" if found.above is None else f"{found.above:,} sequences cost loss"
    lines = [f"critical batch by branching, after {tokens} tokens at a batch of {point.batch:,} sequences", ""]
    lines.append(f"{'batch':>12} {'k':>5} {'loss':>9} {'seeds':>6}   above the lowest of smaller batches")
    lowest = math.inf
    for branch in branches:
        above = with_minus(f"{branch.mean - lowest:+.4f} nats/target") if math.isfinite(lowest) else "–"
        multiple = branch.batch / point.batch
        lines.append(f"{branch.batch:>8,} seq {multiple:>5g} {branch.mean:>9.4f} {len(branch.losses):>6}   {above}")
        lowest = min(lowest, branch.mean)
    return [
        *lines,
        "",
        f"critical     at least {found.batch:,} sequences, the largest batch within {found.tolerance:.4f} nats/target",
        f"             of the lowest loss of smaller ones; {upper} (Merrill et al. 2025)",
    ]
