"""Tasks: how rows are collated into micro-batches, and how their loss is computed.

Each module of this folder is one task, with `build(recipe, model, tokenizer, notes) -> Task`; `hfbsz/recipe/tasks`
lists them.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hfbsz.data.batches import Batch
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.tasks import TASKS


class BatchEvaluation(NamedTuple):
    """The evaluation of a batch, row by row."""

    nll: Any  # tensor [rows], nats: the sum over a row's targets
    targets: Any  # tensor [rows]
    outputs: Any  # tensor [rows, k]: inputs of the task's metrics; k may be 0


class Task(Protocol):
    """Collates rows into micro-batches, and computes the *summed* loss of a micro-batch over its `Batch.targets`
    targets."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Collate rows into a micro-batch on the host. A None row is padding: it has no targets."""
        ...

    def loss_sum(self, model: Any, batch: Batch) -> Any:
        """The loss summed over the batch's targets, in nats: a scalar tensor."""
        ...

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """The loss of every row, and the inputs of the task's metrics."""
        ...


def build_task(recipe: Recipe, model: Any, tokenizer: Any, notes: list[str]) -> Task:
    """Build the task of a recipe for a model that is not wrapped or sharded yet; notes for the user are appended to
    `notes`. Raises UserError for a model that the task does not support."""
    task: Task = importlib.import_module(TASKS[recipe.task].module).build(recipe, model, tokenizer, notes)
    return task
