"""Advice for a language model: batch, ramp, rate, split and devices, with what the neighbor choices cost."""

import math
import statistics
from collections.abc import Iterator, Sequence

from hfbsz.advice.advice import Advice, Choice, Sure, Wish, shown_batches
from hfbsz.advice.critical import OVER_THE_RUN
from hfbsz.advice.evidence import Evidence
from hfbsz.advice.frontier import Frontier, duration, frontier_of
from hfbsz.advice.known import Known, effective_for, is_like, known_of
from hfbsz.advice.lines import batch_lines, hardware_lines, loss_line, optimizer_lines
from hfbsz.advice.measurement import next_measurement
from hfbsz.advice.progress import effective
from hfbsz.advice.rates import Rate, rate_of
from hfbsz.advice.schedule import batch_words, batches_of, sequences, stages, stages_of
from hfbsz.measure.frontier import Point, point
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.load import LoadedRecipe, load

_SAME = 0.02  # difference of a length, below which the recipe's is kept


def advise(loaded: LoadedRecipe, evidence: Evidence, wish: Wish, asked: str) -> Advice:
    """Advice on a language-modeling recipe. Raises UserError for what cannot be planned."""
    facts = _facts(loaded, evidence, wish)
    plan = resolve(loaded.recipe, 1, facts)
    known = known_of(evidence, plan)
    needed = effective(stages_of(plan), known.critical, known.total)
    if wish.target_loss is not None:
        needed = effective_for(wish.target_loss, known)
    frontier, speed = _frontier(plan, known, evidence, wish)
    notes = list(evidence.notes)
    taken = _pick(frontier, wish, notes)
    batches = batches_of(taken, frontier, known.critical)
    is_given = loaded.sources.get("optim.lr") == "command line"
    rate = rate_of(evidence, loaded.recipe, is_given, batches[0])
    length = sequences(batches, needed, known)
    changes = list(_changes(batches, taken, rate, length, known, plan))
    advised = resolve(load([*wish.words, *changes]).recipe, taken.devices, facts)
    choices = list(_choices(batches, taken, frontier, needed, known, plan.tokens_per_row))
    lines = [
        *batch_lines(advised, taken, known, plan, wish),
        *optimizer_lines(advised, rate),
        *hardware_lines(advised, taken, frontier, speed, choices[0]),
        loss_line(choices[0].loss, known, is_like(evidence, loaded.recipe.optim.name, length)),
    ]
    return Advice(
        loaded.name,
        asked,
        tuple(changes),
        advised,
        tuple(lines),
        tuple(choices),
        next_measurement(lines, changes, wish, known, frontier, advised),
        "pretrain",
        tuple(known.estimates),
        frontier,
        tuple(notes),
    )


def _facts(loaded: LoadedRecipe, evidence: Evidence, wish: Wish) -> Facts:
    rows = next((int(run.rows) for run in evidence.runs if run.rows), None)
    return Facts(rows=wish.train_rows or rows, parameters=wish.parameters)


def _frontier(plan: Plan, known: Known, evidence: Evidence, wish: Wish) -> tuple[Frontier, Sure]:
    """The frontier with what is known in place of its assumptions, and how sure the speed of a device is."""
    given, sources = dict(wish.given), dict[str, str]()
    if "critical" not in given:
        given["critical"] = f"{max(1, round(OVER_THE_RUN * known.critical))}seq"
        sources["critical"] = f"{known.estimates[0].name}, {known.estimates[0].sure}: over the run"
    speed: Sure = "given" if {"speed", "probe"} & wish.given.keys() else "guess"
    runs = [run for run in evidence.runs if run.tokens_per_second and run.micro_batch]
    if speed == "guess" and evidence.probes:
        path, _ = max(evidence.probes, key=lambda one: one[0].stat().st_mtime)
        given["probe"], speed = str(path), "measured"
    elif speed == "guess" and runs:
        each = statistics.median((run.tokens_per_second or 0) / run.processes for run in runs)
        micro = statistics.median_low(run.micro_batch or 1 for run in runs)
        given["speed"], given["busy"] = f"{each:.6g}", f"{micro * plan.tokens_per_row:.6g}"
        source = f"median of {counted(len(runs), 'run')} on {runs[-1].device or 'a device'}"
        sources |= {"speed": source, "busy": "the micro-batch of those runs"}
        speed = "measured"
    return frontier_of(plan, wish.devices, given, wish.parameters, sources), speed


def _pick(frontier: Frontier, wish: Wish, notes: list[str]) -> Point:
    """The point that the wish asks for; a note if none fits."""
    points = frontier.points
    if wish.deadline is not None:
        fitting = [each for each in points if each.seconds <= wish.deadline]
        if not fitting:
            fastest = min(points, key=lambda each: each.seconds)
            notes.append(f"deadline: not met by any number of devices; the fastest takes {duration(fastest.seconds)}")
            return fastest
        return min(fitting, key=lambda each: each.device_seconds)
    if wish.budget is not None:
        price = 1.0 if frontier.price is None else frontier.price
        fitting = [each for each in points if price * each.device_seconds / 3600 <= wish.budget]
        if not fitting:
            cheapest = min(points, key=lambda each: each.device_seconds)
            cost = price * cheapest.device_seconds / 3600
            notes.append(f"budget: not met by any number of devices; the cheapest costs {cost:,.3g}")
            return cheapest
        return min(fitting, key=lambda each: each.seconds)
    return frontier.chosen["balanced"]


def _changes(
    batches: Sequence[int], taken: Point, rate: Rate, length: float, known: Known, plan: Plan
) -> Iterator[str]:
    """The words that make the recipe the advised one. `length`: in sequences."""
    if abs(length / plan.total - 1) > _SAME:
        yield f"duration={round(length)}seq"
    yield from batch_words(batches, known.critical * length / known.total)
    yield f"batch.micro_max={taken.micro_batch}"
    if rate.value is not None and rate.reference is not None:
        yield f"optim.lr={rate.value:.4g}"
        yield f"scaling.reference={rate.reference:g}seq"
    elif plan.recipe.scaling.reference is None:
        yield f"scaling.reference={plan.reference:g}seq"  # else the rate is meant at the first batch, which has changed


def _choices(
    batches: Sequence[int], taken: Point, frontier: Frontier, needed: float, known: Known, tokens_per_row: float
) -> Iterator[Choice]:
    """The advised run, half and twice its batch, and half and twice its devices, each to the same loss."""
    parts = (frontier.steps, frontier.device, frontier.model, frontier.network)
    model = known.progress
    loss = None if model is None else model.offset - model.slope * math.log(needed)
    others: list[tuple[str, list[int], int]] = [
        ("advised", list(batches), taken.devices),
        ("half the batch", [batch // 2 for batch in batches], taken.devices),
        ("twice the batch", [2 * batch for batch in batches], taken.devices),
        ("half the devices", list(batches), taken.devices // 2),
        ("twice the devices", list(batches), 2 * taken.devices),
    ]
    for name, sizes, devices in others:
        if devices < 1 or any(size < devices or size % devices for size in sizes):
            continue
        length = sequences(sizes, needed, known)
        counts = [(amount / batch, batch) for amount, batch in stages(sizes, length, known)]
        seconds = math.fsum(steps * point(*parts, devices, batch // devices).step_seconds for steps, batch in counts)
        cost = None if frontier.price is None else frontier.price * devices * seconds / 3600
        steps = math.fsum(steps for steps, _ in counts)
        yield Choice(name, devices, shown_batches(sizes), length * tokens_per_row, steps, seconds, cost, loss)
