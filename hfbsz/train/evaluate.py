"""The loss of rows, one by one: the same on every rank, for every micro-batch and world size up to rounding."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfbsz.data.batches import evaluation_batches
from hfbsz.data.rows import Rows
from hfbsz.system.signals import AGREEMENT_SECONDS, waiting
from hfbsz.train.device import to_device
from hfbsz.train.fsdp import release
from hfbsz.train.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found of each row, in the order in which they were asked for; the same on every rank."""

    nll: np.ndarray  # [rows], nats: the sum over a row's targets
    targets: np.ndarray  # [rows]
    outputs: np.ndarray  # [rows, k], the task's own
    text_bytes: float  # bytes of the text that the targets stand for
    seconds: float

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.nll.sum() / self.targets.sum())

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Of the rows of both."""
        nll, targets, outputs = (
            np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("nll", "targets", "outputs")
        )
        return Evaluation(nll, targets, outputs, self.text_bytes + other.text_bytes, self.seconds + other.seconds)


@torch.no_grad()
def evaluate(
    model: Any,
    task: Task,
    rows: Rows,
    numbers: Sequence[int],
    micro_batch: int,
    accelerator: Any,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> Evaluation:
    """The loss of the rows `numbers`, the same for every micro-batch and world size up to rounding. Rows of like length
    share a pass, so that little of it is padding. `show` is told of rows done, and of how many."""
    started = time.perf_counter()
    model = accelerator.unwrap_model(model, keep_torch_compile=True)
    model.eval()
    rank, world_size = accelerator.process_index, accelerator.num_processes
    wanted = np.asarray(numbers)
    order = np.argsort(rows.lengths[wanted], kind="stable")
    parts = []
    for batch in evaluation_batches(rows, wanted[order].tolist(), micro_batch, task.collate, rank, world_size):
        nll, targets, outputs = task.evaluate_batch(model, to_device(batch, accelerator.device))
        parts.append(torch.cat([nll[:, None].double(), targets[:, None].double(), outputs.double()], dim=1))
        show(min(len(wanted), len(parts) * micro_batch * world_size), len(wanted))
    release(model)
    found = torch.stack(parts)  # [passes, micro-batch, 2 + k]
    if world_size > 1:
        with waiting(AGREEMENT_SECONDS + 2 * (time.perf_counter() - started)):
            found = accelerator.gather(found[None])
        found = found.transpose(0, 1)  # passes deal rows out rank by rank
    table = found.reshape(-1, found.shape[-1])[: len(wanted)].cpu().numpy()[np.argsort(order)]
    model.train()
    seconds = time.perf_counter() - started
    text_bytes = float(rows.text_bytes[wanted].sum())
    return Evaluation(table[:, 0], table[:, 1].astype(np.int64), table[:, 2:], text_bytes, seconds)
