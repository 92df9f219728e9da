"""The lines of an advice on a language model: values with their evidence."""

from collections.abc import Collection, Iterator

from hfbsz.advice.advice import Choice, Line, Sure, Wish
from hfbsz.advice.frontier import Frontier
from hfbsz.advice.known import LIKE, Known
from hfbsz.advice.rates import Rate
from hfbsz.advice.schedule import REACHED
from hfbsz.measure.frontier import Point
from hfbsz.plan.plan import Plan
from hfbsz.recipe.amounts import counted, duration, short, shown_batches, sized


def batch_lines(advised: Plan, taken: Point, known: Known, plan: Plan, wish: Wish, speed: Sure) -> Iterator[Line]:
    """The critical batch, the batch, its ramp and the length. `plan`: the recipe's own; `speed`: how sure the speed of
    a device is."""
    best = known.estimates[0]
    batches = [phase.batch for phase in advised.phases if phase.steps]
    shown = f"{sized(best.value)} sequences at the end (range {sized(best.low)} to {sized(best.high)})"
    yield Line("critical batch", shown, best.sure, f"{best.name}: {best.why}")
    sure: Sure = "assumed" if "assumed" in (best.sure, speed) else "inferred"
    reason = f"the least time to the loss on {counted(taken.devices, 'device')}, by S = a + b ÷ B and the step's time"
    if batches[-1] > best.value:
        reason += "; above the critical batch, since the devices share it"
    yield Line("batch", f"{shown_batches(batches)} sequences", sure, reason)
    if len(batches) > 1:
        stages = ", ".join(f"{phase.batch:,} from {phase.clock / advised.total:.0%}" for phase in advised.phases)
        reason = "each batch from where the critical batch reaches it"
        if batches[-1] > REACHED * best.value:
            reason = f"in proportion to the sequences, the largest batch from {REACHED:.0%} on"
        yield Line("ramp", stages, sure, reason)
    tokens = advised.total * advised.tokens_per_row
    own = f"the {short(plan.total * plan.tokens_per_row)} of the recipe"
    batches = [phase.batch for phase in plan.phases if phase.steps]
    why = f"the loss that {own} have at {shown_batches(batches)} sequences"
    if wish.target_loss is not None:
        why = f"the sequences to {wish.target_loss:g} nats/target; the recipe has {short(plan.total)}"
    yield Line(
        "length",
        f"{short(tokens)} tokens in {advised.steps:,} steps",
        "assumed" if best.sure == "assumed" else "inferred",
        why,
    )


def optimizer_lines(advised: Plan, rate: Rate, set_by_user: Collection[str]) -> Iterator[Line]:
    """Rate, betas, weight decay and warmup, at the first and the largest batch. `set_by_user`: fields of the command
    line."""

    def sure_of(*fields: str) -> Sure:
        return "given" if any(field in set_by_user for field in fields) else "assumed"

    first, largest = advised.step(0), max(advised.phases, key=lambda phase: phase.batch)
    last = advised.step(largest.clock)
    recipe, rule = advised.recipe, f"rule {advised.rule.name}"
    low, high = advised.peak_rate(first.global_batch), advised.peak_rate(largest.batch)
    shown = f"{low:.3g}" if low == high else f"{low:.3g} → {high:.3g}"
    at = f"{advised.rate:.3g} at {advised.reference:g} sequences"
    is_reference = low == high == advised.rate
    sure: Sure = rate.sure if is_reference or rate.sure in ("assumed", "given") else "inferred"
    yield Line("learning rate", shown, sure, f"{at}: {rate.why}" + ("" if is_reference else f"; {rule}"))
    yield Line(
        "betas",
        f"β1 {advised.betas[0]:g}, β2 {advised.betas[1]:g}",
        sure_of("optim.betas"),
        f"β2 {recipe.scaling.beta2}",
    )
    decays = [first.weight_decay, last.weight_decay]
    shown = f"{decays[0]:.3g}" if decays[0] == decays[1] else f"{decays[0]:.3g} → {decays[1]:.3g}"
    yield Line("weight decay", shown, sure_of("optim.weight_decay"), f"rule {recipe.scaling.weight_decay}")
    warmup = advised.shape.warmup
    steps = next((number for number, step in enumerate(advised.walk()) if step.clock >= warmup), advised.steps)
    why = f"{recipe.schedule.warmup} of the recipe, then {advised.shape.name}"
    yield Line("warmup", f"{warmup:,.0f} sequences = {counted(steps, 'step')}", sure_of("schedule.warmup"), why)


def hardware_lines(advised: Plan, taken: Point, frontier: Frontier, speed: Sure, choice: Choice) -> Iterator[Line]:
    """How a batch is split, and what the run takes. `speed`: how sure the speed of a device is."""
    device = next(one for one in frontier.assumptions if one.name == "device")
    counts = [advised.accumulation(phase.batch) or 1 for phase in advised.phases if phase.steps]
    accumulation = shown_batches(counts)
    split = f"micro-batch {advised.micro_batch} × accumulation {accumulation} × {counted(taken.devices, 'device')}"
    if advised.micro_batch is None:
        split = f"micro-batches of {advised.recipe.batch.micro_tokens:,} tokens × {counted(taken.devices, 'device')}"
    yield Line("split", split, speed, f"{device.value}, {device.source}")
    more = "" if taken.devices == 1 else ", the network is assumed"
    value = f"{duration(choice.seconds)}, {duration(choice.device_seconds)} of device time"
    if choice.cost is not None:
        value += f", {choice.cost:,.2f} at the given price"
    sure: Sure = speed if taken.devices == 1 or speed == "assumed" else "inferred"
    yield Line("time and cost", value, sure, f"the step's time × steps{more}; without evaluations")


def loss_line(loss: float | None, known: Known, like: bool) -> Line:
    """The expected loss. `like`: whether a run of about this length is known."""
    model = known.progress
    if model is None or loss is None:
        return Line("expected loss", "not known", "assumed", "no finished run of this model and data")
    error = f" ± {model.error:.3f}" if model.error is not None else ""
    if known.schedules:
        why = f"c − α·log E through {counted(known.schedules, 'schedule')}; ±: of a run that was left out"
    else:
        why = "c − α·log E through one run, with its validation curve; no error is known"
    why += "; rates near their best are assumed"
    if not like:
        why += f"; no run is within {LIKE:g} times its length"
    return Line("expected loss", f"{loss:.3f}{error} nats/target", "inferred" if like else "assumed", why)
