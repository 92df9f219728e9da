"""Advice for a language model: batch, ramp, rate, split and devices, with what the neighbor choices cost."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfbsz.advice import progress as progress_model
from hfbsz.advice.advice import Advice, Choice, Estimate, Line, Measurement, Sure, Wish, shown_batches, sized
from hfbsz.advice.critical import OVER_THE_RUN, estimates
from hfbsz.advice.evidence import Evidence, PastRun
from hfbsz.advice.frontier import Frontier, duration, frontier_of
from hfbsz.advice.progress import Progress, Stages, effective, slope_of
from hfbsz.advice.rates import Rate, best_arms, rate_of
from hfbsz.display import command
from hfbsz.errors import UserError
from hfbsz.measure.frontier import BACKWARD, Point, point
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import counted, short
from hfbsz.recipe.load import LoadedRecipe, load
from hfbsz.system.command_name import command_name

_FIRST = 0.05  # share of the run at whose critical batch a ramp starts
_REACHED = 0.75  # share of the run by which a ramp is at its largest batch
_KNEE = 0.95  # of the best throughput
_TOLERANCE = 1e-3  # on the sequences to a loss, relative
_SAME = 0.02  # difference of a length, below which the recipe's is kept
_FAR = 100.0  # times the recipe's sequences, either way, to which a loss is not predicted
_SWEEP_RUNS, _SWEEP_SHARE = 18, 0.5  # runs of a sweep, and the share of the duration that one trains on average
_SWEEP_ROWS = 64  # of its evaluations, which are many
_NOISE_SHARE, _NOISE_STEPS = 0.1, 200  # of the duration, and at least, of a run that measures the noise scale
_LIKE = 4.0  # times the sequences of a run, either way, to which its loss is carried


@dataclass(frozen=True)
class Known:
    """What was worked out from the evidence for a run of `total` sequences."""

    total: float
    progress: Progress | None  # of the loss
    schedules: int  # behind it; 0: one run and a critical batch of another kind
    estimates: list[Estimate]

    @property
    def critical(self) -> float:
        """The critical batch at the end of the run, in sequences."""
        return self.estimates[0].value


def advise(loaded: LoadedRecipe, evidence: Evidence, wish: Wish, asked: str) -> Advice:
    """Advice on a language-modeling recipe. Raises UserError for what cannot be planned."""
    facts = _facts(loaded, evidence, wish)
    plan = resolve(loaded.recipe, 1, facts)
    known = known_of(evidence, plan)
    needed = effective(stages_of(plan), known.critical, known.total)
    if wish.target_loss is not None:
        needed = _effective_for(wish.target_loss, known)
    frontier, speed = _frontier(plan, known, evidence, wish)
    notes = list(evidence.notes)
    taken = _pick(frontier, wish, notes)
    batches = _batches(taken, frontier, known.critical)
    is_given = loaded.sources.get("optim.lr") == "command line"
    rate = rate_of(evidence, loaded.recipe, is_given, batches[0])
    length = _sequences(batches, needed, known)
    changes = list(_changes(batches, taken, rate, length, known, plan))
    advised = resolve(load([*wish.words, *changes]).recipe, taken.devices, facts)
    choices = list(_choices(batches, taken, frontier, needed, known, plan.tokens_per_row))
    lines = [
        *_batch_lines(advised, taken, known, plan, wish),
        *_optimizer_lines(advised, rate),
        *_hardware_lines(advised, taken, frontier, speed, choices[0]),
        _loss_line(choices[0].loss, known, _is_like(evidence, loaded.recipe.optim.name, length)),
    ]
    return Advice(
        loaded.name,
        asked,
        tuple(changes),
        advised,
        tuple(lines),
        tuple(choices),
        _next(lines, changes, wish, known, frontier, advised),
        "pretrain",
        tuple(known.estimates),
        frontier,
        tuple(notes),
    )


def _facts(loaded: LoadedRecipe, evidence: Evidence, wish: Wish) -> Facts:
    rows = next((int(run.rows) for run in evidence.runs if run.rows), None)
    return Facts(rows=wish.train_rows or rows, parameters=wish.parameters)


def known_of(evidence: Evidence, plan: Plan) -> Known:
    """The loss and the critical batch of a plan's run, from the evidence."""
    optimizer, total = plan.recipe.optim.name, float(plan.total)
    arms = best_arms(evidence.of_optimizer(optimizer))
    curved = _with_curve([run for run, *_ in arms])
    fitted = None
    if curved is not None:
        fitted = progress_model.fit([(run.stages, loss) for run, loss, _ in arms], curved.stages, curved.curve, total)
    schedules = len(arms) if fitted is not None else 0
    found = estimates(evidence, optimizer, total, plan.tokens_per_row, fitted, schedules)
    if fitted is None and curved is not None:
        run, loss, _ = min(arms, key=lambda arm: (abs(math.log(arm[0].sequences / total)), arm[1]))
        slope = slope_of(curved.stages, curved.curve, found[0].value, total)
        fitted = None if slope is None else Progress.through(run.stages, loss, slope, found[0].value, total)
    return Known(total, fitted, schedules, found)


def _with_curve(runs: Sequence[PastRun]) -> PastRun | None:
    """The run whose curve tells α: of those with enough evaluations, the one with the smallest mean batch."""
    known = [run for run in runs if slope_of(run.stages, run.curve) is not None]
    return min(known, key=lambda run: run.batch, default=None)


def _effective_for(target: float, known: Known) -> float:
    """The effective sequences to a loss. Raises UserError if no run tells."""
    model = known.progress
    if model is None:
        raise UserError(
            "target_loss: no finished run of this model and data tells how the loss falls: train one, or leave it out"
        )
    needed = math.exp((model.offset - target) / model.slope)
    if not 1 / _FAR <= needed / known.total <= _FAR:
        raise UserError(
            f"target_loss={target:g}: {needed / known.total:.3g} times the recipe's sequences would be needed, too far "
            "from what was trained to be predicted"
        )
    return needed


def _stages(batches: Sequence[int], total: float, known: Known) -> list[tuple[float, int]]:
    """The sequences at each batch of doublings over `total` sequences."""
    starts = [0.0, *(total * share for share in _shares(batches, known.critical * total / known.total)), total]
    return [(end - start, batch) for batch, (start, end) in zip(batches, pairwise(starts), strict=True)]


def _sequences(batches: Sequence[int], needed: float, known: Known) -> float:
    """The sequences after which a schedule of batches has an effective number of sequences, by bisection."""

    def reached(total: float) -> float:
        return effective(_stages(batches, total, known), known.critical, known.total)

    low, high = needed, needed
    while reached(high) < needed:
        low, high = high, 2 * high
    while high / low > 1 + _TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reached(middle) < needed else (low, middle)
    return high


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


def _batches(taken: Point, frontier: Frontier, critical: float) -> list[int]:
    """The batches of the run: doublings from what the critical batch early in the run allows, but no less than keeps
    the devices busy, to that of the point."""
    seconds = frontier.device.seconds
    best = max(size / time for size, time in seconds.items())
    knee = min(size for size, time in seconds.items() if size / time >= _KNEE * best)
    first = 2 ** math.floor(math.log2(max(1.0, _FIRST * max(critical, taken.batch / _REACHED))))
    start = taken.batch
    while start % 2 == 0 and start // 2 >= max(knee * taken.devices, first) and (start // 2) % taken.devices == 0:
        start //= 2
    batches = [start]
    while batches[-1] < taken.batch:
        batches.append(2 * batches[-1])
    return batches


def _changes(
    batches: Sequence[int], taken: Point, rate: Rate, length: float, known: Known, plan: Plan
) -> Iterator[str]:
    """The words that make the recipe the advised one. `length`: in sequences."""
    if abs(length / plan.total - 1) > _SAME:
        yield f"duration={round(length)}seq"
    yield from _batch_words(batches, known.critical * length / known.total)
    yield f"batch.micro_max={taken.micro_batch}"
    if rate.value is not None and rate.reference is not None:
        yield f"optim.lr={rate.value:.4g}"
        yield f"scaling.reference={rate.reference:g}seq"
    elif plan.recipe.scaling.reference is None:
        yield f"scaling.reference={plan.reference:g}seq"  # else the rate is meant at the first batch, which has changed


def _batch_words(batches: Sequence[int], critical: float) -> list[str]:
    """The words of a schedule of doublings: each batch from where the critical batch reaches it."""
    if len(batches) == 1:
        return [f"batch.size={batches[0]}seq", "batch.start=null", "batch.ramp=null"]
    shares = _shares(batches, critical)
    stages = [f"{100 * share:.3g}%:{batch}" for share, batch in zip(shares, batches[1:], strict=True)]
    return ["batch.size=null", "batch.start=null", f"batch.ramp={' '.join([f'0:{batches[0]}', *stages])}"]


def _shares(batches: Sequence[int], critical: float) -> list[float]:
    """The share of the run from which each batch but the first is taken, for a critical batch at its end."""
    end = max(critical, batches[-1] / _REACHED)
    return [batch / end for batch in batches[1:]]


def stages_of(plan: Plan) -> Stages:
    """The sequences at each batch of a plan."""
    return [(float(phase.steps * phase.batch), phase.batch) for phase in plan.phases if phase.steps]


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
        length = _sequences(sizes, needed, known)
        counts = [(amount / batch, batch) for amount, batch in _stages(sizes, length, known)]
        seconds = math.fsum(steps * point(*parts, devices, batch // devices).step_seconds for steps, batch in counts)
        cost = None if frontier.price is None else frontier.price * devices * seconds / 3600
        steps = math.fsum(steps for steps, _ in counts)
        yield Choice(name, devices, shown_batches(sizes), length * tokens_per_row, steps, seconds, cost, loss)


def _batch_lines(advised: Plan, taken: Point, known: Known, plan: Plan, wish: Wish) -> Iterator[Line]:
    best = known.estimates[0]
    batches = [phase.batch for phase in advised.phases if phase.steps]
    shown = f"{sized(best.value)} sequences at the end (range {sized(best.low)} to {sized(best.high)})"
    yield Line("critical batch", shown, best.sure, f"{best.name}: {best.why}")
    reason = f"the least time to the loss on {counted(taken.devices, 'device')}, by S = a + b ÷ B and the step's time"
    yield Line("batch", f"{shown_batches(batches)} sequences", best.sure, reason)
    if len(batches) > 1:
        stages = ", ".join(f"{phase.batch:,} from {phase.clock / advised.total:.0%}" for phase in advised.phases)
        yield Line("ramp", stages, best.sure, "each batch from where the critical batch reaches it")
    tokens = advised.total * advised.tokens_per_row
    own = f"the {short(plan.total * plan.tokens_per_row)} of the recipe"
    batches = [phase.batch for phase in plan.phases if phase.steps]
    why = f"the loss that {own} have at {shown_batches(batches)} sequences"
    if wish.target_loss is not None:
        why = f"the sequences to {wish.target_loss:g} nats/target; the recipe has {short(plan.total)}"
    yield Line("length", f"{short(tokens)} tokens in {advised.steps:,} steps", best.sure, why)


def _optimizer_lines(advised: Plan, rate: Rate) -> Iterator[Line]:
    first, largest = advised.step(0), max(advised.phases, key=lambda phase: phase.batch)
    last = advised.step(largest.clock)
    recipe, rule = advised.recipe, f"rule {advised.rule.name}"
    low, high = advised.peak_rate(first.global_batch), advised.peak_rate(largest.batch)
    shown = f"{low:.3g}" if low == high else f"{low:.3g} → {high:.3g}"
    at = f"{advised.rate:.3g} at {advised.reference:g} sequences"
    is_reference = low == high == advised.rate
    sure: Sure = rate.sure if is_reference or rate.sure in ("guess", "given") else "inferred"
    yield Line("learning rate", shown, sure, f"{at}: {rate.why}" + ("" if is_reference else f"; {rule}"))
    yield Line("betas", f"β1 {advised.betas[0]:g}, β2 {advised.betas[1]:g}", "guess", f"β2 {recipe.scaling.beta2}")
    decays = [first.weight_decay, last.weight_decay]
    shown = f"{decays[0]:.3g}" if decays[0] == decays[1] else f"{decays[0]:.3g} → {decays[1]:.3g}"
    yield Line("weight decay", shown, "guess", f"rule {recipe.scaling.weight_decay}")
    warmup = advised.shape.warmup
    steps = next((number for number, step in enumerate(advised.walk()) if step.clock >= warmup), advised.steps)
    why = f"{recipe.schedule.warmup} of the recipe, then {advised.shape.name}"
    yield Line("warmup", f"{warmup:,.0f} sequences = {counted(steps, 'step')}", "guess", why)


def _hardware_lines(advised: Plan, taken: Point, frontier: Frontier, speed: Sure, choice: Choice) -> Iterator[Line]:
    device = next(one for one in frontier.assumptions if one.name == "device")
    counts = [advised.accumulation(phase.batch) or 1 for phase in advised.phases if phase.steps]
    accumulation = shown_batches(counts)
    split = f"micro-batch {advised.micro_batch} × accumulation {accumulation} × {counted(taken.devices, 'device')}"
    yield Line("split", split, speed, f"{device.value}, {device.source}")
    more = "" if taken.devices == 1 else ", the network is assumed"
    value = f"{duration(choice.seconds)}, {duration(choice.device_seconds)} of device time"
    if choice.cost is not None:
        value += f", {choice.cost:,.2f} at the given price"
    sure: Sure = speed if taken.devices == 1 or speed == "guess" else "inferred"
    yield Line("time and cost", value, sure, f"the step's time × steps{more}; without evaluations")


def _loss_line(loss: float | None, known: Known, like: bool) -> Line:
    model = known.progress
    if model is None or loss is None:
        return Line("expected loss", "not known", "guess", "no finished run of this model and data")
    error = f" ± {model.error:.3f}" if model.error is not None else ""
    if known.schedules:
        why = f"c − α·log E through {counted(known.schedules, 'schedule')}; ±: of a run that was left out"
    else:
        why = "c − α·log E through one run, with its validation curve; no error is known"
    why += "; rates near their best are assumed"
    if not like:
        why += f"; no run is within {_LIKE:g} times its length"
    return Line("expected loss", f"{loss:.3f}{error} nats/target", "inferred" if like else "guess", why)


def _is_like(evidence: Evidence, optimizer: str, length: float) -> bool:
    """Whether a run with an optimizer has about as many sequences."""
    runs = evidence.of_optimizer(optimizer)
    return any(1 / _LIKE <= run.sequences / length <= _LIKE for run in runs)


def _next(
    lines: Sequence[Line], changes: Sequence[str], wish: Wish, known: Known, frontier: Frontier, plan: Plan
) -> Measurement | None:
    """The cheapest measurement that makes the least sure line more sure. `changes` make the recipe that of `plan`."""
    named = {line.name: line for line in lines}
    speed = max(size / time for size, time in frontier.device.seconds.items())  # rows/s of a device
    whole = plan.total / speed
    is_guessed = named["split"].sure == "guess"

    def ask(name: str, *more: str) -> str:
        return f"{command_name(name)} {command(*more)}"

    if is_guessed:
        return Measurement("split, time and cost", ask("probe", *wish.words), 60.0)
    if named["critical batch"].sure == "guess":
        batch = max(2, plan.phases[0].batch)
        length = min(plan.total, max(plan.total * _NOISE_SHARE, batch * _NOISE_STEPS))
        more = [f"duration={round(length)}seq", "batch.start=null", "batch.ramp=null", f"batch.size={batch}seq"]
        more += [f"batch.micro_max={batch // 2}", "measure.noise.method=two_batch"]  # of two micro-batches
        return Measurement("critical batch", ask("pretrain", *_replaced(wish.words, more)), length / speed)
    if known.estimates[0].name == "noise scale" and known.progress is not None:
        sizes = ",".join(f"{size}seq" for size in _sweep_sizes(known.critical))
        target = f"{_sweep_target(known):.2f}"
        more = [f"batch.size={sizes}", "measure.noise.method=off", f"eval.rows={_SWEEP_ROWS}"]
        words = ["method=sweep", *_replaced(wish.words, more, "batch.start", "batch.ramp"), f"target={target}"]
        evaluations = 100 * _SWEEP_ROWS * (1 - BACKWARD) / speed  # one at each percent of the duration
        return Measurement(
            "critical batch", ask("critical", *words), _SWEEP_RUNS * _SWEEP_SHARE * (whole + evaluations)
        )
    if named["learning rate"].sure in ("guess", "inferred"):
        values = ",".join(f"{factor * plan.rate:.3g}" for factor in (0.5, 1, 2))
        words = _replaced(_replaced(wish.words, changes), [f"optim.lr={values}"])
        return Measurement("learning rate", ask("compare", *words), 3 * whole)
    if known.progress is None or known.progress.error is None:
        more = ["batch.size=" + ",".join(f"{size}seq" for size in _sweep_sizes(known.critical)), "seed=0,1,2"]
        words = _replaced(wish.words, more, "batch.start", "batch.ramp")
        return Measurement("expected loss", ask("compare", *words), 9 * whole)
    return None


def _replaced(words: Sequence[str], more: Sequence[str], *without: str) -> list[str]:
    """The words with others in place of those of the same fields, and without some fields."""
    keys = {word.partition("=")[0] for word in more} | set(without)
    return [*(word for word in words if word.partition("=")[0] not in keys), *more]


def _sweep_sizes(critical: float) -> list[int]:
    """Three batches around the critical batch of the run, a factor of four apart."""
    middle = 2 ** max(2, round(math.log2(max(1.0, OVER_THE_RUN * critical))))
    return [middle // 4, middle, 4 * middle]


def _sweep_target(known: Known) -> float:
    """The loss after a third of the run at a small batch: batches of a sweep reach it within the run."""
    model = known.progress
    assert model is not None
    third = [(known.total / 3, 1)]
    return model.offset - model.slope * math.log(effective(third, model.critical, model.total))
