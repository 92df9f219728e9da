"""Which rows a step trains on, and how ranks and micro-batches share them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfbsz.data.order import Order
from hfbsz.data.rows import Rows
from hfbsz.plan import PlannedStep


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the host: the model's `inputs`, `labels` with −100 where nothing counts, and counts."""

    inputs: dict[str, Any]
    labels: Any
    targets: int  # labels that count
    tokens: int  # input tokens, padding excluded


Collate = Callable[[Sequence[Any]], Batch]  # of rows; None stands for a row without targets


class Windows:
    """The micro-batches of every step, for one rank.

    A step takes rows [clock, clock + global_batch) of the order, dealt out micro-batch by micro-batch, so that it
    trains on the same rows on any number of ranks.
    """

    def __init__(self, rows: Rows, seed: int, collate: Collate, rank: int, world_size: int) -> None:
        self.rows, self.order, self.collate = rows, Order(len(rows), seed), collate
        self.rank, self.world_size = rank, world_size

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """Row numbers of the clocks start … stop−1."""
        return self.order.take(start, stop - start)

    def window(self, planned: PlannedStep) -> list[Batch]:
        """This rank's micro-batches of a step."""
        numbers = self.row_numbers(planned.clock, planned.next_clock)
        mine = numbers.reshape(planned.accumulation, self.world_size, planned.micro_batch)[:, self.rank]
        return [self.collate([self.rows[int(number)] for number in micro]) for micro in mine]


def evaluation_batches(
    rows: Rows, numbers: Sequence[int], micro_batch: int, collate: Collate, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of an evaluation; every rank gets the same number of passes, padded with rows that count
    nothing."""
    step = micro_batch * world_size
    for start in range(0, len(numbers), step):
        mine = [start + rank * micro_batch + i for i in range(micro_batch)]
        yield collate([rows[numbers[place]] if place < len(numbers) else None for place in mine])
