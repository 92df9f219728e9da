"""The last layer of a classifier, computed for the first token of a row only: all that the head of a BERT reads.

Queries, scores, the output of attention and the feed-forward part of that layer are then those of one token per row;
keys and values stay those of all. The logits are those of the whole layer to rounding. On a CPU the masks of dropout
are drawn for all tokens, so that training (with sdpa attention) gives the weights of the whole layer to rounding too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.dropout import attention_shares, mask

# whose layers are BERT's, and whose classifiers read the first token (checked with transformers 5.23)
KINDS = ("bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "xlm-roberta")
_OF_ALL_TOKENS = ("key", "value")  # projections of an attention


def compute_first_token(model: Any, spec: Model) -> None:
    """Change the last layer of a classifier in place, unless `model.first_token` is false, or `auto` and the
    architecture does not allow it. Weights, their names and what is saved stay the same.

    Raises UserError if it is true and the architecture does not allow it.
    """
    if spec.first_token is False:
        return
    if reason := _reason_against(model.config):
        if spec.first_token is True:
            raise UserError(f"model.first_token: {reason}: model.first_token=false")
        return
    layer = model.base_model.encoder.layer[-1]
    drawn = _Drawn()
    attention = layer.attention
    attention.__class__ = type(type(attention).__name__, (FirstTokenAttention, type(attention)), {})
    attention.drawn = drawn
    for dropout in (attention.output.dropout, layer.output.dropout):
        dropout.__class__, dropout.drawn = _Dropout, drawn


def weights_of_first_token(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of the last layer that are used for the first token only; none if the layer is computed in full."""
    for layer in model.modules():
        attention = getattr(layer, "attention", None)
        if isinstance(attention, FirstTokenAttention):
            every = {id(one) for name in _OF_ALL_TOKENS for one in getattr(attention.self, name).parameters()}
            yield from (one for one in layer.parameters() if id(one) not in every)


def _reason_against(config: Any) -> str | None:
    """Why the last layer cannot be computed for the first token only; None if it can."""
    if config.model_type not in KINDS:
        return f"{config.model_type} is not of the kinds whose head reads the first token of BERT's layers"
    if config.is_decoder or getattr(config, "chunk_size_feed_forward", 0):
        return "a decoder, or a feed-forward part in chunks, is computed in full"
    return None


@dataclass
class _Drawn:
    """The number of tokens of a row that random numbers are drawn for."""

    tokens: int = 1


class FirstTokenAttention(nn.Module):
    """An attention block of BERT's kind whose only query is the first token: returns states [rows, 1, width]."""

    drawn: _Drawn

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """`hidden_states`: [rows, tokens, width]; `attention_mask`: [rows, 1, queries, tokens], bool (True: attended)
        or added to the scores."""
        block: Any = self.self
        first = hidden_states[:, :1]
        query, key, value = (
            projection(states).unflatten(-1, (-1, block.attention_head_size)).transpose(1, 2)
            for projection, states in ((block.query, first), (block.key, hidden_states), (block.value, hidden_states))
        )  # [rows, heads, 1 or tokens, size]
        of_first = None if attention_mask is None else attention_mask[:, :, :1]
        shares = attention_shares(query * block.scaling, key, of_first)
        self.drawn.tokens = hidden_states.shape[1] if hidden_states.device.type == "cpu" else 1
        if self.training and block.dropout.p:
            shape = *shares.shape[:2], self.drawn.tokens, shares.shape[-1]
            shares = shares * mask(shape, block.dropout.p, shares)[:, :, :1]
        attended = (shares @ value).transpose(1, 2).flatten(2)
        output: Any = self.output
        return output(attended, first), None


class _Dropout(nn.Dropout):
    """Dropout of the states of the first token, [rows, 1, width], which draws the mask of `drawn.tokens` tokens."""

    drawn: _Drawn

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return states
        return states * mask((len(states), self.drawn.tokens, states.shape[-1]), self.p, states)[:, :1]
