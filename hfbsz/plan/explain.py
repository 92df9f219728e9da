"""The plan as text: every number with its unit, every scaling rule with its source."""

import math

from hfbsz.plan.plan import BLOCK, Plan
from hfbsz.plan.scaling import (
    AVERAGE_SOURCE,
    BETA2_SOURCE,
    OPTIMIZERS,
    RULES,
    SDE_SOURCE,
    WARMUP_SOURCE,
    WEIGHT_DECAY_SOURCE,
)
from hfbsz.recipe.amounts import short
from hfbsz.recipe.law_name import LawName

_PHASES_SHOWN = 24


def explain(plan: Plan) -> str:
    """The plan as lines of text: budget, batch, ramp, optimizer settings with their rules, schedule, and warnings."""
    lines = [*_batch(plan), *_optimizer(plan), *_schedule(plan)]
    if plan.facts.rows is None:
        lines.append("open      the number of rows (an epoch) is known once the data is prepared, or with train_rows=N")
    if plan.recipe.batch.micro_max == "auto":
        found = plan.facts.micro_max
        lines.append(
            f"probe     micro-batches of at most {found} sequences"
            if found is not None
            else "open      the micro-batch (batch.micro_max=auto) is found by a probe before the first step"
        )
    lines += [f"guess     {guess}" for guess in plan.guesses]
    return "\n".join(lines + [f"note      {warning}" for warning in plan.warnings])


def _about(plan: Plan) -> str:
    """`≈` if rows have different lengths, because then only their mean number of tokens is known."""
    return "" if plan.recipe.data.pack else "≈"


def _batch(plan: Plan) -> list[str]:
    row, about = plan.tokens_per_row, _about(plan)
    largest = plan.largest_batch
    share = f", {plan.total / plan.facts.rows:.2f} epochs of {plan.facts.rows:,} rows" if plan.facts.rows else ""
    lines = [
        f"budget    {about}{short(plan.total * row)} tokens = {plan.total:,} sequences of {about}{row:,g} tokens"
        + share,
        f"batch     {_split(plan)}{largest:,} sequences = {about}{short(largest * row)} tokens"
        + ("" if len(plan.phases) == 1 else f" (largest of {len(plan.phases)} {_called(plan)})"),
        *_like_lengths(plan),
    ]
    if len(plan.phases) > 1:
        rate = "follows the batch" if plan.recipe.batch.lr == "follow" else "held at that of the first batch"
        lines.append(f"ramp      {plan.recipe.batch.ramp}; learning rate {rate}")
        lines += _reachable(plan) if plan.recipe.follows_noise else _phase_table(plan)
    return lines


def _called(plan: Plan) -> str:
    return "that the ramp may reach" if plan.recipe.follows_noise else "phases"


def _split(plan: Plan) -> str:
    """The left side of the equation that splits the largest batch over micro-batches, accumulation and processes."""
    if plan.micro_batch is None:
        return f"{plan.largest_batch // plan.world_size:,} sequences × processes {plan.world_size} = "
    accumulation = plan.accumulation(plan.largest_batch)
    return f"micro {plan.micro_batch} × accumulation {accumulation} × processes {plan.world_size} = "


def _like_lengths(plan: Plan) -> list[str]:
    """Lines about the options that reduce the padding of rows of different lengths."""
    batch, lines = plan.recipe.batch, []
    if batch.micro_tokens is not None:
        lines.append(
            f"micro     ≤ {batch.micro_tokens:,} tokens with padding: each process sorts its rows by length and fills "
            "micro-batches with them; a longer row has a micro-batch of its own"
        )
    if batch.by_length:
        lines.append(
            f"order     blocks of {BLOCK} batches are sorted by length and split into batches, in random order"
        )
    return lines


def _optimizer(plan: Plan) -> list[str]:
    optim, scaling = plan.recipe.optim, plan.recipe.scaling
    phases = dict.fromkeys((plan.phases[0], max(plan.phases, key=lambda phase: phase.batch)))
    batches = dict.fromkeys(phase.batch for phase in phases)
    rates = " → ".join(f"{plan.peak_rate(batch):.3g}" for batch in batches)
    ratios = " → ".join(f"{batch / plan.reference:.3g}" for batch in batches)
    decays = " → ".join(f"{plan.step(phase.clock).weight_decay:.3g}" for phase in phases)
    reference = f"{plan.reference:g} sequences = {_about(plan)}{short(plan.reference * plan.tokens_per_row)} tokens"
    return [
        f"reference {reference}{_reference_source(plan)}; κ = {ratios}",
        f"rate      {plan.rate:.3g} → {rates}   {_rule(plan)}",
        f"decay     λ {optim.weight_decay:g} → {decays}   {scaling.weight_decay}"
        + (f": {WEIGHT_DECAY_SOURCE}" if scaling.weight_decay == "timescale" else "")
        + (f"; assumed for {optim.name}" if scaling.weight_decay == "timescale" and optim.name != "adamw" else ""),
        f"{optim.name:<9} {_constants(plan)}",
        *_average(plan),
    ]


def _average(plan: Plan) -> list[str]:
    age = plan.recipe.optim.average
    if age is None:
        return []
    return [
        f"average   the weights that are evaluated and saved have a mean age of {age:.2g} of the training so far: "
        f"{AVERAGE_SOURCE}"
    ]


def _reference_source(plan: Plan) -> str:
    if isinstance(plan.recipe.optim.lr, LawName):
        return f" (the batch of {plan.recipe.optim.lr})"
    return "" if plan.recipe.scaling.reference else " (not given: the first batch of the run)"


def _rule(plan: Plan) -> str:
    """The learning-rate rule: `rule sqrt: η·√κ, source`, and whether it is only assumed for this optimizer."""
    name, optimizer = plan.rule.name, OPTIMIZERS[plan.recipe.optim.name]
    rule, is_default = RULES[name], plan.recipe.scaling.rule is None
    numbers = [f"p = {plan.rule.exponent:g}"] if name in ("power", "noise") else []
    if rule.needs_noise:
        numbers.append(f"B_n = {plan.rule.noise * plan.reference:g} sequences")
    text = f"rule {name}: {rule.formula}" + (f" with {', '.join(numbers)}" if numbers else "")
    assumed = "" if optimizer.settled or is_default or name == "none" else f"; {optimizer.source}"
    return f"{text}, {optimizer.source if is_default else rule.source}{assumed}"


def _constants(plan: Plan) -> str:
    """Momentum, betas and ε of the optimizer, without those that it does not have."""
    optim, scaling = plan.recipe.optim, plan.recipe.scaling
    parts = [f"momentum {optim.momentum:g}"] if optim.name in ("sgd", "muon") else []
    if not OPTIMIZERS[optim.name].has_betas:
        return ", ".join(parts) or "factored second moment, no betas"
    parts += [f"β1 {plan.betas[0]:g}", f"β2 {plan.betas[1]:.6g}", f"ε {plan.eps:.3g}"]
    mean = f", set once from the mean κ {plan.mean_ratio:.3g}"
    if plan.rule.name == "sde":
        return f"{', '.join(parts)}   {SDE_SOURCE}{mean}"
    return f"{', '.join(parts)}   β2 {scaling.beta2}" + (
        f": {BETA2_SOURCE}{mean}" if scaling.beta2 == "half_life" else ""
    )


def _schedule(plan: Plan) -> list[str]:
    recipe, shape = plan.recipe, plan.shape
    warmup = f"   warmup grows with κ: {WARMUP_SOURCE}" if recipe.scaling.warmup == "steps" else ""
    return [
        f"schedule  {_span(plan, 0, shape.warmup)} of warmup, then {recipe.schedule.shape}"
        + (f", the last {_span(plan, plan.total - shape.decay, plan.total)}" if shape.decay else "")
        + ("" if recipe.schedule.shape == "constant" else f" to {_last_share(plan):.3g} of the peak")
        + warmup,
        f"steps     {'at most ' * plan.recipe.follows_noise}{plan.steps:,} optimizer steps",
    ]


def _reachable(plan: Plan) -> list[str]:
    """What an adaptive ramp may do."""
    sizes = ", ".join(f"{phase.batch:,}" for phase in plan.phases)
    return [
        f"          the batch takes the values {sizes} sequences, the next one where two measurements in a row of",
        "          (noise scale − standard error) reach it: McCandlish et al. 2018, Smith et al. 2018",
    ]


def _phase_table(plan: Plan) -> list[str]:
    heads = ("from clock (seq)", "share", "batch (seq)", "accumulation", "steps", "rate before warmup and decay")
    lines = ["   ".join(["         ", *heads])]
    hidden = len(plan.phases) - _PHASES_SHOWN
    for number, phase in enumerate(plan.phases):
        if 0 <= number - _PHASES_SHOWN // 2 < hidden:
            lines += [f"          … {hidden:,} more phases …"] * (number == _PHASES_SHOWN // 2)
            continue
        cells = (
            f"{phase.clock:,}",
            f"{phase.clock / plan.total:.0%}",
            f"{phase.batch:,}",
            "variable" if (accumulation := plan.accumulation(phase.batch)) is None else f"{accumulation:,}",
            f"{phase.steps:,}",
            f"{plan.peak_rate(phase.batch):.3g}",
        )
        aligned = [f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True)]
        lines.append("   ".join(["         ", *aligned]))
    return lines


def _span(plan: Plan, start: float, end: float) -> str:
    """The length of an interval of the clock (sequences) in tokens, sequences and steps."""
    steps = 0
    for phase in plan.phases:
        stop = phase.clock + phase.steps * phase.batch
        steps += max(0, math.ceil((min(end, stop) - max(start, phase.clock)) / phase.batch))
    length = end - start
    return f"{short(length * plan.tokens_per_row)} tokens = {length:,.0f} sequences = {steps:,} steps"


def _last_share(plan: Plan) -> float:
    """The final learning rate ÷ its peak: the floor of the schedule; with a Seesaw ramp its square root."""
    last = plan.phases[-1]
    factor = plan.shape.factor(plan.total)
    return factor * math.sqrt(last.batch / plan.phases[0].batch) if plan.shape.cut else factor
