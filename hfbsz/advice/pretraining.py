"""Advice for a language model: batch, ramp, rate, split and devices, with what the neighbor choices cost."""

import math
import statistics
from collections.abc import Collection, Iterator, Sequence

from hfbsz.advice.advice import Advice, Choice, Sure, Wish
from hfbsz.advice.critical import OVER_THE_RUN
from hfbsz.advice.evidence import Evidence, PastRun, speed_key
from hfbsz.advice.frontier import Frontier, frontier_of
from hfbsz.advice.known import Known, effective_for, is_like, known_of
from hfbsz.advice.lines import batch_lines, hardware_lines, loss_line, optimizer_lines
from hfbsz.advice.measurement import next_measurement
from hfbsz.advice.progress import effective
from hfbsz.advice.rates import Rate, rate_of
from hfbsz.advice.schedule import batch_words, batches_of, sequences, stages, stages_of
from hfbsz.errors import UserError
from hfbsz.measure.frontier import Point, point
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import Amount, counted, duration, shown_batches, sized
from hfbsz.recipe.law_name import LawName
from hfbsz.recipe.load import LoadedRecipe, load

_SAME = 0.02  # difference of a length, below which the recipe's is kept


def advise(loaded: LoadedRecipe, evidence: Evidence, wish: Wish, asked: str) -> Advice:
    """Advice on a language-modeling recipe. Raises UserError for what cannot be planned."""
    facts = _facts(loaded, evidence, wish)
    plan = resolve(loaded.recipe, 1, facts)
    given = _given_critical(plan, wish)
    known = known_of(evidence, plan, given)
    notes = [*evidence.notes, *_notes(plan)]
    if wish.target_loss is not None:
        needed = effective_for(wish.target_loss, known)
        batches = [phase.batch for phase in plan.phases if phase.steps]
        length = sequences(batches, needed, known)
        plan = resolve(load([*wish.words, f"duration={round(length)}seq"]).recipe, 1, facts)
        known = known_of(evidence, plan, given)
    else:
        needed = effective(stages_of(plan), known.critical, known.total)
    frontier, speed = _frontier(plan, known, evidence, wish)
    taken = _pick(frontier, wish, notes)
    batches = [taken.batch] if plan.recipe.batch.by_length else batches_of(taken, frontier, known.critical)
    set_by_user = {name for name, source in loaded.sources.items() if source == "command line"}
    rate = rate_of(evidence, loaded.recipe, "optim.lr" in set_by_user, batches[0], known.total)
    length = sequences(batches, needed, known)
    own_total = resolve(loaded.recipe, 1, facts).total
    changes = list(_changes(batches, taken, rate, length, known, plan, own_total, set_by_user))
    advised = resolve(load([*wish.words, *changes]).recipe, taken.devices, facts)
    choices = list(_choices(batches, taken, frontier, needed, known, plan.tokens_per_row))
    notes += _unmet(choices[0], wish, notes)
    lines = [
        *batch_lines(advised, taken, known, plan, wish, speed),
        *optimizer_lines(advised, rate, set_by_user),
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
        next_measurement(lines, rate, changes, wish, known, frontier, advised),
        "pretrain",
        tuple(known.estimates),
        frontier,
        tuple(notes),
    )


def _facts(loaded: LoadedRecipe, evidence: Evidence, wish: Wish) -> Facts:
    rows = next((int(run.rows) for run in evidence.runs if run.rows), None)
    mean = None
    if not loaded.recipe.data.pack:  # else rows are full
        mean = next((run.tokens / run.sequences for run in evidence.runs if run.tokens), None)
        mean = mean or float(loaded.recipe.data.sequence_length)
    return Facts(rows=wish.train_rows or rows, tokens_per_row=mean, parameters=wish.parameters)


def _given_critical(plan: Plan, wish: Wish) -> float | None:
    """The user's critical batch over the run, in sequences. Raises UserError."""
    if "critical" not in wish.given:
        return None
    try:
        value = Amount.parse(wish.given["critical"]).sequences(tokens_per_row=plan.tokens_per_row)
    except (LookupError, ValueError) as problem:
        raise UserError(f"frontier.critical: {problem}") from None
    return max(value, 1e-9)  # 0 is refused by the frontier


def _notes(plan: Plan) -> Iterator[str]:
    if plan.recipe.batch.ramp is not None and plan.recipe.batch.ramp.startswith(("noise", "critical")):
        yield (
            f"batch.ramp={plan.recipe.batch.ramp} grows by what a run measures: the recipe is taken for one that stays "
            f"at {counted(plan.phases[0].batch, 'sequence')}"
        )


def _frontier(plan: Plan, known: Known, evidence: Evidence, wish: Wish) -> tuple[Frontier, Sure]:
    """The frontier with what is known in place of its assumptions, and how sure the speed of a device is."""
    given, sources = dict(wish.given), dict[str, str]()
    if "critical" not in given:
        given["critical"] = f"{max(1, round(OVER_THE_RUN * known.critical))}seq"
        sources["critical"] = f"{known.estimates[0].name}, {known.estimates[0].sure}: over the run"
    speed: Sure = "given" if {"speed", "probe"} & wish.given.keys() else "assumed"
    runs, alike = _timed_runs(evidence, plan)
    if speed == "assumed" and evidence.probes:
        same = [probe for probe in evidence.probes if speed_key(probe.recipe) == speed_key(plan.recipe)]
        newest = max(same or evidence.probes, key=lambda probe: probe.modified)
        given["probe"], speed = str(newest.path), "measured" if same else "inferred"
        if not same:
            sources["probe"] = "with other settings (compilation, precision or optimizer)"
    elif speed == "assumed" and runs:
        each = statistics.median((run.tokens_per_second or 0) / run.processes for run in runs)
        micro = statistics.median_low(run.micro_batch or 1 for run in runs)
        given["speed"] = f"{each:.6g}"
        given.setdefault("busy", f"{micro * plan.tokens_per_row:.6g}")
        source = f"median of {counted(len(runs), 'run')} on {runs[-1].device or 'a device'}"
        sources |= {"speed": source}
        if "busy" not in wish.given:
            sources["busy"] = "the micro-batch of those runs"
        speed = "measured" if alike else "inferred"
    return frontier_of(plan, wish.devices, given, wish.parameters, sources), speed


def _timed_runs(evidence: Evidence, plan: Plan) -> tuple[list[PastRun], bool]:
    """The runs that tell the speed: those on the device of the newest one, with the settings of the plan if there are
    any; and whether there are."""
    runs = [run for run in evidence.runs if run.tokens_per_second and run.micro_batch]
    if not runs:
        return [], False
    newest = max(runs, key=lambda run: (run.folder / "records.jsonl").stat().st_mtime)
    runs = [run for run in runs if run.device == newest.device]
    alike = [run for run in runs if speed_key(run.recipe) == speed_key(plan.recipe)]
    return alike or runs, bool(alike)


def _pick(frontier: Frontier, wish: Wish, notes: list[str]) -> Point:
    """The point that the wish asks for; a note if none fits."""
    points = frontier.points
    asked = f"{points[0].devices:,} to {points[-1].devices:,} devices" if len(points) > 1 else counted(
        points[0].devices, "device"
    )  # fmt: skip
    if wish.deadline is not None:
        fitting = [each for each in points if each.seconds <= wish.deadline]
        if not fitting:
            fastest = min(points, key=lambda each: each.seconds)
            notes.append(f"deadline: not met by {asked}; the fastest takes {duration(fastest.seconds)}")
            return fastest
        return min(fitting, key=lambda each: each.device_seconds)
    if wish.budget is not None:
        price, unit = (1.0, " device-hours") if frontier.price is None else (frontier.price, "")
        fitting = [each for each in points if price * each.device_seconds / 3600 <= wish.budget]
        if not fitting:
            cheapest = min(points, key=lambda each: each.device_seconds)
            cost = sized(price * cheapest.device_seconds / 3600)
            notes.append(f"budget: not met by {asked}; the cheapest takes {cost}{unit}")
            return cheapest
        return min(fitting, key=lambda each: each.seconds)
    return frontier.chosen["balanced"]


def _unmet(choice: Choice, wish: Wish, notes: Sequence[str]) -> list[str]:
    """A note where the schedule of batches takes more than its point on the frontier, and more than was asked for."""
    if wish.deadline is not None and choice.seconds > wish.deadline and not any("deadline" in one for one in notes):
        return [f"deadline: exceeded by the schedule of batches, which takes {duration(choice.seconds)}"]
    spent = choice.device_seconds / 3600 if choice.cost is None else choice.cost
    if wish.budget is not None and spent > wish.budget and not any("budget" in one for one in notes):
        return [f"budget: exceeded by the schedule of batches, which takes {sized(spent)}"]
    return []


def _changes(
    batches: Sequence[int],
    taken: Point,
    rate: Rate,
    length: float,
    known: Known,
    plan: Plan,
    own_total: int,
    set_by_user: Collection[str],
) -> Iterator[str]:
    """The words that make the recipe the advised one. `length`: in sequences; `own_total`: that of the recipe."""
    recipe = plan.recipe
    if abs(length / own_total - 1) > _SAME or recipe.duration.unit == "steps":
        yield f"duration={round(length)}seq"
    yield from batch_words(batches, known.critical * length / known.total)
    if recipe.batch.micro_tokens is None and "batch.micro_max" not in set_by_user:
        yield f"batch.micro_max={taken.micro_batch}"
    if rate.value is not None and rate.reference is not None:
        yield f"optim.lr={rate.value:.4g}"
        yield f"scaling.reference={rate.reference:g}seq"
    elif recipe.scaling.reference is None and not isinstance(recipe.optim.lr, LawName):
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
        ("half the devices", list(batches), taken.devices // 2 if taken.devices % 2 == 0 else 0),
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
