"""Causal language modelling: every token of a row is predicted from those before it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hfbsz.data import IGNORED
from hfbsz.data.batches import Batch
from hfbsz.data.rows import Row
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Recipe
from hfbsz.train.tasks import BatchEvaluation

_PROMPT, _SAID = 16, 16  # targets of a row that are given, and that have to be said, to count as extractable


class LanguageModeling:
    """Rows hold n+1 tokens: n inputs and, shifted by one, n targets, of which rows with labels count some alone (the
    answers of a conversation). Shorter rows are padded on the right: under causal attention padding cannot reach a
    token before it, so no mask is needed.

    With an `end_token`, which ends a document, a token of a packed row attends to its own document alone: positions
    restart after every end, and no end predicts the next document's first token. The model must honour it
    (`check_attends_within`).
    """

    def __init__(self, pad_token: int, end_token: int | None = None) -> None:
        self.pad_token, self.end_token = pad_token, end_token

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Tensors of shape [rows, longest]; a None row counts nothing."""
        tokens = [row.tokens if isinstance(row, Row) else row for row in rows]
        lengths = [0 if row is None else len(row) - 1 for row in tokens]
        shape = (len(rows), max(1, *lengths) if len(lengths) > 1 else max(1, lengths[0]))
        inputs, labels = np.full(shape, self.pad_token, np.int64), np.full(shape, IGNORED, np.int64)
        for place, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
            if row is not None:
                whole = rows[place]
                inputs[place, :length] = row[:-1]
                labels[place, :length] = whole.labels[1:] if isinstance(whole, Row) else row[1:]
        tensors = {"input_ids": torch.from_numpy(inputs)}
        if self.end_token is not None:
            labels[inputs == self.end_token] = IGNORED
            tensors["position_ids"] = torch.from_numpy(positions_within(inputs, self.end_token))
        return Batch(tensors, torch.from_numpy(labels), int((labels != IGNORED).sum()), sum(lengths))

    def loss_sum(self, model: Any, batch: Batch) -> torch.Tensor:
        """ΣNLL over the targets, in nats."""
        logits = _logits(model, batch)
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """Outputs: 1 where the row's 17th to 32nd targets are each the likeliest token after what stands before it, so
        that greedy decoding would say them (extractable: Carlini et al. 2023); 0 where not; nan in a shorter row."""
        logits, labels = _logits(model, batch), batch.labels
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        counted = labels != IGNORED
        place = counted.cumsum(dim=1)
        asked = counted & (place > _PROMPT) & (place <= _PROMPT + _SAID)
        said = ((logits.argmax(dim=-1) == labels) | ~asked).all(dim=1)
        extractable = said.double().masked_fill(place[:, -1] < _PROMPT + _SAID, torch.nan)
        return BatchEvaluation(losses.view_as(labels).double().sum(dim=1), counted.sum(dim=1), extractable[:, None])


def build(recipe: Recipe, model: Any, tokenizer: Any) -> LanguageModeling:
    """The task for a model; raises UserError for one that lets packed documents attend to each other against
    `data.attend=within`."""
    within = recipe.data.pack and recipe.data.attend == "within"
    if within:
        check_attends_within(model)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return LanguageModeling(end if pad is None else pad, end if within else None)


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(**batch.inputs, use_cache=False).logits
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def positions_within(inputs: np.ndarray, end_token: int) -> np.ndarray:
    """Positions (int64, the shape of `inputs`) that restart at 0 at a row's start and after every end of a document."""
    places = np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape)
    starts = np.zeros(inputs.shape, np.int64)
    starts[:, 1:] = np.where(inputs[:, :-1] == end_token, places[:, 1:], 0)
    return places - np.maximum.accumulate(starts, axis=1)


@torch.no_grad()
def check_attends_within(model: Any) -> None:
    """Raise UserError unless restarting positions keep packed documents apart.

    Shown by behaviour: of two short documents in a row, the first one's tokens are changed, and the logits of the
    second must not move.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    remedy = "take data.attend=across, or data.pack=false"
    length, device, training = 4, next(model.parameters()).device, model.training
    count = 2 * length
    first = torch.arange(count, device=device)[None] % model.config.vocab_size
    second = torch.cat([first[:, :length].flip(1), first[:, length:]], dim=1)
    positions = torch.arange(length, device=device).repeat(2)[None]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # two passes are not worth compiling
            logits = [
                model(input_ids=tokens, position_ids=positions, use_cache=False).logits for tokens in (first, second)
            ]
    except TypeError:
        raise UserError(f"data.attend: {model.config.model_type} takes no position_ids: {remedy}") from None
    finally:
        model.train(training)
    before, after = (each[:, length:].double() for each in logits)
    if not torch.allclose(before, after, rtol=0, atol=1e-6 * float(before.abs().max())):
        raise UserError(
            f"data.attend: {model.config.model_type} with attention {attention!r} lets a token see the documents that "
            f"are packed before its own: {remedy}"
        )
