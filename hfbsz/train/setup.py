"""Builds what training needs from a recipe and an accelerator: data, plan, model, optimizer and task."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator

from hfbsz.data.batches import Windows
from hfbsz.data.prepare.corpus import Progress as Show
from hfbsz.data.rows import Prepared, Rows
from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import check_environment, resolve
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.record import Step
from hfbsz.system import launcher
from hfbsz.system.command_name import command_name
from hfbsz.train.distributed import make_accelerator, on_all, on_main, precision_of, refuse_other_rows
from hfbsz.train.evaluate import Evaluation, evaluate
from hfbsz.train.fsdp import Sharding, fsdp_from_env, is_sharded, shard
from hfbsz.train.inputs import prepare_inputs
from hfbsz.train.knee import knee_of
from hfbsz.train.loop import train
from hfbsz.train.micro_batch import Parts
from hfbsz.train.model import build_model, count_parameters
from hfbsz.train.optimizers import Optimizers, build_optimizer
from hfbsz.train.reference import hash_of, with_references, without_rewards
from hfbsz.train.tasks import Task, build_task


@dataclass(frozen=True)
class Setup:
    """The arguments of `train` (train/loop.py) and `evaluate` (train/evaluate.py). The model and its optimizer are on
    the device, and training changes them."""

    plan: Plan
    data: Prepared
    tokenizer: Any
    model: Any  # prepared for its accelerator, or sharded
    optimizer: Optimizers
    task: Task
    accelerator: Accelerator
    notes: tuple[str, ...]  # about the model, for people

    def windows(self) -> Windows:
        """The micro-batches of every step of the plan, for this rank."""
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return Windows(self.data.train, self.plan, self.task.collate, rank, world_size, is_sharded(self.model))

    def parts(self) -> Parts:
        """The arguments of `train` and of `probe` (train/micro_batch)."""
        return Parts(self.plan, self.model, self.optimizer, self.task, self.windows(), self.accelerator)

    def steps(self, **options: Any) -> Iterator[Step]:
        """Train to the end of the plan's budget, and yield every optimizer step. `options` and errors: those of
        `train`."""
        return train(*self.parts(), **options)

    def evaluate(
        self,
        rows: Rows,
        numbers: Sequence[int],
        micro_batch: int,
        show: Callable[[int, int], None] = lambda done, total: None,
    ) -> Evaluation:
        """The losses of the rows `numbers` under the current weights (where weights are averaged: their average).
        Every rank calls it. `show(done, total)` reports progress in rows."""
        with self.optimizer.averaged():
            return evaluate(self.model, self.task, rows, numbers, micro_batch, self.accelerator, show)


def setup(recipe: Recipe, accelerator: Accelerator | None = None, show: Show = lambda *_: None) -> Setup:
    """Build what a recipe needs to train, on this rank; every rank calls it. `show` reports the progress of preparing
    data.

    Raises UserError, on every rank, for values that do not fit together.
    """
    sharding = sharding_of(recipe)
    accelerator = accelerator or make_accelerator(recipe)
    plan, data = plan_and_data(recipe, accelerator, show, sharding)
    return assemble(plan, data, tokenizer_of(data), accelerator, sharding, show)


def plan_and_data(
    recipe: Recipe,
    accelerator: Accelerator,
    show: Show,
    sharding: Sharding | None = None,
    micro_max: int | None = None,
) -> tuple[Plan, Prepared]:
    """The plan, and the rows, which rank 0 prepares. The parameters of the model are counted only if a scaling law
    needs them. `micro_max`: where batch.micro_max is auto, that of an earlier start of the run; None: it is probed.
    Raises UserError."""
    size = count_parameters(recipe.model, recipe.data.vocab_size) if recipe.uses_law() else None

    def rows() -> Prepared:
        return prepare_inputs(recipe, show, size)

    prepared = on_main(accelerator, rows)
    prepared = on_all(accelerator, lambda: prepared or rows())
    refuse_other_rows(accelerator, prepared.manifest)
    facts: Facts = replace(prepared.facts, parameters=size)
    if recipe.batch.micro_max == "auto":
        facts = replace(facts, micro_max=micro_max or _probed(recipe, facts, prepared, accelerator, sharding, show))
    plan = resolve(recipe, accelerator.num_processes, facts)
    check_environment(plan, launcher.environment())
    return plan, prepared


def _probed(
    recipe: Recipe, facts: Facts, data: Prepared, accelerator: Accelerator, sharding: Sharding | None, show: Show
) -> int:
    """The knee of the throughput on this hardware, in sequences: of a probe that is in the cache, or made now with a
    model of its own. All ranks call it."""
    plan = resolve(recipe, accelerator.num_processes, replace(facts, micro_max=1))
    data = without_rewards(data) if recipe.row_kind is RowKind.PREFERENCE else data

    def make() -> Parts:
        return assemble(plan, data, tokenizer_of(data), accelerator, sharding).parts()

    return knee_of(make, plan, accelerator, show, sharding is not None)


def tokenizer_of(data: Prepared) -> Any:
    """Load the tokenizer that the rows were tokenized with."""
    return load_tokenizer(data.tokenizer_path, needs_end=data.manifest.labels is None)


def assemble(
    plan: Plan,
    data: Prepared,
    tokenizer: Any,
    accelerator: Accelerator,
    sharding: Sharding | None,
    show: Show = lambda *_: None,
) -> Setup:
    """Build the model of a plan, its optimizer and its task. `sharding`: how weights are sharded over ranks (FSDP2);
    None: they are replicated. `show` reports the progress of the reference of preference pairs. Raises UserError for a
    model that does not fit."""
    recipe, notes = plan.recipe, list[str]()
    classes = data.manifest.labels  # of a classifier
    model = build_model(recipe.model, tokenizer, recipe.seed, recipe.data.sequence_length, classes, notes)
    model = model.double() if recipe.precision == "fp64" else model
    task = build_task(recipe, model, tokenizer, notes)
    needs_reference = recipe.row_kind is RowKind.PREFERENCE and data.train.reference is None
    initial = hash_of(model) if needs_reference else ""
    if sharding is not None and accelerator.num_processes > 1:
        model = shard(model, sharding, accelerator.device, precision_of(recipe))
    else:
        model = accelerator.prepare_model(model)
    if needs_reference:
        preference: Any = task
        data = with_references(data, model, preference, initial, plan, accelerator, show)
    return Setup(plan, data, tokenizer, model, build_optimizer(model, plan), task, accelerator, tuple(notes))


def sharding_of(recipe: Recipe) -> Sharding | None:
    """How weights are sharded over ranks (FSDP2), from the launcher's environment; called before the accelerator is
    created. Raises UserError for combinations that have not been tested."""
    sharding = fsdp_from_env(os.environ)
    if sharding is not None and recipe.optim.name not in ("adamw", "muon"):
        raise UserError(
            f"optim.name: {recipe.optim.name} has not been tested with sharded weights (FSDP2): "
            "use adamw or muon, or launch with DDP (accelerate_configs/ddp.yaml)"
        )
    if sharding is not None and recipe.measure.sharpness.method == "hessian":
        raise UserError(
            "measure.sharpness.method: hessian does not support sharded weights (FSDP2): use critical, or measure a "
            "checkpoint with hfbsz sharpness"
        )
    if sharding is not None and recipe.model.lora is not None:
        raise UserError(
            "model.lora: it has not been tested with sharded weights (FSDP2): launch with DDP "
            "(accelerate_configs/ddp.yaml)"
        )
    if sharding is not None and recipe.eval.harness.tasks:
        raise UserError(
            "eval.harness.tasks: sharded weights (FSDP2) cannot be scored during the run: leave it out, and run "
            f"{command_name('harness')} RUN afterwards"
        )
    return sharding
