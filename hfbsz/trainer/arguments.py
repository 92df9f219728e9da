"""`TrainingArguments` from a plan, and the check that given ones do not contradict it."""

import copy
import dataclasses
from typing import Any

from transformers import TrainingArguments

from hfbsz.errors import UserError
from hfbsz.plan.export import refuse_pairs
from hfbsz.plan.export import training_arguments as settings_of
from hfbsz.plan.plan import Plan
from hfbsz.train.distributed import precision_of

_FREE = ("gradient_accumulation_steps", "seed")  # of a planned trainer: the plan alone decides
_OF_A_STEP = ("learning_rate", "weight_decay", "warmup_steps")


def training_arguments(plan: Plan, **more: Any) -> TrainingArguments:
    """The plan as `TrainingArguments` of a stock `Trainer`: micro-batch, accumulation, steps, rate, betas, decay,
    warmup, schedule, optimizer and seed. `more`: further arguments, such as `output_dir`.

    Raises UserError for arguments that contradict the plan, and for a plan that `Trainer` cannot carry out, such as one
    with a ramp (`planned` can).
    """
    refuse_pairs(plan, "training_arguments")
    settings, missing = settings_of(plan)
    if missing:
        raise UserError([f"Trainer cannot express {line}" for line in missing])
    contradicting = [name for name in more if name in settings and more[name] != settings[name]]
    if contradicting:
        raise UserError([_contradiction(name, more[name], settings[name]) for name in contradicting])
    return TrainingArguments(**{**settings, **more})


def with_plan(args: TrainingArguments, plan: Plan) -> TrainingArguments:
    """A copy of `args` with the numbers of a plan, for a planned trainer, which sets rate, decay and batch of every
    step itself.

    Raises UserError for arguments other than their defaults that contradict the plan, for another number of processes,
    and for what a planned trainer cannot do.
    """
    if args.world_size != plan.world_size:
        raise UserError(
            f"the plan is for {plan.world_size} processes, this is one of {args.world_size}: resolve it anew"
        )
    refuse_pairs(plan, "a planned Trainer")
    settings, missing = settings_of(plan)
    settings.pop("bf16", None)
    settings["max_steps"] = plan.steps
    kept = [line for line in missing if line.startswith(("optim.", "scaling."))]  # ramp and schedule it has itself
    problems = [f"a planned Trainer cannot express {line}" for line in kept]
    problems += _refused(args, plan)
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, value in settings.items():
        given = getattr(args, name)
        if name in _FREE or name.startswith("lr_scheduler") or given == defaults.get(name):
            continue
        if len(plan.phases) > 1 and name in _OF_A_STEP:
            problems.append(f"{name}={given!r}: the plan sets it at every step of its ramp: leave it out")
        elif given != value:
            problems.append(_contradiction(name, given, value))
    if problems:
        raise UserError(problems)
    changed = copy.copy(args)
    for name, value in settings.items():
        if not name.startswith("lr_scheduler"):
            setattr(changed, name, value)
    # one step of the plan is one batch of the loader, which `training_step` splits; it counts the tokens
    changed.gradient_accumulation_steps, changed.include_num_input_tokens_seen = 1, "no"
    changed.per_device_train_batch_size = plan.micro_batch or 1
    return changed


def check_precision(mixed: str, plan: Plan) -> None:
    """Raise UserError unless the accelerator's mixed precision is that of the plan."""
    wanted = "bf16" if precision_of(plan.recipe) == "bf16" else "no"
    if mixed != wanted:
        raise UserError(f"mixed precision is {mixed!r}, the plan's is {wanted!r}: set bf16={wanted == 'bf16'}")


def _refused(args: TrainingArguments, plan: Plan) -> list[str]:
    recipe = plan.recipe
    problems: list[str] = []
    if recipe.follows_noise:
        problems.append(f"batch.ramp={recipe.batch.ramp}: a planned Trainer knows all batches before training")
    if recipe.batch.by_length or recipe.batch.micro_tokens is not None:
        problems.append(
            "batch.by_length, batch.micro_tokens: a planned Trainer takes micro-batches of rows in random order"
        )
    if args.n_gpu > 1:
        problems.append(f"{args.n_gpu} GPUs in one process: start one process for each GPU (accelerate launch)")
    if args.deepspeed is not None or args.parallelism_config is not None:
        problems.append("DeepSpeed and tensor or context parallelism have not been tested with a planned Trainer")
    bf16 = precision_of(recipe) == "bf16"
    if args.fp16 or bool(args.bf16) != bf16:
        problems.append(f"the plan computes in {precision_of(recipe)}: set bf16={bf16} and leave fp16 out")
    if args.auto_find_batch_size:
        problems.append("auto_find_batch_size=True: the plan has the micro-batch; hfbsz probe finds one")
    return problems


def _contradiction(name: str, given: Any, planned: Any) -> str:
    return f"{name}={given!r} contradicts the plan, which has {planned!r}: leave it out, or change the recipe"
