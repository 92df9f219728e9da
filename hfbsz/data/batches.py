"""Which rows a step trains on, and how ranks and micro-batches share them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfbsz.data.order import LengthOrder, Order
from hfbsz.data.rows import Rows
from hfbsz.plan.plan import Plan, PlannedStep


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the host: the model's `inputs`, `labels` with −100 where nothing counts, and counts."""

    inputs: dict[str, Any]
    labels: Any
    targets: int  # labels that count
    tokens: int  # input tokens, padding excluded

    @property
    def positions(self) -> int:
        """Positions that the model computes, padding included: rows × the longest."""
        return self.inputs["input_ids"].numel()


Collate = Callable[[Sequence[Any]], Batch]  # of rows; None stands for a row without targets


class Windows:
    """The micro-batches of every step, for one rank.

    A step takes rows [clock, clock + global_batch) of the order, dealt out micro-batch by micro-batch, so that it
    trains on the same rows on any number of ranks. With `batch.micro_tokens` ranks get equally many rows of like
    lengths, and each cuts its own into micro-batches; `equal_counts` (FSDP2) has them make equally many, which they
    know without a message, for every rank knows all lengths.
    """

    def __init__(
        self, rows: Rows, plan: Plan, collate: Collate, rank: int, world_size: int, equal_counts: bool = False
    ) -> None:
        self.rows, self.order, self.collate = rows, _order(rows, plan), collate
        self.rank, self.world_size = rank, world_size
        self.micro_tokens, self.equal_counts = plan.recipe.batch.micro_tokens, equal_counts

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """Row numbers of the clocks start … stop−1."""
        return self.order.take(start, stop - start)

    def window(self, planned: PlannedStep) -> list[Batch]:
        """This rank's micro-batches of a step."""
        numbers = self.row_numbers(planned.clock, planned.next_clock)
        return [self.collate([self.rows[int(number)] for number in micro]) for micro in self._split(numbers, planned)]

    def _split(self, numbers: np.ndarray, planned: PlannedStep) -> Iterable[np.ndarray]:
        """This rank's row numbers of a window, micro-batch by micro-batch."""
        if planned.micro_batch is not None:
            return numbers.reshape(-1, self.world_size, planned.micro_batch)[:, self.rank]
        assert self.micro_tokens is not None  # or the plan would name a micro-batch
        dealt = numbers[deal(self.rows.lengths[numbers], self.world_size)]
        lengths = self.rows.lengths[dealt]
        ranks = range(self.world_size) if self.equal_counts else [self.rank]
        count = max(len(cut(lengths[rank], self.micro_tokens)) for rank in ranks)
        return np.split(dealt[self.rank], cut(lengths[self.rank], self.micro_tokens, count)[1:])


def _order(rows: Rows, plan: Plan) -> Order | LengthOrder:
    seed = plan.recipe.seed
    if plan.recipe.batch.by_length:
        return LengthOrder(rows.lengths, seed, plan.largest_batch, plan.total)
    return Order(len(rows), seed)


def deal(lengths: np.ndarray, ranks: int) -> np.ndarray:
    """Places of rows (shape [ranks, rows ÷ ranks]), the longest of each rank first: dealt by length there and back, so
    that ranks get like lengths."""
    places = np.argsort(-lengths, kind="stable").reshape(-1, ranks)
    places[1::2] = places[1::2, ::-1].copy()
    return places.T


def cut(lengths: np.ndarray, most: int, count: int = 1) -> list[int]:
    """Where micro-batches begin among rows that grow shorter, so that rows × longest ≤ `most` tokens (a longer row is
    alone): as few as that takes, or `count` if that is more (at most one for each row)."""
    starts, place = [], 0
    while place < len(lengths):
        starts.append(place)
        place += max(1, most // max(1, int(lengths[place])))
    while len(starts) < count:  # halve the one with the most rows
        sizes = np.diff([*starts, len(lengths)])
        largest = int(sizes.argmax())
        starts.insert(largest + 1, starts[largest] + int(sizes[largest]) // 2)
    return starts


def evaluation_batches(
    rows: Rows, numbers: Sequence[int], micro_batch: int, collate: Collate, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of an evaluation; every rank gets the same number of passes, padded with rows that count
    nothing."""
    step = micro_batch * world_size
    for start in range(0, len(numbers), step):
        mine = [start + rank * micro_batch + i for i in range(micro_batch)]
        yield collate([rows[numbers[place]] if place < len(numbers) else None for place in mine])
