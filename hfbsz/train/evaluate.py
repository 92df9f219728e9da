"""Evaluates the loss of each row; up to rounding, it does not depend on micro-batch and world size."""

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
    """The results of an evaluation, row by row, in the order of the row numbers; the same on every rank."""

    nll: np.ndarray  # [rows], nats: the sum over a row's targets
    targets: np.ndarray  # [rows]
    outputs: np.ndarray  # [rows, k], the inputs of the task's metrics
    text_bytes: float  # UTF-8 bytes of the text that the targets encode
    seconds: float

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.nll.sum() / self.targets.sum())

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """The evaluation of the rows of `self`, followed by those of `other`."""
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
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """The loss of the rows `numbers`; every rank calls it. Rows of similar length share a forward pass, to reduce
    padding. `show(done, total)` reports progress in rows."""
    started = time.perf_counter()
    model = accelerator.unwrap_model(model, keep_torch_compile=True)
    model.eval()
    rank, world_size = accelerator.process_index, accelerator.num_processes
    selected = np.asarray(numbers)
    order = np.argsort(rows.lengths[selected], kind="stable")
    parts = []
    for batch in evaluation_batches(rows, selected[order].tolist(), micro_batch, task.collate, rank, world_size):
        nll, targets, outputs = task.evaluate_batch(model, to_device(batch, accelerator.device))
        parts.append(torch.cat([nll[:, None].double(), targets[:, None].double(), outputs.double()], dim=1))
        show(min(len(selected), len(parts) * micro_batch * world_size), len(selected))
    release(model)
    results = torch.stack(parts)  # [passes, micro-batch, 2 + k]
    if world_size > 1:
        with waiting(AGREEMENT_SECONDS + 2 * (time.perf_counter() - started)):
            results = accelerator.gather(results[None])
        results = results.transpose(0, 1)  # each pass assigns consecutive rows to ranks
    table = results.reshape(-1, results.shape[-1])[: len(selected)].cpu().numpy()[np.argsort(order)]
    model.train()
    seconds = time.perf_counter() - started
    text_bytes = float(rows.text_bytes[selected].sum())
    return Evaluation(table[:, 0], table[:, 1].astype(np.int64), table[:, 2:], text_bytes, seconds)
