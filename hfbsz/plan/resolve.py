"""From a recipe to a Plan: works out batch, ramp, schedule, the optimizer's numbers; refuses what does not fit."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from hfbsz.errors import UserError
from hfbsz.plan import optimizer, schedule
from hfbsz.plan.plan import Facts, Phase, Plan
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.law_name import Named
from hfbsz.recipe.load import from_mapping
from hfbsz.recipe.ramp import Ramp


def from_dict(data: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_dict` described; raises UserError."""
    return resolve(from_mapping(data["recipe"]), data["world_size"], Facts(**data["facts"]))


def resolve(recipe: Recipe, world_size: int, facts: Facts = Facts()) -> Plan:
    """The plan of a recipe on `world_size` data-parallel processes.

    Raises UserError with everything that does not fit: sizes that do not divide over the processes (with the nearest
    that do), falling thresholds, β1² ≥ β2, budgets that need unknown facts.
    """
    return _Resolver(recipe, world_size, facts).plan()


def check(recipe: Recipe, world_size: int) -> None:
    """Raise UserError for what is wrong whatever data and model turn out to be: known before either is touched."""
    parts = (recipe.schedule.warmup, recipe.schedule.decay, recipe.batch.ramp)
    if not recipe.data.pack or recipe.uses_law() or any("epoch" in str(part) for part in parts):
        if errors := _misfits(recipe):
            raise UserError(errors)
        return  # the mean row, the model's size or the rows decide how amounts lie to one another
    boundless = Facts(rows=2**40, tokens_per_row=float(recipe.data.sequence_length), parameters=10**8)
    resolve(recipe, world_size, boundless)


class _Resolver:
    """Works a plan out step by step; `errors` gathers what does not fit."""

    def __init__(self, recipe: Recipe, world_size: int, facts: Facts) -> None:
        self.recipe, self.world, self.facts = recipe, world_size, facts
        self.ledger = optimizer.Ledger(recipe, facts)
        self.errors, self.warnings = self.ledger.errors, self.ledger.warnings
        self.tokens_per_row = self.ledger.tokens_per_row
        self.refuse_if_any, self.amount = self.ledger.refuse_if_any, self.ledger.amount

    def plan(self) -> Plan:
        if self.world < 1:
            raise UserError(f"world_size: {self.world} is not a number of processes; it is 1 or more")
        self.errors += _misfits(self.recipe)
        ramp = Ramp.parse(self.recipe.batch.ramp) if self.recipe.batch.ramp else None
        start, size = self.ends(ramp)
        self.refuse_if_any()
        explicit = sorted({start, size} | ({int(batch) for _, batch in ramp.points} if ramp else set()))
        for batch in explicit:
            self.check_divisible(batch)
        self.refuse_if_any()
        micro_batch = self.micro_batch(explicit)
        micro = micro_batch or 1  # a process's share of any batch is a multiple of it
        reference, rate = optimizer.reference(self.ledger, start), optimizer.peak_rate(self.ledger)
        self.warmup_factor = start / reference if self.recipe.scaling.warmup == "steps" else 1.0
        rule = optimizer.rate_rule(self.ledger, reference)
        self.refuse_if_any()
        total = self.length(ramp, start, size, micro, rule.name)
        shape, thresholds = self.ramp_and_shape(ramp, start, size, micro, total, rule.name)
        self.check_epochs(total, size)
        self.refuse_if_any()
        phases = _realise(thresholds, total)
        consumed = sum(phase.batch * phase.steps for phase in phases)
        mean_ratio = sum(phase.batch**2 * phase.steps for phase in phases) / consumed / reference
        betas, eps = optimizer.betas_and_eps(self.ledger, rule, mean_ratio)
        self.check_schedule_free()
        self.check_lora()
        self.refuse_if_any()
        return Plan(
            self.recipe, self.world, self.facts, self.tokens_per_row, total, shape, phases, micro_batch, reference,
            rate, rule, betas, eps, mean_ratio, tuple(self.ledger.guesses), tuple(self.warnings),
        )  # fmt: skip

    def ends(self, ramp: Ramp | None) -> tuple[int, int]:
        """The first and the last batch that the recipe names, in sequences (for a staged ramp: first and largest)."""
        batch = self.recipe.batch
        size = (
            optimizer.guessed_batch(self.ledger, batch.size)
            if isinstance(batch.size, Named)
            else self.whole("batch.size", batch.size)
        )
        start = self.whole("batch.start", batch.start)
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

    def micro_batch(self, explicit: Sequence[int]) -> int | None:
        """The largest micro-batch ≤ micro_max that divides every named batch of a process, so that compiled code is
        reused along a ramp and only the accumulation moves; None where micro-batches are filled with tokens."""
        if self.recipe.batch.micro_tokens is not None:
            return None
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

    def length(self, ramp: Ramp | None, start: int, size: int, micro: int, rule: str) -> int:
        """The budget in sequences. Steps under a ramp: the smallest budget whose walk takes that many."""
        duration = self.recipe.duration
        if duration.unit == "%":
            self.errors.append(f"duration: '{duration}' is no length: write tokens, sequences, steps or epochs")
        if duration.unit == "steps":
            wanted, low, high = math.ceil(duration.value), 0, math.ceil(duration.value) * max(start, size)
            while high - low > 1:
                middle = (low + high) // 2
                thresholds = self.ramp_and_shape(ramp, start, size, micro, middle, rule)[1]
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
        self, ramp: Ramp | None, start: int, size: int, micro: int, total: int, rule: str
    ) -> tuple[schedule.Shape, list[tuple[float, int]]]:
        """The shape of the rate, and (threshold, batch) rounded to micro-batches × processes."""
        wanted = self.recipe.schedule
        warmup = self.clock_of("schedule.warmup", wanted.warmup, start, total)
        if wanted.warmup.unit != "steps":
            warmup *= self.warmup_factor
        decay = self.clock_of("schedule.decay", wanted.decay, size, total) if wanted.shape == "wsd" else 0.0
        if warmup + decay > total:
            self.errors.append(f"schedule: warmup and decay take {warmup + decay:g} of {total} sequences: shorten them")
        cut = ramp.cut if ramp else 0.0
        shape = schedule.Shape(wanted.shape, total, warmup, wanted.floor, decay, cut)
        if cut and (wanted.shape == "constant" or rule != "sqrt" or self.recipe.batch.lr == "held"):
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
        self, ramp: Ramp | None, start: int, size: int, granule: int, shape: schedule.Shape
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

    def check_schedule_free(self) -> None:
        if self.recipe.optim.name == "schedule_free" and self.recipe.schedule.shape != "constant":
            self.warnings.append(
                "schedule_free averages weights in place of a decay (Defazio et al. 2024): schedule.shape=constant"
            )

    def check_lora(self) -> None:
        if self.recipe.model.lora is not None and self.recipe.optim.name == "muon":
            self.errors.append(
                "optim.name: muon makes updates of whole matrices orthogonal, model.lora trains factors of them: "
                "optim.name=adamw"
            )

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


def _misfits(recipe: Recipe) -> list[str]:
    """What rows of like length cannot go with."""
    batch, pack = recipe.batch, recipe.data.pack
    packed = "packed rows are all of one length: take data.pack=false, or"
    ramp = f"sorts batches of one size, which the ramp '{batch.ramp}' changes: take batch.ramp=null"
    found = [
        (batch.by_length and batch.ramp is not None, f"batch.by_length: {ramp}, or batch.by_length=false"),
        (batch.by_length and pack, f"batch.by_length: {packed} batch.by_length=false"),
        (batch.micro_tokens is not None and pack, f"batch.micro_tokens: {packed} batch.micro_max"),
    ]
    return [message for wrong, message in found if wrong]


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
    planned = sorted({plan.accumulation(phase.batch) or 0 for phase in plan.phases})
    shown = ", ".join(str(value or "as many as fill batch.micro_tokens") for value in planned)
    given = environment.get(name, "1")
    if given not in ("1", shown):
        raise UserError(
            f"{name}={given} contradicts the plan, whose accumulation is {shown}: "
            "remove gradient_accumulation_steps from the launch command, the accelerate config or the environment"
        )
