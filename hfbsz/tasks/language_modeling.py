"""Causal language modelling: every token of a row is predicted from those before it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hfbsz.data.batches import Batch

IGNORED = -100


class LanguageModeling:
    """Rows hold n+1 tokens: n inputs and, shifted by one, n targets. Shorter rows are padded on the right: under causal
    attention padding cannot reach a token before it, so no mask is needed."""

    def __init__(self, pad_token: int) -> None:
        self.pad_token = pad_token

    def collate(self, rows: Sequence[np.ndarray | None]) -> Batch:
        """Tensors of shape [rows, longest]; a None row counts nothing."""
        lengths = [0 if row is None else len(row) - 1 for row in rows]
        shape = (len(rows), max(1, *lengths) if len(lengths) > 1 else max(1, lengths[0]))
        inputs, labels = np.full(shape, self.pad_token, np.int64), np.full(shape, IGNORED, np.int64)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if row is not None:
                inputs[place, :length], labels[place, :length] = row[:-1], row[1:]
        count = sum(lengths)
        return Batch({"input_ids": torch.from_numpy(inputs)}, torch.from_numpy(labels), count, count)

    def loss_sum(self, model: Any, batch: Batch) -> torch.Tensor:
        """ΣNLL over the targets, in nats."""
        logits = model(**batch.inputs, use_cache=False).logits
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
