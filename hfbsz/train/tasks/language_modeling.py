"""Causal language modeling: every token of a row is predicted from those before it."""

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
from hfbsz.train.linear_loss import FusedHead, fused_head
from hfbsz.train.tasks import BatchEvaluation

_PROMPT, _CONTINUATION = 16, 16  # targets of a row that prompt it, and that greedy decoding must then reproduce


class LanguageModeling:
    """Rows hold n+1 tokens: n inputs and, shifted by one, n targets. In rows with labels only some of them are targets
    (the answers of a conversation). Shorter rows are padded on the right; under causal attention no token sees the
    padding after it, so no mask is needed.

    With an `end_token`, which ends a document, a token of a packed row attends to its own document only: positions
    restart after every end token, and no end token predicts the first token of the next document. The model must
    support this (`check_attends_within`).
    """

    def __init__(self, pad_token: int, end_token: int | None = None, head: FusedHead | None = None) -> None:
        """`head`: for a loss in chunks of tokens (train/linear_loss); None: from the logits."""
        self.pad_token, self.end_token, self.head = pad_token, end_token, head

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Tensors of shape [rows, longest]; a None row has no targets."""
        tokens = [row.tokens if isinstance(row, Row) else row for row in rows]
        lengths = [0 if row is None else len(row) - 1 for row in tokens]
        shape = (len(rows), max(1, *lengths) if len(lengths) > 1 else max(1, lengths[0]))
        inputs, labels = np.full(shape, self.pad_token, np.int64), np.full(shape, IGNORED, np.int64)
        for index, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
            if row is not None:
                source = rows[index]
                inputs[index, :length] = row[:-1]
                labels[index, :length] = source.labels[1:] if isinstance(source, Row) else row[1:]
        tensors = {"input_ids": torch.from_numpy(inputs)}
        if self.end_token is not None:
            labels[inputs == self.end_token] = IGNORED
            tensors["position_ids"] = torch.from_numpy(positions_within(inputs, self.end_token))
        return Batch(tensors, torch.from_numpy(labels), int((labels != IGNORED).sum()), sum(lengths))

    def loss_sum(self, model: Any, batch: Batch) -> torch.Tensor:
        """ΣNLL over the targets, in nats."""
        if self.head is not None:
            return self.head.loss_sum(model, batch.inputs, batch.labels)
        logits = logits_of(model, batch)
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def evaluate_batch(self, model: Any, batch: Batch) -> BatchEvaluation:
        """Losses [rows] in nats. The output is 1 if each of the row's 17th to 32nd targets is the likeliest token after
        the tokens before it, so that greedy decoding reproduces them (extractable: Carlini et al. 2023); else 0; nan
        for a shorter row."""
        labels = batch.labels
        if self.head is not None:
            losses, likeliest = self.head.token_losses(model, batch.inputs, labels)
        else:
            logits = logits_of(model, batch)
            losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            likeliest = logits.argmax(dim=-1) == labels
        is_target = labels != IGNORED
        position = is_target.cumsum(dim=1)  # among the targets of the row, from 1
        continuation = is_target & (position > _PROMPT) & (position <= _PROMPT + _CONTINUATION)
        reproduced = (likeliest.bool() | ~continuation).all(dim=1)
        extractable = reproduced.double().masked_fill(position[:, -1] < _PROMPT + _CONTINUATION, torch.nan)
        return BatchEvaluation(losses.double().sum(dim=1), is_target.sum(dim=1), extractable[:, None])


def build(recipe: Recipe, model: Any, tokenizer: Any, notes: list[str]) -> LanguageModeling:
    """Build the task for a model; notes for the user are appended to `notes`.

    Raises UserError for `data.attend=within` with a model in which packed documents attend to each other, and for
    `model.fused_loss=true` with a model whose head is not linear.
    """
    within = recipe.data.pack and recipe.data.attend == "within"
    if within:
        check_attends_within(model)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    head = fused_head(model, recipe.model, notes)
    return LanguageModeling(end if pad is None else pad, end if within else None, head)


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    """The logits of a batch [sequences, tokens, vocabulary], at least in float32."""
    logits = model(**batch.inputs, use_cache=False).logits
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def positions_within(inputs: np.ndarray, end_token: int) -> np.ndarray:
    """Positions (int64, the shape of `inputs`) that restart at 0 at the start of a row and after every end token."""
    columns = np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape)
    starts = np.zeros(inputs.shape, np.int64)
    starts[:, 1:] = np.where(inputs[:, :-1] == end_token, columns[:, 1:], 0)
    return columns - np.maximum.accumulate(starts, axis=1)


@torch.no_grad()
def check_attends_within(model: Any) -> None:
    """Raise UserError unless restarting positions restrict the attention of packed documents to themselves.

    This is tested on the model: in a row of two short documents, the tokens of the first are changed, and the logits of
    the second must not change.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    remedy = "use data.attend=across, or data.pack=false"
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
        raise UserError(f"data.attend: {model.config.model_type} does not accept position_ids: {remedy}") from None
    finally:
        model.train(training)
    before, after = (each[:, length:].double() for each in logits)
    if not torch.allclose(before, after, rtol=0, atol=1e-6 * float(before.abs().max())):
        raise UserError(
            f"data.attend: {model.config.model_type} with attention {attention!r} lets a token see the documents "
            f"packed before its own: {remedy}"
        )
