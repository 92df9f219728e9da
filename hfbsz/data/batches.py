"""Which rows a step trains on, and how they are divided among ranks and micro-batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfbsz.data import IGNORED
from hfbsz.data.order import LengthOrder, Order
from hfbsz.data.rows import Rows
from hfbsz.plan.plan import Plan, PlannedStep


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the host: the model's `inputs`, its `labels` (−100 is ignored by the loss), and counts.

    A row is an entry of `labels`, and one sequence of `inputs`; of a preference pair, two that follow each other.
    """

    inputs: dict[str, Any]
    labels: Any
    targets: int  # labels that the loss counts; of pairs, the pairs
    tokens: int  # input tokens without padding
    reference: Any = None  # of pairs: reference log-probabilities, tensor [rows, 2]

    @property
    def positions(self) -> int:
        """Number of positions that the model computes, padding included: rows × the longest row."""
        return self.inputs["input_ids"].numel()

    @property
    def sequences_per_row(self) -> int:
        """Sequences of the inputs for each row: 1, or 2 of pairs."""
        return len(self.inputs["input_ids"]) // len(self.labels) if "input_ids" in self.inputs else 1

    def first(self, rows: int) -> "Batch":
        """Its first rows. Their `tokens` count at most the positions: padding among them is not known."""
        inputs = {name: one[: rows * self.sequences_per_row] for name, one in self.inputs.items()}
        labels, reference = self.labels[:rows], None if self.reference is None else self.reference[:rows]
        is_pair = self.sequences_per_row > 1  # whose one target is which answer was chosen
        targets = min(self.targets, len(labels)) if is_pair else int((labels != IGNORED).sum())
        return Batch(inputs, labels, targets, min(self.tokens, inputs["input_ids"].numel()), reference)


Collate = Callable[[Sequence[Any]], Batch]  # takes rows; None stands for a row without targets


class Windows:
    """The micro-batches of every step, for one rank.

    A step takes the rows at positions [clock, clock + global_batch) of the order and assigns them micro-batch by
    micro-batch, so it trains on the same rows on any number of ranks. With `batch.micro_tokens`, every rank gets the
    same number of rows of similar lengths and splits them into micro-batches itself. With `equal_counts` (FSDP2), all
    ranks use the same number of micro-batches; no communication is needed because every rank knows all lengths.
    """

    def __init__(
        self, rows: Rows, plan: Plan, collate: Collate, rank: int, world_size: int, equal_counts: bool = False
    ) -> None:
        self.rows, self.order, self.collate = rows, _order(rows, plan), collate
        self.rank, self.world_size = rank, world_size
        self.micro_tokens, self.equal_counts = plan.recipe.batch.micro_tokens, equal_counts

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """Row numbers (int64, shape [stop − start]) at the clocks start … stop−1."""
        return self.order.take(start, stop - start)

    def window(self, planned: PlannedStep) -> list[Batch]:
        """This rank's micro-batches of a step."""
        numbers = self.row_numbers(planned.clock, planned.next_clock)
        return [self.collate([self.rows[int(number)] for number in micro]) for micro in self._split(numbers, planned)]

    def _split(self, numbers: np.ndarray, planned: PlannedStep) -> Iterable[np.ndarray]:
        """This rank's row numbers of a step, micro-batch by micro-batch."""
        if planned.micro_batch is not None:
            return numbers.reshape(-1, self.world_size, planned.micro_batch)[:, self.rank]
        assert self.micro_tokens is not None  # otherwise the plan sets a micro-batch
        by_rank = numbers[split_by_length(self.rows.lengths[numbers], self.world_size)]
        lengths = self.rows.lengths[by_rank]
        ranks = range(self.world_size) if self.equal_counts else [self.rank]
        count = max(len(micro_batch_starts(lengths[rank], self.micro_tokens)) for rank in ranks)
        return np.split(by_rank[self.rank], micro_batch_starts(lengths[self.rank], self.micro_tokens, count)[1:])


def _order(rows: Rows, plan: Plan) -> Order | LengthOrder:
    seed = plan.recipe.seed
    if plan.recipe.batch.by_length:
        return LengthOrder(rows.lengths, seed, plan.largest_batch, plan.total)
    return Order(len(rows), seed)


def split_by_length(lengths: np.ndarray, ranks: int) -> np.ndarray:
    """Indices of rows for each rank (shape [ranks, rows ÷ ranks]), longest first. Rows sorted by length are assigned in
    alternating (snake) order, so that the ranks get similar lengths."""
    indices = np.argsort(-lengths, kind="stable").reshape(-1, ranks)
    indices[1::2] = indices[1::2, ::-1].copy()
    return indices.T


def micro_batch_starts(lengths: np.ndarray, max_tokens: int, min_count: int = 1) -> list[int]:
    """Start indices of the micro-batches of rows sorted from longest to shortest, with rows × longest ≤ `max_tokens` in
    each (a longer row gets a micro-batch of its own): as few as possible, but at least `min_count` (at most one for
    each row)."""
    starts, index = [], 0
    while index < len(lengths):
        starts.append(index)
        index += max(1, max_tokens // max(1, int(lengths[index])))
    while len(starts) < min_count:  # halve the one with the most rows
        sizes = np.diff([*starts, len(lengths)])
        largest = int(sizes.argmax())
        starts.insert(largest + 1, starts[largest] + int(sizes[largest]) // 2)
    return starts


def evaluation_batches(
    rows: Rows, numbers: Sequence[int], micro_batch: int, collate: Collate, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's share of an evaluation on the rows `numbers`. Every rank gets the same number of batches: missing
    rows are passed to `collate` as None, and have no targets."""
    step = micro_batch * world_size
    for start in range(0, len(numbers), step):
        indices = range(start + rank * micro_batch, start + (rank + 1) * micro_batch)
        yield collate([rows[numbers[index]] if index < len(numbers) else None for index in indices])
