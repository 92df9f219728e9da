"""From a recipe to a Plan, in seven steps: how batch, length, learning rate and the optimizer's numbers follow.

Every step is a pure function; what does not fit is a value too (`…_problems` yields lines), so that a mistake is named
with all others of its step before anything is worked out from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from hfbsz.errors import UserError
from hfbsz.plan import laws, optimizer, phases
from hfbsz.plan.batch import (
    batch_problems,
    batches,
    division_problems,
    micro_batch,
    micro_batch_warnings,
    noise_ramp_problems,
)
from hfbsz.plan.given import Given, refuse
from hfbsz.plan.plan import Facts, Phase, Plan
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.load import from_mapping
from hfbsz.recipe.ramp import Ramp
from hfbsz.recipe.tasks import RowKind


def resolve(recipe: Recipe, world_size: int, facts: Facts = Facts()) -> Plan:
    """The plan of a recipe on `world_size` data-parallel processes.

    Raises UserError with everything that does not fit: sizes that do not divide over the processes (with the nearest
    that do), falling thresholds, β1² ≥ β2, budgets that need unknown facts.
    """
    if world_size < 1:
        raise UserError(f"world_size: {world_size} is not a number of processes; it is 1 or more")
    given = Given(recipe, world_size, facts)

    # 1. The batches that the recipe names, in whole sequences that the processes can share.
    refuse(recipe_problems(recipe))
    refuse(chain(batch_problems(given), noise_ramp_problems(given)))
    sizes = batches(given)
    refuse(division_problems(sizes.named, world_size))

    # 2. batch = micro-batch × accumulation × processes; the micro-batch is the same for every batch of a ramp.
    micro = micro_batch(given, sizes.named)

    # 3. The reference batch, where optim's numbers are meant; the rate there; and the rule by which it follows
    #    κ = batch ÷ reference.
    refuse(chain(optimizer.reference_problems(given), optimizer.rate_problems(given), optimizer.rule_problems(given)))
    reference = optimizer.reference(given, sizes.first)
    rule = optimizer.rate_rule(given, reference)

    # 4. The length of the run in sequences. A warmup counted in steps at the reference grows with the first batch.
    warmup_factor = sizes.first / reference if recipe.scaling.warmup == "steps" else 1.0
    ground = phases.PhaseInputs(given, sizes, (micro or 1) * world_size, warmup_factor, rule.name)
    refuse(phases.duration_problems(ground))
    total = phases.total(ground)

    # 5. The shape of the learning rate, and the phases: whole steps, so that the last one may pass the end of the run.
    shape_lines = list(phases.shape_problems(ground, total))
    ramp_lines = [] if shape_lines else list(phases.ramp_problems(ground, total))
    refuse(chain(shape_lines, ramp_lines, phases.epoch_problems(ground)))
    walked = phases.phases(phases.thresholds(ground, total), total)
    walked += phases.reachable(ground, total)

    # 6. Betas and ε, once for the run, at the κ that its tokens meet on average.
    mean_ratio = phases.mean_batch(walked) / reference
    refuse(chain(optimizer.betas_problems(given, rule, mean_ratio), lora_problems(recipe)))
    betas, eps = optimizer.betas_and_eps(given, rule, mean_ratio)

    # 7. What a person should know.
    warnings = chain(
        laws.warnings(given),
        micro_batch_warnings(given, sizes.named, micro),
        phases.epoch_warnings(ground, total),
        optimizer.betas_warnings(given, mean_ratio),
        optimizer.small_batch_warnings(given, mean_ratio),
        schedule_free_warnings(recipe),
        noise_warnings(given, walked, micro),
    )
    return Plan(
        recipe=recipe,
        world_size=world_size,
        facts=facts,
        tokens_per_row=given.tokens_per_row,
        total=total,
        shape=phases.shape(ground, total),
        phases=walked,
        micro_batch=micro,
        reference=reference,
        rate=optimizer.peak_rate(given),
        rule=rule,
        betas=betas,
        eps=eps,
        mean_ratio=mean_ratio,
        guesses=tuple(laws.guesses(given)),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def from_dict(data: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_dict` described; raises UserError."""
    return resolve(from_mapping(data["recipe"]), data["world_size"], Facts(**data["facts"]))


def check(recipe: Recipe, world_size: int) -> None:
    """Raise UserError for what is wrong with any data and any model: known before either is read."""
    parts = (recipe.schedule.warmup, recipe.schedule.decay, recipe.batch.ramp)
    if not recipe.data.pack or recipe.uses_law() or any("epoch" in str(part) for part in parts):
        # whether amounts fit each other depends on the mean row, the size of the model or the number of rows
        refuse(recipe_problems(recipe))
        return
    boundless = Facts(rows=2**40, tokens_per_row=float(recipe.data.sequence_length), parameters=10**8)
    resolve(recipe, world_size, boundless)


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


def recipe_problems(recipe: Recipe) -> Iterator[str]:
    """What does not fit together in a recipe, whatever the data and the number of processes."""
    yield from length_grouping_problems(recipe)
    yield from noise_problems(recipe)
    yield from saving_problems(recipe)
    yield from micro_max_problems(recipe)
    yield from average_problems(recipe)


def length_grouping_problems(recipe: Recipe) -> Iterator[str]:
    """What rows grouped by length, and micro-batches filled with tokens, cannot be combined with."""
    batch, pack = recipe.batch, recipe.data.pack
    packed = "packed rows all have the same length: take data.pack=false, or"
    if batch.by_length and batch.ramp is not None:
        yield (
            f"batch.by_length: sorts batches of one size, which the ramp '{batch.ramp}' changes: take "
            "batch.ramp=null, or batch.by_length=false"
        )
    if batch.by_length and pack:
        yield f"batch.by_length: {packed} batch.by_length=false"
    if batch.micro_tokens is not None and pack:
        yield f"batch.micro_tokens: {packed} batch.micro_max"


def noise_problems(recipe: Recipe) -> Iterator[str]:
    """Which measurement of the noise scale the model does not allow."""
    if recipe.measure.noise.method == "per_sequence" and recipe.model.compile:
        yield (
            "measure.noise.method: per_sequence reads single layers, which model.compile merges: take two_batch, or "
            "model.compile=false"
        )


def saving_problems(recipe: Recipe) -> Iterator[str]:
    """Which savings of the model do not fit its task."""
    if recipe.model.fused_loss is True and recipe.row_kind is RowKind.LABEL:
        yield "model.fused_loss: a classifier has no vocabulary to compute in chunks: model.fused_loss=false"
    if recipe.model.first_token is True and recipe.row_kind is not RowKind.LABEL:
        yield "model.first_token: a language model reads every token: model.first_token=false"


def micro_max_problems(recipe: Recipe) -> Iterator[str]:
    """What a micro-batch that is found by a probe cannot be combined with."""
    batch = recipe.batch
    if batch.micro_max != "auto":
        return
    if batch.micro_tokens is not None:
        yield "batch.micro_max: auto is of no use with batch.micro_tokens, which fills micro-batches: set one of them"
    kind = Ramp.parse(batch.ramp).kind if batch.ramp is not None else ""
    if kind in ("linear", "seesaw"):
        yield (
            f"batch.micro_max: the ramp '{batch.ramp}' takes multiples of the micro-batch, so that its batches would "
            "depend on a probe: set a number, such as batch.micro_max=8 (hfbsz probe finds one)"
        )


def noise_warnings(given: Given, walked: Sequence[Phase], micro: int | None) -> Iterator[str]:
    """At which batches the noise scale is not measured."""
    recipe = given.recipe
    method, compiled = recipe.measure.noise.method, recipe.model.compile
    single = [phase.batch for phase in walked if given.world_size == 1 and phase.batch == micro]
    if single and (method == "two_batch" or (method == "auto" and compiled)):
        remedy = "lower batch.micro_max" if compiled else "take measure.noise.method=auto, or lower batch.micro_max"
        yield (
            f"measure.noise: not measured at {single[0]} sequences, where a step has a single micro-batch; to measure "
            f"it, {remedy}"
        )


def lora_problems(recipe: Recipe) -> Iterator[str]:
    """Which optimizer does not suit the factors of LoRA."""
    if recipe.model.lora is not None and recipe.optim.name == "muon":
        yield (
            "optim.name: muon makes updates of whole matrices orthogonal, model.lora trains factors of them: "
            "optim.name=adamw"
        )


def average_problems(recipe: Recipe) -> Iterator[str]:
    """Which optimizer already averages its weights."""
    if recipe.optim.average is not None and recipe.optim.name == "schedule_free":
        yield "optim.average: schedule_free averages the weights itself: optim.average=null"


def schedule_free_warnings(recipe: Recipe) -> Iterator[str]:
    """Whether averaged weights are decayed as well."""
    if recipe.optim.name == "schedule_free" and recipe.schedule.shape != "constant":
        yield "schedule_free averages weights in place of a decay (Defazio et al. 2024): schedule.shape=constant"
