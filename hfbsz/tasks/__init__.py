"""Tasks: what a row is, and what its loss counts."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hfbsz.data.batches import Batch


class Task(Protocol):
    """A task turns rows into micro-batches, and a micro-batch into a *summed* loss; `Batch.targets` is its count."""

    def collate(self, rows: Sequence[np.ndarray | None]) -> Batch: ...

    def loss_sum(self, model: Any, batch: Batch) -> Any:
        """The loss summed over the batch's targets, in nats: a scalar tensor."""
        ...
