"""Tasks: how rows become micro-batches, and what their loss counts.

A module of this folder is one task, with `build(recipe, model, tokenizer) -> Task`; `hfbsz/recipe/tasks` lists them.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hfbsz.data.batches import Batch
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.tasks import TASKS


class BatchEvaluation(NamedTuple):
    """What an evaluation learns of a batch, row by row."""

    nll: Any  # tensor [rows], nats: the sum over a row's targets
    targets: Any  # tensor [rows]
    outputs: Any  # tensor [rows, k]: what the task's metrics are made from; k may be 0


class Task(Protocol):
    """A task turns rows into micro-batches, and a micro-batch into a *summed* loss; `Batch.targets` is its count."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """The micro-batch of some rows, on the host; a None row fills a place and counts nothing."""
        ...

    def loss_sum(self, model: Any, batch: Batch) -> Any:
        """The loss summed over the batch's targets, in nats: a scalar tensor."""
        ...

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """The loss of every row, and what the metrics need."""
        ...


def build_task(recipe: Recipe, model: Any, tokenizer: Any) -> Task:
    """The task of a recipe, for a model that is neither wrapped nor sharded yet. Raises UserError for a model that does
    not suit it."""
    task: Task = importlib.import_module(TASKS[recipe.task].module).build(recipe, model, tokenizer)
    return task
