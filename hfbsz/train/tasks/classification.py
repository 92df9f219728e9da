"""Classification: every row has one label, its only target."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hfbsz.data import IGNORED
from hfbsz.data.batches import Batch
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Recipe
from hfbsz.train.tasks import BatchEvaluation


class Classification:
    """Rows hold tokens and one label. Shorter rows are padded on the right, or on the left, and masked.

    `pad_token` is the id of the padding token; `left` pads on the left.
    """

    def __init__(self, pad_token: int, left: bool = False) -> None:
        self.pad_token, self.left = pad_token, left

    @classmethod
    def of(cls, model: Any) -> "Classification":
        """The task with the model's padding token (set by `build_model`), on a side where padding does not change the
        logits.

        The side is tested on the model: for example, XLNet classifies by the last position of a row, padding or not.
        Raises UserError if padding on either side changes the logits.
        """
        task = cls(model.config.pad_token_id)
        for left in (False, True):
            if _ignores_padding(model, task.pad_token, left):
                return cls(task.pad_token, left)
        raise UserError(
            f"model: {model.config.model_type} lets padding change its logits, so that they depend on the other "
            "rows of the batch: use another model"
        )

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Inputs of shape [rows, longest], labels [rows]; a None row has no label."""
        lengths = [0 if row is None else len(row.tokens) for row in rows]
        inputs = np.full((len(rows), max(1, *lengths, 1)), self.pad_token, np.int64)
        mask, labels = np.zeros_like(inputs), np.full(len(rows), IGNORED, np.int64)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if row is not None:
                columns = slice(inputs.shape[1] - length, None) if self.left else slice(length)
                inputs[index, columns], mask[index, columns], labels[index] = row.tokens, 1, row.labels[0]
            else:
                mask[index, -1 if self.left else 0] = 1  # a softmax over no positions is not finite
        tensors = {"input_ids": torch.from_numpy(inputs), "attention_mask": torch.from_numpy(mask)}
        return Batch(tensors, torch.from_numpy(labels), int((labels != IGNORED).sum()), sum(lengths))

    def loss_sum(self, model: Any, batch: Batch) -> torch.Tensor:
        """ΣNLL of the labels, in nats."""
        return F.cross_entropy(_logits(model, batch), batch.labels, ignore_index=IGNORED, reduction="sum")

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """Losses [rows] in nats; the outputs are the logits, followed by the label."""
        logits = _logits(model, batch).double()
        losses = F.cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="none")
        outputs = torch.cat([logits, batch.labels[:, None].double()], dim=1)
        return BatchEvaluation(losses, (batch.labels != IGNORED).long(), outputs)


def build(recipe: Recipe, model: Any, tokenizer: Any, notes: list[str]) -> Classification:
    """Build the task for a model. Raises UserError for one whose logits depend on padding."""
    return Classification.of(model)


@torch.no_grad()
def _ignores_padding(model: Any, pad_token: int, left: bool) -> bool:
    device, training = next(model.parameters()).device, model.training
    rows = 1 + torch.arange(8, device=device).reshape(2, 4)
    rows = rows + (rows >= pad_token).long()  # no row holds the padding token
    widths = (3, 0) if left else (0, 3)
    padded = F.pad(rows, widths, value=pad_token), F.pad(torch.ones_like(rows), widths)
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # two passes are not worth compiling
            expected = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.double()
            actual = model(input_ids=padded[0], attention_mask=padded[1]).logits.double()
    finally:
        model.train(training)
    return torch.allclose(expected, actual, rtol=0, atol=1e-4 * float(expected.abs().max()))


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(**batch.inputs).logits
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
