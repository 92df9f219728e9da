"""Preference: a row is a pair of answers to one prompt, and its only target is which of them was chosen.

The loss of a pair is −log σ(reward of the chosen answer − reward of the rejected one), the reward of an answer being
β × (its log-probability − that under the initial weights): DPO (Rafailov et al. 2023, arXiv 2305.18290). With
`preference.length_normalized`, log-probabilities are divided by the number of targets of their answer (Lambert et al.
2024, arXiv 2411.15124).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hfbsz.data import IGNORED
from hfbsz.data.batches import Batch
from hfbsz.recipe.fields import Preference as Spec
from hfbsz.recipe.fields import Recipe
from hfbsz.train.linear_loss import FusedHead, fused_head
from hfbsz.train.tasks import BatchEvaluation
from hfbsz.train.tasks.language_modeling import logits_of


class Preference:
    """Rows are Pairs. A pair is two sequences that follow each other in a forward pass, padded on the right; under
    causal attention no token sees the padding after it, so no mask is needed."""

    def __init__(self, pad_token: int, spec: Spec, head: FusedHead | None = None) -> None:
        """`head`: for losses in chunks of tokens (train/linear_loss); None: from the logits."""
        self.pad_token, self.spec, self.head = pad_token, spec, head

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Inputs of shape [2 · rows, longest], labels [rows, 2, longest]; a None row has no target."""
        sides = [side for row in rows for side in ((None, None) if row is None else (row.chosen, row.rejected))]
        lengths = [0 if side is None else len(side.tokens) - 1 for side in sides]
        shape = (len(sides), max(1, *lengths))
        inputs, labels = np.full(shape, self.pad_token, np.int64), np.full(shape, IGNORED, np.int64)
        for index, (side, length) in enumerate(zip(sides, lengths, strict=True)):
            if side is not None:
                inputs[index, :length], labels[index, :length] = side.tokens[:-1], side.labels[1:]
        reference = np.array([(0.0, 0.0) if row is None else _reference_of(row) for row in rows])
        return Batch(
            {"input_ids": torch.from_numpy(inputs)},
            torch.from_numpy(labels.reshape(len(rows), 2, -1)),
            sum(row is not None for row in rows),
            sum(lengths),
            torch.from_numpy(reference),
        )

    def loss_sum(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss summed over the pairs, in nats."""
        return self._losses(self.rewards(model, batch), batch).sum()

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """Losses [rows] in nats; the outputs are the rewards of the chosen and of the rejected answer."""
        rewards = self.rewards(model, batch)
        return BatchEvaluation(self._losses(rewards, batch), _is_pair(batch).long(), rewards)

    def rewards(self, model: Any, batch: Batch) -> torch.Tensor:
        """The rewards of the chosen and the rejected answers, float64 [rows, 2]."""
        changes = self.log_probabilities(model, batch) - batch.reference
        if self.spec.length_normalized:
            changes = changes / (batch.labels != IGNORED).sum(dim=2).clamp(min=1)
        return self.spec.beta * changes

    def log_probabilities(self, model: Any, batch: Batch) -> torch.Tensor:
        """The log-probabilities of the chosen and the rejected answers, float64 [rows, 2]: sums over their targets."""
        labels = batch.labels.flatten(0, 1)
        if self.head is not None:
            losses = self.head.each_token_loss(model, batch.inputs, labels)
        else:
            logits = logits_of(model, batch).transpose(1, 2)
            losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        return -losses.double().sum(dim=1).view(-1, 2)

    def _losses(self, rewards: torch.Tensor, batch: Batch) -> torch.Tensor:
        return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).masked_fill(~_is_pair(batch), 0)


def build(recipe: Recipe, model: Any, tokenizer: Any, notes: list[str]) -> Preference:
    """Build the task for a model, whose dropout is turned off; notes for the user are appended to `notes`. Raises
    UserError for `model.fused_loss=true` with a model whose head is not linear."""
    if _without_dropout(model):
        notes.append(
            "task=preference: the model's dropout is off, since the rewards compare it with its initial weights "
            "(model.lora.dropout stays)"
        )
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return Preference(end if pad is None else pad, recipe.preference, fused_head(model, recipe.model, notes))


def _without_dropout(model: nn.Module) -> bool:
    """Turn off the dropout of a model, except that of LoRA; returns whether there was any."""
    found = False
    module: Any
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p and "lora_dropout" not in name:
            module.p, found = 0.0, True
        if isinstance(rate := getattr(module, "attention_dropout", None), float) and rate:
            module.attention_dropout, found = 0.0, True
    return found


def _reference_of(row: Any) -> Any:
    """The reference of a pair; NaN, which no loss survives unnoticed, if it was not computed."""
    return (np.nan, np.nan) if row.reference is None else row.reference


def _is_pair(batch: Batch) -> torch.Tensor:
    """Whether each row is a pair, not padding: bool [rows]."""
    return (batch.labels != IGNORED).any(dim=2).all(dim=1)
