"""Advice for fine-tuning: batch, rate and length from finished runs, whose overfitting says when to stop."""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from hfbsz.advice.advice import Advice, Choice, Line, Measurement, Sure, Wish
from hfbsz.advice.evidence import Evidence, PastRun
from hfbsz.advice.measurement import replaced
from hfbsz.display import command
from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import counted, duration, shown_batches
from hfbsz.recipe.load import LoadedRecipe, load
from hfbsz.system.command_name import command_name

_TIED = 0.01  # nats/target, between arms of one seed each
_LONGER = 1.5  # times the epochs to the best evaluation: so that patience can tell it was the best
_SEEDS = 3
_ROWS, _MICRO = 1000, 8  # taken where they are not known: training rows, and rows of a micro-batch


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
    notes = list(evidence.notes)
    if rows is None and (rows := loaded.recipe.data.rows) is None:
        rows = _ROWS
        notes.append(f"train_rows: the number of training rows is not known, and taken to be {rows:,}")
    arm = best_arm(arms) if arms else None
    micro = next((run.micro_batch for run in (arm.runs if arm else ()) if run.micro_batch), _MICRO)
    facts = Facts(rows=rows, tokens_per_row=mean or float(loaded.recipe.data.sequence_length), micro_max=micro)
    given = {name for name, source in loaded.sources.items() if source == "command line"}
    changes = [] if arm is None else [word for word in _changes(arm, loaded) if word.partition("=")[0] not in given]
    advised = resolve(load([*wish.words, *changes]).recipe, devices, facts)
    lines = list(_lines(arm, arms, advised, rows, given))
    choices = [
        _choice(f"arm {number}" + (" (best)" if each is arm else ""), each) for number, each in enumerate(arms, 1)
    ]
    choices.sort(key=lambda choice: not choice.name.endswith("(best)"))
    return Advice(
        loaded.name, asked, tuple(changes), advised, tuple(lines), tuple(choices), _next(arm, arms, changes, wish),
        "finetune", notes=tuple(notes),
    )  # fmt: skip


def _changes(arm: Arm, loaded: LoadedRecipe) -> Iterator[str]:
    """The words that make the recipe that of the arm, of the length at which it was best."""
    run, recipe = arm.runs[0], loaded.recipe
    batch = run.stages[-1][1]
    yield f"batch.size={batch}seq"
    if recipe.batch.ramp is not None or recipe.batch.start is not None:
        yield from ("batch.start=null", "batch.ramp=null")
    plan = resolve(run.recipe, run.processes, run.facts)
    yield f"optim.lr={plan.peak_rate(batch):.6g}"
    yield f"scaling.reference={batch}seq"
    decay = plan.step(0).weight_decay
    if decay != recipe.optim.weight_decay:
        yield f"optim.weight_decay={decay:.6g}"
    if run.recipe.optim.betas != recipe.optim.betas:
        yield f"optim.betas=[{run.recipe.optim.betas[0]:g},{run.recipe.optim.betas[1]:g}]"
    for name in ("shape", "warmup", "floor"):
        if (value := getattr(run.recipe.schedule, name)) != getattr(recipe.schedule, name):
            yield f"schedule.{name}={str(value).replace(' ', '')}"
    if arm.epochs is not None:
        yield f"duration={math.ceil(_LONGER * arm.epochs)}epochs"
    yield "checkpoint.save=best"


def _lines(arm: Arm | None, arms: Sequence[Arm], advised: Plan, rows: int, given: Collection[str]) -> Iterator[Line]:
    none = "no finished run of this model and data: the recipe's own"
    sure: Sure = "assumed" if arm is None else "measured"
    own = {field for field in ("batch.size", "optim.lr", "duration") if field in given}

    def sure_of(field: str) -> Sure:
        return "given" if field in own else sure

    why = "the training set of the finished runs" if arm is not None else "of the command line, the recipe or assumed"
    yield Line("rows", f"{rows:,} training rows", sure, why)
    if arm is None:
        why = none
    else:
        why = f"{arm.loss:.4f} nats/target over {counted(len(arm.runs), 'seed')}; {counted(len(arms), 'arm')} tried"
        why += ", of which the lowest is not told from it by the seeds" if arm is not arms[0] else ""
    yield Line("batch", f"{advised.largest_batch:,} sequences", sure_of("batch.size"), why)
    why = none if arm is None else f"that of the best arm, {arm.runs[0].folder.name}"
    yield Line("learning rate", f"{advised.peak_rate(advised.largest_batch):.3g}", sure_of("optim.lr"), why)
    if arm is None or arm.epochs is None:
        yield Line("epochs", f"{advised.recipe.duration} planned", sure_of("duration") if own else "assumed", none)
    else:
        shown = f"best after {arm.epochs:.2g}" + (", then overfitting is to be expected" if arm.overfitted else "")
        count = f"{arm.overfitted} of {counted(len(arm.runs), 'run')} overfitted after it"
        yield Line("epochs", shown, "measured", count)
        why = f"{_LONGER:g} times the epochs to the best; the best weights are saved"
        length = f"{advised.recipe.duration} = {counted(advised.steps, 'step')}"
        yield Line("length", length, "given" if "duration" in own else "inferred", why)
    if arm is None:
        yield Line("expected loss", "not known", "assumed", none)
        return
    shown = f"{arm.loss:.3f}" + ("" if arm.spread is None else f" ± {arm.spread:.3f}") + " nats/target"
    why = f"mean of {counted(len(arm.runs), 'seed')}; ±: their standard deviation"
    if own:
        why += f"; of the best arm, not with the {' and '.join(sorted(own))} of the command line"
    yield Line("expected loss", shown, "inferred" if own else "measured", why)
    run = arm.runs[0]
    if run.seconds:
        each = statistics.fmean(each.seconds / each.sequences for each in arm.runs) * run.processes
        seconds = each * advised.total / advised.world_size
        why = f"by the speed of those runs on {run.device or 'a device'}; without evaluations"
        yield Line("time", duration(seconds), "inferred", why)


def _choice(name: str, arm: Arm) -> Choice:
    run = arm.runs[0]
    seconds, tokens = (
        statistics.fmean(values) for values in zip(*((e.seconds, e.tokens) for e in arm.runs), strict=True)
    )
    batches = shown_batches([batch for _, batch in run.stages])
    rate = f", rate {run.recipe.optim.lr:g}" if isinstance(run.recipe.optim.lr, float) else ""
    return Choice(f"{name}{rate}", run.processes, batches, tokens, run.steps, seconds, None, arm.loss)


def _next(arm: Arm | None, arms: Sequence[Arm], changes: Sequence[str], wish: Wish) -> Measurement | None:
    """What to measure next; `changes` make the recipe the advised one."""
    if arm is None:
        return Measurement("epochs, expected loss", f"{command_name('finetune')} {command(*wish.words)}", None)
    seconds = statistics.fmean(run.seconds for run in arm.runs)
    batch = arm.runs[0].stages[-1][1]
    tried = {each.runs[0].stages[-1][1] for each in arms}
    others = [size for size in (batch // 2, 2 * batch) if size and size not in tried]
    if others:
        more = [f"batch.size={','.join(f'{size}seq' for size in others)}"]
        words = command(*replaced(replaced(wish.words, changes), more))
        return Measurement("batch", f"{command_name('compare')} {words}", len(others) * seconds)
    if len(arm.runs) < _SEEDS:
        more = [f"seed={','.join(str(number) for number in range(_SEEDS))}"]
        words = command(*replaced(replaced(wish.words, changes), more))
        return Measurement("expected loss", f"{command_name('compare')} {words}", _SEEDS * seconds)
    return None
