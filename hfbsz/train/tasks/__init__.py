"""Tasks: what a row is, and what its loss counts."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hfbsz.data.batches import Batch


class BatchEvaluation(NamedTuple):
    """What an evaluation learns of a batch, row by row."""

    nll: Any  # tensor [rows], nats: the sum over a row's targets
    targets: Any  # tensor [rows]
    outputs: Any  # tensor [rows, k]: what the task's metrics are made from; k may be 0


class Task(Protocol):
    """A task turns rows into micro-batches, and a micro-batch into a *summed* loss; `Batch.targets` is its count."""

    def collate(self, rows: Sequence[Any]) -> Batch: ...

    def loss_sum(self, model: Any, batch: Batch) -> Any:
        """The loss summed over the batch's targets, in nats: a scalar tensor."""
        ...

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """The loss of every row, and what the metrics need."""
        ...
