"""Advice for fine-tuning: batch, rate and length from finished runs, whose overfitting says when to stop."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hfbsz.advice.advice import Advice, Choice, Line, Measurement, Sure, Wish, shown_batches
from hfbsz.advice.evidence import Evidence, PastRun
from hfbsz.advice.frontier import duration
from hfbsz.display import command
from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import Amount, counted
from hfbsz.recipe.load import LoadedRecipe, load
from hfbsz.system.command_name import command_name

_TIED = 0.01  # nats/target, between arms of one seed each
_LONGER = 1.5  # times the epochs to the best evaluation: so that patience can tell it was the best
_SEEDS = 3


@dataclass(frozen=True)
class Arm:
    """Finished runs that differ in their seeds only."""

    runs: tuple[PastRun, ...]

    @property
    def loss(self) -> float:
        """Mean validation loss of the saved models, nats/target."""
        return statistics.fmean(run.loss for run in self.runs)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one."""
        return statistics.stdev(run.loss for run in self.runs) if len(self.runs) > 1 else None

    @property
    def epochs(self) -> float | None:
        """Mean epochs to the best evaluation; None: not known."""
        known = [run.best_clock / run.rows for run in self.runs if run.best_clock and run.rows]
        return statistics.fmean(known) if known else None

    @property
    def overfitted(self) -> int:
        """How many of its runs overfitted."""
        return sum(run.overfitting is not None and run.overfitting.onset is not None for run in self.runs)

    @property
    def steps_to_best(self) -> float:
        """Optimizer steps to the best evaluation."""
        return (self.epochs or math.inf) * (self.runs[0].rows or 1) / self.runs[0].batch


def arms_of(runs: Sequence[PastRun]) -> list[Arm]:
    """The arms of runs, the lowest mean loss first."""
    found: dict[str, list[PastRun]] = defaultdict(list)
    for run in runs:
        found[run.arm].append(run)
    return sorted((Arm(tuple(members)) for members in found.values()), key=lambda arm: arm.loss)


def best_arm(arms: Sequence[Arm]) -> Arm:
    """Of the arms whose loss the seeds do not tell from the lowest, the one with the fewest steps to it."""
    lowest = arms[0]
    tied = max(_TIED, *(arm.spread or 0.0 for arm in arms[:2]))
    return min((arm for arm in arms if arm.loss <= lowest.loss + tied), key=lambda arm: arm.steps_to_best)


def advise(loaded: LoadedRecipe, evidence: Evidence, wish: Wish, asked: str) -> Advice:
    """Advice on a fine-tuning recipe. Raises UserError for what cannot be planned."""
    if wish.deadline is not None or wish.budget is not None or wish.target_loss is not None or wish.given:
        raise UserError("deadline, budget, target_loss and frontier are for language modeling: leave them out")
    if not wish.devices.isdigit() or not int(wish.devices):
        raise UserError(f"devices={wish.devices}: for fine-tuning, write one number of devices")
    devices = int(wish.devices)
    arms = arms_of(evidence.of_optimizer(loaded.recipe.optim.name))
    rows = wish.train_rows or next((int(run.rows) for run in evidence.runs if run.rows), None)
    mean = next((run.tokens / run.sequences for run in evidence.runs if run.sequences), None)
    facts = Facts(rows=rows, tokens_per_row=mean or float(loaded.recipe.data.sequence_length), micro_max=1)
    arm = best_arm(arms) if arms else None
    given = {name for name, source in loaded.sources.items() if source == "command line"}
    changes = [] if arm is None else [word for word in _changes(arm) if word.partition("=")[0] not in given]
    advised = resolve(load([*wish.words, *changes]).recipe, devices, facts)
    lines = list(_lines(arm, arms, advised, rows))
    choices = [_choice("advised" if each is arm else f"arm {number}", each) for number, each in enumerate(arms, 1)]
    choices.sort(key=lambda choice: choice.name != "advised")
    return Advice(
        loaded.name, asked, tuple(changes), advised, tuple(lines), tuple(choices), _next(arm, arms, wish, loaded),
        "finetune", notes=evidence.notes,
    )  # fmt: skip


def _changes(arm: Arm) -> Iterator[str]:
    run = arm.runs[0]
    yield f"batch.size={run.stages[-1][1]}seq"
    if isinstance(run.recipe.optim.lr, float):
        yield f"optim.lr={run.recipe.optim.lr:g}"
    if isinstance(run.recipe.scaling.reference, Amount):
        yield f"scaling.reference={str(run.recipe.scaling.reference).replace(' ', '')}"
    if arm.epochs is not None:
        yield f"duration={math.ceil(_LONGER * arm.epochs)}epochs"
    yield "checkpoint.save=best"


def _lines(arm: Arm | None, arms: Sequence[Arm], advised: Plan, rows: int | None) -> Iterator[Line]:
    none = "no finished run of this model and data: the recipe's own"
    sure: Sure = "guess" if arm is None else "measured"
    yield Line("rows", "not known" if rows is None else f"{rows:,} training rows", "guess" if rows is None else "given",
               "the training set")  # fmt: skip
    if arm is None:
        why = none
    else:
        why = f"{arm.loss:.4f} nats/target over {counted(len(arm.runs), 'seed')}; {counted(len(arms), 'arm')} tried"
        why += ", of which the lowest is not told from it by the seeds" if arm is not arms[0] else ""
    yield Line("batch", f"{advised.largest_batch:,} sequences", sure, why)
    yield Line("learning rate", f"{advised.peak_rate(advised.largest_batch):.3g}", sure, none if arm is None else
               f"that of the best arm, {arm.runs[0].folder.name}")  # fmt: skip
    if arm is None or arm.epochs is None:
        yield Line("epochs", f"{advised.recipe.duration} planned", "guess", none)
    else:
        count = f"{arm.overfitted} of {counted(len(arm.runs), 'run')} overfitted after it"
        yield Line("epochs", f"best after {arm.epochs:.2g}, then overfitting is to be expected" if arm.overfitted else
                   f"best after {arm.epochs:.2g}", "measured", count)  # fmt: skip
        why = f"{_LONGER:g} times the epochs to the best; the best weights are saved"
        yield Line("length", f"{advised.recipe.duration} = {counted(advised.steps, 'step')}", "inferred", why)
    loss = "not known" if arm is None else f"{arm.loss:.3f}" + ("" if arm.spread is None else f" ± {arm.spread:.3f}")
    yield Line("expected loss", loss + ("" if arm is None else " nats/target"), sure, none if arm is None else
               f"mean of {counted(len(arm.runs), 'seed')}; ±: their standard deviation")  # fmt: skip
    if arm is not None and arm.runs[0].seconds:
        seconds = statistics.fmean(run.seconds for run in arm.runs)
        yield Line("time", duration(seconds), "measured", f"of those runs, on {arm.runs[0].device or 'a device'}")


def _choice(name: str, arm: Arm) -> Choice:
    run = arm.runs[0]
    seconds, tokens = (
        statistics.fmean(values) for values in zip(*((e.seconds, e.tokens) for e in arm.runs), strict=True)
    )
    batches = shown_batches([batch for _, batch in run.stages])
    rate = f", rate {run.recipe.optim.lr:g}" if isinstance(run.recipe.optim.lr, float) else ""
    return Choice(f"{name}{rate}", run.processes, batches, tokens, run.steps, seconds, None, arm.loss)


def _next(arm: Arm | None, arms: Sequence[Arm], wish: Wish, loaded: LoadedRecipe) -> Measurement | None:
    """The cheapest measurement that makes the advice more sure."""
    recipe = [word for word in wish.words if word.partition("=")[0] != "batch.size"]
    if arm is None:
        return Measurement("epochs, expected loss", f"{command_name('finetune')} {command(*wish.words)}", None)
    seconds = statistics.fmean(run.seconds for run in arm.runs)
    batch = arm.runs[0].stages[-1][1]
    tried = {each.runs[0].stages[-1][1] for each in arms}
    others = [size for size in (batch // 2, 2 * batch) if size and size not in tried]
    if others:
        sizes = ",".join(f"{size}seq" for size in others)
        words = command(*recipe, f"batch.size={sizes}")
        return Measurement("batch", f"{command_name('compare')} {words}", len(others) * seconds)
    if len(arm.runs) < _SEEDS:
        seeds = ",".join(str(number) for number in range(_SEEDS))
        words = command(*recipe, f"batch.size={batch}seq", f"seed={seeds}")
        return Measurement("expected loss", f"{command_name('compare')} {words}", (_SEEDS - len(arm.runs)) * seconds)
    return None
