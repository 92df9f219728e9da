"""What a recipe means in numbers: batch, accumulation, learning rate, weight decay and betas of every step.

`resolve` turns a recipe into a Plan for a number of processes; `Plan.step` says what one step does, as a pure function
of the clock (sequences consumed so far); `Plan.walk` runs through all of them. A step takes its batch at the clock
before it and its rate at the clock after it. There are no partial steps: the last one is full, and the run overshoots
its budget by less than one batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from hfbsz import schedule
from hfbsz.amounts import Amount, short
from hfbsz.errors import UserError
from hfbsz.recipe import Recipe, from_mapping
from hfbsz.scaling import BETA2_SOURCE, RULES, WEIGHT_DECAY_SOURCE, beta2_half_life, rate_multiplier, weight_decay_at

Decisions = Sequence[tuple[int, int]]  # (clock, batch) of an adaptive ramp: from that clock on, that batch


@dataclass(frozen=True)
class Facts:
    """What only the data and the machine know; None: not known yet."""

    rows: int | None = None  # training rows: an epoch
    tokens_per_row: float | None = None  # mean input tokens of a row; None: the recipe's sequence length
    data_hash: str | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of the run at one global batch."""

    clock: int  # of its first step, sequences
    batch: int  # sequences
    steps: int


@dataclass(frozen=True)
class PlannedStep:
    """Every number of one optimizer step."""

    clock: int  # before the step, sequences
    next_clock: int
    global_batch: int  # sequences, over all processes
    micro_batch: int
    accumulation: int
    ratio: float  # κ
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Plan:
    """Every number of a run. Made by `resolve`, never changed."""

    recipe: Recipe
    world_size: int
    facts: Facts
    tokens_per_row: float
    total: int  # sequences
    shape: schedule.Shape
    phases: tuple[Phase, ...]
    micro_batch: int
    reference: float  # sequences
    betas: tuple[float, float]
    mean_ratio: float  # κ, weighted by tokens
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def largest_batch(self) -> int:
        return max(phase.batch for phase in self.phases)

    def accumulation(self, batch: int) -> int:
        """Forward passes of one device that make up a global batch."""
        return batch // (self.micro_batch * self.world_size)

    def batch_at(self, clock: int, decisions: Decisions = ()) -> int:
        """The global batch of the step that starts at `clock`."""
        decided = [batch for since, batch in decisions if since <= clock]
        if decided:
            return decided[-1]
        return next(phase.batch for phase in reversed(self.phases) if phase.clock <= clock)

    def step(self, clock: int, decisions: Decisions = ()) -> PlannedStep:
        """What the step that starts at `clock` does."""
        batch = self.batch_at(clock, decisions)
        ratio, rule = batch / self.reference, self.recipe.scaling.rule
        held = self.phases[0].batch / self.reference
        multiplier = rate_multiplier(rule, ratio if self.recipe.batch.lr == "follow" else held)
        optim = self.recipe.optim
        keep = self.recipe.scaling.weight_decay == "keep"
        return PlannedStep(
            clock=clock,
            next_clock=clock + batch,
            global_batch=batch,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation(batch),
            ratio=ratio,
            learning_rate=optim.lr * multiplier * self.shape.factor(clock + batch),
            weight_decay=optim.weight_decay if keep else weight_decay_at(optim.weight_decay, ratio, multiplier),
            betas=self.betas,
            eps=optim.eps,
        )

    def walk(self, clock: int = 0, decisions: Decisions = ()) -> Iterator[PlannedStep]:
        """The steps from `clock` to the end of the budget."""
        while clock < self.total:
            planned = self.step(clock, decisions)
            yield planned
            clock = planned.next_clock

    def due(self, every: Amount, step: int, clock: int, next_clock: int) -> bool:
        """Whether an interval of the recipe, or the run, ends in step number `step` (from 1) between the two clocks."""
        if next_clock >= self.total:
            return True
        if every.value == 0:
            return False
        if every.unit == "steps":
            return step % max(1, round(every.value)) == 0
        length = every.sequences(total=self.total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)
        return next_clock // length > clock // length

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the derived numbers first, then the recipe they follow from."""
        first, largest = self.step(0), max(self.phases, key=lambda phase: phase.batch)
        peak = self.step(largest.clock)
        return {
            "world_size": self.world_size,
            "steps": self.steps,
            "sequences": self.total,
            "tokens": round(self.total * self.tokens_per_row),
            "tokens_per_row": self.tokens_per_row,
            "epochs": self.total / self.facts.rows if self.facts.rows else None,
            "micro_batch": self.micro_batch,
            "accumulation": [self.accumulation(phase.batch) for phase in self.phases],
            "reference_sequences": self.reference,
            "ratio": {"first": first.ratio, "largest": peak.ratio, "mean": self.mean_ratio},
            "learning_rate": {
                "first_batch": self._peak_rate(self.phases[0].batch),
                "largest_batch": self._peak_rate(largest.batch),
            },
            "weight_decay": {"first_batch": first.weight_decay, "largest_batch": peak.weight_decay},
            "betas": list(self.betas),
            "eps": self.recipe.optim.eps,
            "warmup_sequences": self.shape.warmup,
            "phases": [asdict(phase) for phase in self.phases],
            "facts": asdict(self.facts),
            "warnings": list(self.warnings),
            "recipe": self.recipe.to_dict(),
        }

    def _peak_rate(self, batch: int) -> float:
        """The rate at `batch` before warmup and decay."""
        measured = batch if self.recipe.batch.lr == "follow" else self.phases[0].batch
        return self.recipe.optim.lr * rate_multiplier(self.recipe.scaling.rule, measured / self.reference)


def from_dict(data: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_dict` described; raises UserError."""
    return resolve(from_mapping(data["recipe"]), data["world_size"], Facts(**data["facts"]))


def resolve(recipe: Recipe, world_size: int, facts: Facts = Facts()) -> Plan:
    """The plan of a recipe on `world_size` data-parallel processes.

    Raises UserError with everything that does not fit: sizes that do not divide over the processes (with the nearest
    that do), falling thresholds, β1² ≥ β2, budgets that need unknown facts.
    """
    return _Resolver(recipe, world_size, facts).plan()


class _Resolver:
    """Works a plan out step by step; `errors` gathers what does not fit."""

    def __init__(self, recipe: Recipe, world_size: int, facts: Facts) -> None:
        self.recipe, self.world, self.facts = recipe, world_size, facts
        self.tokens_per_row = facts.tokens_per_row or float(recipe.data.sequence_length)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def plan(self) -> Plan:
        if self.world < 1:
            raise UserError(f"world_size: {self.world} is not a number of processes; it is 1 or more")
        ramp = schedule.Ramp.parse(self.recipe.batch.ramp) if self.recipe.batch.ramp else None
        start, size = self.ends(ramp)
        self.refuse_if_any()
        explicit = sorted({start, size} | ({int(batch) for _, batch in ramp.points} if ramp else set()))
        for batch in explicit:
            self.check_divisible(batch)
        self.refuse_if_any()
        micro = self.micro_batch(explicit)
        total = self.length(ramp, start, size, micro)
        shape, thresholds = self.ramp_and_shape(ramp, start, size, micro, total)
        reference = self.reference(start)
        self.check_epochs(total, size)
        self.refuse_if_any()
        phases = _realise(thresholds, total)
        consumed = sum(phase.batch * phase.steps for phase in phases)
        mean_ratio = sum(phase.batch**2 * phase.steps for phase in phases) / consumed / reference
        betas = self.betas(mean_ratio)
        self.refuse_if_any()
        return Plan(
            self.recipe, self.world, self.facts, self.tokens_per_row, total, shape, phases, micro, reference, betas,
            mean_ratio, tuple(self.warnings),
        )  # fmt: skip

    def refuse_if_any(self) -> None:
        if self.errors:
            raise UserError(dict.fromkeys(self.errors))

    def amount(self, name: str, amount: Amount | None, total: float | None) -> float | None:
        """An amount in sequences; what it lacks becomes an error of the field `name`."""
        if amount is None:
            return None
        try:
            return amount.sequences(total=total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)
        except (LookupError, ValueError) as problem:
            known = ", which is not known before the data is prepared: give rows=N" if amount.unit == "epochs" else ""
            self.errors.append(f"{name}: {problem.args[0]}{known}")
            return None

    def ends(self, ramp: schedule.Ramp | None) -> tuple[int, int]:
        """The first and the last batch that the recipe names, in sequences (for a staged ramp: first and largest)."""
        batch = self.recipe.batch
        size, start = (self.whole(f"batch.{name}", getattr(batch, name)) for name in ("size", "start"))
        named = [int(value) for _, value in ramp.points] if ramp else []
        if ramp and ramp.ends:
            named = [int(value) for value in ramp.ends]
        if any(value < 1 for value in named):
            self.errors.append(f"batch.ramp: '{batch.ramp}' names a batch below 1 sequence")
        if ramp is None and start is not None and start != size:
            self.errors.append("batch.start: a first batch needs a ramp to the size: batch.ramp=doubling:75%")
        if named:
            if size is not None and size != max(named):
                self.errors.append(
                    f"batch.size: {size} is not the largest batch of the ramp, {max(named)}: leave it out"
                )
            if start is not None and start != named[0]:
                self.errors.append(f"batch.start: {start} is not the first batch of the ramp, {named[0]}: leave it out")
            return named[0], named[-1] if ramp and ramp.ends else max(named)
        if size is None:
            if batch.size is None:
                self.errors.append(
                    "batch.size: say how many sequences or tokens an optimizer step takes, such as 64seq"
                )
            return 1, 1
        if ramp and start is not None and start > size and ramp.kind in ("doubling", "seesaw"):
            self.errors.append(f"batch.start: {start} is above batch.size, {size}: a {ramp.kind} ramp only grows")
        if ramp and start is None and batch.start is None:
            self.errors.append(f"batch.start: the ramp '{batch.ramp}' needs a first batch, such as 8seq")
        return (start or size), size

    def whole(self, name: str, amount: Amount | None) -> int | None:
        """A batch in whole sequences."""
        if amount is None:
            return None
        if amount.unit not in ("sequences", "tokens"):
            self.errors.append(f"{name}: '{amount}' is no batch: write sequences or tokens, such as 64seq or 8192tok")
            return None
        value = amount.sequences(tokens_per_row=self.tokens_per_row)
        if self.facts.tokens_per_row is not None and not self.recipe.data.pack:
            value = round(value)  # ragged rows: tokens mean ≈ tokens ÷ mean length
        if value < 1 or value != int(value):
            low, row = max(1, math.floor(value)), self.tokens_per_row
            near = " or ".join(
                f"{n * row:g} tokens ({n} sequences)" for n in dict.fromkeys((low, math.ceil(value) or 1))
            )
            self.errors.append(f"{name}: '{amount}' is {value:g} sequences, not a whole number above 0: take {near}")
            return None
        return int(value)

    def check_divisible(self, batch: int) -> None:
        if batch % self.world:
            low = batch // self.world * self.world
            near = " or ".join(str(value) for value in (low, low + self.world) if value)
            self.errors.append(
                f"batch: {batch} sequences do not divide over {self.world} processes: take {near} sequences"
            )

    def micro_batch(self, explicit: Sequence[int]) -> int:
        """The largest micro-batch ≤ micro_max that divides every named batch of a process, so that compiled code is
        reused along a ramp and only the accumulation moves."""
        limit = self.recipe.batch.micro_max
        shared = math.gcd(*(batch // self.world for batch in explicit))
        micro = max(value for value in range(1, min(limit, shared) + 1) if shared % value == 0)
        if micro < limit / 2 and min(explicit) > micro * self.world:
            step = limit * self.world
            better = ", ".join(f"{batch}→{max(step, round(batch / step) * step)}" for batch in explicit)
            self.warnings.append(
                f"micro-batch {micro} is below half of batch.micro_max={limit}, because it must divide every batch of "
                f"a process; sizes that allow {limit}: {better} sequences"
            )
        return micro

    def reference(self, start: int) -> float:
        """The reference batch in sequences; a fraction of one is fine, as it is only compared with."""
        amount = self.recipe.scaling.reference
        if amount is None:
            return float(start)
        if amount.unit not in ("sequences", "tokens") or amount.value <= 0:
            self.errors.append(f"scaling.reference: '{amount}' is no batch: write sequences or tokens, such as 1024tok")
            return float(start)
        return amount.sequences(tokens_per_row=self.tokens_per_row)

    def length(self, ramp: schedule.Ramp | None, start: int, size: int, micro: int) -> int:
        """The budget in sequences. Steps under a ramp: the smallest budget whose walk takes that many."""
        duration = self.recipe.duration
        if duration.unit == "%":
            self.errors.append(f"duration: '{duration}' is no length: write tokens, sequences, steps or epochs")
        if duration.unit == "steps":
            wanted, low, high = math.ceil(duration.value), 0, math.ceil(duration.value) * max(start, size)
            while high - low > 1:
                middle = (low + high) // 2
                thresholds = self.ramp_and_shape(ramp, start, size, micro, middle)[1]
                taken = sum(phase.steps for phase in _realise(thresholds, middle)) if thresholds else 0
                enough = taken >= wanted and not self.errors
                self.errors.clear()  # a trial that is too short for its parts is only not enough
                low, high = (low, middle) if enough else (middle, high)
            total: float | None = high
        else:
            total = self.amount("duration", duration, None) if duration.unit != "%" else None
        if total is not None and total < 1:
            self.errors.append(f"duration: '{duration}' is less than one sequence")
        self.refuse_if_any()
        return math.ceil(total or 1)

    def ramp_and_shape(
        self, ramp: schedule.Ramp | None, start: int, size: int, micro: int, total: int
    ) -> tuple[schedule.Shape, list[tuple[float, int]]]:
        """The shape of the rate, and (threshold, batch) rounded to micro-batches × processes."""
        wanted = self.recipe.schedule
        warmup = self.clock_of("schedule.warmup", wanted.warmup, start, total)
        decay = self.clock_of("schedule.decay", wanted.decay, size, total) if wanted.shape == "wsd" else 0.0
        if warmup + decay > total:
            self.errors.append(f"schedule: warmup and decay take {warmup + decay:g} of {total} sequences: shorten them")
        cut = ramp.cut if ramp else 0.0
        shape = schedule.Shape(wanted.shape, total, warmup, wanted.floor, decay, cut)
        if cut and (wanted.shape == "constant" or self.recipe.scaling.rule != "sqrt" or self.recipe.batch.lr == "held"):
            self.errors.append(
                "batch.ramp: seesaw trades the decay of the rate for a larger batch: it needs a decaying "
                "schedule.shape, scaling.rule=sqrt and batch.lr=follow"
            )
        thresholds = self.thresholds(ramp, start, size, micro * self.world, shape) if not self.errors else []
        self.check_rising(thresholds)
        return shape, thresholds

    def clock_of(self, name: str, amount: Amount, batch: int, total: int) -> float:
        """An amount in sequences; steps are counted at `batch`."""
        if amount.unit == "steps":
            return amount.value * batch
        return self.amount(name, amount, total) or 0.0

    def thresholds(
        self, ramp: schedule.Ramp | None, start: int, size: int, granule: int, shape: schedule.Shape
    ) -> list[tuple[float, int]]:
        if ramp is None:
            return [(0.0, size)]
        if ramp.kind == "staged":
            named = [(self.amount("batch.ramp", at, shape.total) or 0.0, batch) for at, batch in ramp.points]
            return [(at, int(batch)) for at, batch in named]
        if ramp.kind == "seesaw":
            raw = schedule.seesaw(start, size, ramp.cut, shape)
        else:
            span = self.amount("batch.ramp", ramp.span, shape.total) or 0.0
            if span > shape.total:
                self.errors.append(
                    f"batch.ramp: '{self.recipe.batch.ramp}' is longer than the run, {shape.total} sequences"
                )
            linear = ramp.kind == "linear"
            raw = schedule.linear(start, size, span, granule) if linear else schedule.doubling(start, size, span)
        rounded: list[tuple[float, int]] = []
        for at, batch in raw:
            whole = max(granule, round(batch / granule) * granule)
            if not rounded or rounded[-1][1] != whole:
                rounded.append((at, whole))
        return rounded

    def check_rising(self, thresholds: Sequence[tuple[float, int]]) -> None:
        clocks = [at for at, _ in thresholds]
        if any(later <= earlier for earlier, later in pairwise(clocks)):
            shown = ", ".join(f"{at:g}" for at in clocks)
            self.errors.append(f"batch.ramp: thresholds must rise, these are at {shown} sequences")

    def check_epochs(self, total: int, size: int) -> None:
        rows = self.facts.rows
        if rows is None:
            return
        if size > rows:
            self.errors.append(
                f"data: the corpus has {rows} training rows, fewer than one batch of {size}: "
                "take a larger corpus, a smaller batch.size or a shorter data.sequence_length"
            )
        elif total > rows:
            self.warnings.append(f"the run passes {total / rows:.1f} times over its {rows} rows: watch for overfitting")

    def betas(self, mean_ratio: float) -> tuple[float, float]:
        """Set once, from the mean κ of the run: torch's bias correction 1−β^step is wrong across a change of β."""
        beta1, beta2 = self.recipe.optim.betas
        if self.recipe.scaling.beta2 == "half_life":
            beta2, clamped = beta2_half_life(beta2, mean_ratio, beta1)
            if clamped:
                self.warnings.append(f"β2 would fall below {beta2:.4g} at this batch and is held there")
        if beta1**2 >= beta2:
            self.errors.append(
                f"optim.betas: β1² = {beta1**2:.4g} is not below β2 = {beta2:.4g}, as Adam's convergence needs: "
                f"take β1 below {math.sqrt(beta2):.3f}"
            )
        return beta1, beta2


def _realise(thresholds: Sequence[tuple[float, int]], total: int) -> tuple[Phase, ...]:
    """The phases as they are walked: each takes whole steps until its end is reached or passed."""
    phases: list[Phase] = []
    clock = 0
    ends = [at for at, _ in thresholds[1:]] + [float(total)]
    for (_, batch), end in zip(thresholds, ends, strict=True):
        steps = max(0, math.ceil((min(end, total) - clock) / batch))
        if steps:
            phases.append(Phase(clock, batch, steps))
            clock += steps * batch
    return tuple(phases)


def check_environment(plan: Plan, environment: Mapping[str, str]) -> None:
    """Raise UserError where the launcher's environment contradicts the plan."""
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    planned = sorted({plan.accumulation(phase.batch) for phase in plan.phases})
    given = environment.get(name, "1")
    if given != "1" and [given] != [str(value) for value in planned]:
        raise UserError(
            f"{name}={given} contradicts the plan, whose accumulation is {', '.join(map(str, planned))}: "
            "remove gradient_accumulation_steps from the launch command, the accelerate config or the environment"
        )


def explain(plan: Plan) -> str:
    """The plan as a person would explain it."""
    recipe, row = plan.recipe, plan.tokens_per_row
    about = "" if recipe.data.pack else "≈"
    sources = RULES[recipe.scaling.rule]
    first, largest = plan.phases[0], max(plan.phases, key=lambda phase: phase.batch)
    planned = plan.step(largest.clock)
    share = f", {plan.total / plan.facts.rows:.2f} epochs of {plan.facts.rows:,} rows" if plan.facts.rows else ""
    lines = [
        f"budget    {about}{short(plan.total * row)} tokens = {plan.total:,} sequences of {about}{row:g} tokens{share}",
        f"batch     micro {plan.micro_batch} × accumulation {planned.accumulation} × processes {plan.world_size} = "
        f"{largest.batch} sequences = {about}{short(largest.batch * row)} tokens"
        + ("" if len(plan.phases) == 1 else f" (largest of {len(plan.phases)} phases)"),
    ]
    if len(plan.phases) > 1:
        lines.append(f"ramp      {recipe.batch.ramp}; rate {'follows' if recipe.batch.lr == 'follow' else 'is held'}")
        lines += _phase_table(plan)
    rates = " → ".join(f"{plan._peak_rate(batch):.3g}" for batch in dict.fromkeys((first.batch, largest.batch)))
    ratios = " → ".join(f"{batch / plan.reference:.3g}" for batch in dict.fromkeys((first.batch, largest.batch)))
    tuned = "" if recipe.scaling.reference else " (not given: the first batch of the run)"
    decays = " → ".join(f"{plan.step(phase.clock).weight_decay:.3g}" for phase in dict.fromkeys((first, largest)))
    lines += [
        f"reference {plan.reference:g} sequences = {about}{short(plan.reference * row)} tokens{tuned}; κ = {ratios}",
        f"rate      {recipe.optim.lr:.3g} → {rates}   rule {recipe.scaling.rule}: {sources.formula}, {sources.source}",
        f"decay     λ {recipe.optim.weight_decay:g} → {decays}   {recipe.scaling.weight_decay}"
        + (f": {WEIGHT_DECAY_SOURCE}" if recipe.scaling.weight_decay == "timescale" else ""),
        f"Adam      β1 {plan.betas[0]:g}, β2 {plan.betas[1]:.6g}, ε {recipe.optim.eps:g}   β2 {recipe.scaling.beta2}"
        + (f": {BETA2_SOURCE}, mean κ {plan.mean_ratio:.3g}" if recipe.scaling.beta2 == "half_life" else ""),
        f"schedule  {_span(plan, 0, plan.shape.warmup)} of warmup, then {recipe.schedule.shape}"
        + (f", the last {_span(plan, plan.total - plan.shape.decay, plan.total)}" if plan.shape.decay else "")
        + ("" if recipe.schedule.shape == "constant" else f" to {_last_share(plan):.3g} of the peak"),
        f"steps     {plan.steps:,} optimizer steps",
    ]
    if plan.facts.rows is None:
        lines.append("open      the number of rows (an epoch) is known once the data is prepared, or with rows=N")
    return "\n".join(lines + [f"note      {warning}" for warning in plan.warnings])


def _phase_table(plan: Plan) -> list[str]:
    heads = ("from clock (seq)", "share", "batch (seq)", "accumulation", "steps", "rate before warmup and decay")
    lines = ["   ".join(["         ", *heads])]
    for phase in plan.phases:
        cells = (
            f"{phase.clock:,}",
            f"{phase.clock / plan.total:.0%}",
            f"{phase.batch:,}",
            f"{plan.accumulation(phase.batch):,}",
            f"{phase.steps:,}",
            f"{plan._peak_rate(phase.batch):.3g}",
        )
        aligned = [f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True)]
        lines.append("   ".join(["         ", *aligned]))
    return lines


def _span(plan: Plan, start: float, end: float) -> str:
    """A stretch of the clock in tokens, sequences and steps."""
    steps = 0
    for phase in plan.phases:
        stop = phase.clock + phase.steps * phase.batch
        steps += max(0, math.ceil((min(end, stop) - max(start, phase.clock)) / phase.batch))
    length = end - start
    return f"{short(length * plan.tokens_per_row)} tokens = {length:,.0f} sequences = {steps:,} steps"


def _last_share(plan: Plan) -> float:
    """Where the rate ends relative to its peak at the reference's scale: √floor under Seesaw, else the floor."""
    last = plan.phases[-1]
    factor = plan.shape.factor(plan.total)
    return factor * math.sqrt(last.batch / plan.phases[0].batch) if plan.shape.cut else factor
