"""Classification: every row has one label, its only target."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hfbsz.data import IGNORED
from hfbsz.data.batches import Batch
from hfbsz.tasks import Judged


class Classification:
    """Rows hold tokens and one label. Shorter rows are padded on the right, and masked."""

    def __init__(self, pad_token: int) -> None:
        self.pad_token = pad_token

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Inputs of shape [rows, longest], labels [rows]; a None row counts nothing."""
        lengths = [0 if row is None else len(row.tokens) for row in rows]
        inputs = np.full((len(rows), max(1, *lengths, 1)), self.pad_token, np.int64)
        mask, labels = np.zeros_like(inputs), np.full(len(rows), IGNORED, np.int64)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if row is not None:
                inputs[place, :length], mask[place, :length], labels[place] = row.tokens, 1, row.labels[0]
            else:
                mask[place, 0] = 1  # attention over nothing is no number
        tensors = {"input_ids": torch.from_numpy(inputs), "attention_mask": torch.from_numpy(mask)}
        return Batch(tensors, torch.from_numpy(labels), int((labels != IGNORED).sum()), sum(lengths))

    def loss_sum(self, model: Any, batch: Batch) -> torch.Tensor:
        """ΣNLL of the labels, in nats."""
        return F.cross_entropy(_logits(model, batch), batch.labels, ignore_index=IGNORED, reduction="sum")

    def judge(self, model: Any, batch: Batch) -> Judged:
        """Outputs: the logits, then the label's number."""
        logits = _logits(model, batch).double()
        losses = F.cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="none")
        outputs = torch.cat([logits, batch.labels[:, None].double()], dim=1)
        return Judged(losses, (batch.labels != IGNORED).long(), outputs)


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(**batch.inputs).logits
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
