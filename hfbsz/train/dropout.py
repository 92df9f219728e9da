"""Dropout on a CPU, whose masks take 16 random bits for a number: a third of the time of torch's, which draws 64.

A number is dropped with probability p rounded to 1/65,536, and the others are scaled by the inverse of what is kept.
The bits come from torch's generator, so that seeds and checkpoints determine them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_VALUES = 2**16
_FLAG = "_draws_fast_dropout"  # attribute of modules whose attention drops out by `mask`


def mask(shape: Sequence[int], p: float, like: torch.Tensor) -> torch.Tensor:
    """A mask of dropout, of the type and on the device of `like`: 0 with probability p, else 1 ÷ (1 − p).

    Elsewhere than on a CPU, in compiled layers, and where p rounds to 1, it is torch's.
    """
    count, dropped = torch.Size(shape).numel(), round(p * _VALUES)
    if like.device.type != "cpu" or torch.compiler.is_compiling() or dropped == _VALUES:
        return F.dropout(like.new_ones(shape), p)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[:count].view(tuple(shape)) >= dropped - _VALUES // 2
    return kept.to(like.dtype).mul_(_VALUES / (_VALUES - dropped))


class Dropout(nn.Dropout):
    """nn.Dropout with the masks of `mask` on a CPU."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The states with some set to 0 and the others scaled, in training; else the states themselves."""
        if not self.training or not self.p or states.device.type != "cpu":
            return super().forward(states)
        return states * mask(states.shape, self.p, states)


def draw_fast(model: nn.Module) -> None:
    """Take the masks of `mask` for the dropout modules of a model, in place, and for its attention where that is sdpa's
    and drops out."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
    if getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa":
        _register()
        for module in model.modules():
            setattr(module, _FLAG, True)


@cache
def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """transformers' attention function; other modules, and what is not computed here, are left to sdpa."""
        is_plain = key.shape[1:] == value.shape[1:] == query.shape[1:] and all(
            more.get(name) is None for name in ("position_bias", "cache", "softcap")
        )
        is_fast = query.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (dropout and is_plain and is_fast and getattr(module, _FLAG, False)):
            named = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
            return sdpa(module, query, key, value, attention_mask, **named, **more)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is None and causal and query.shape[2] > 1:
            attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        shares = attention_shares(query * scale, key, attention_mask)
        return ((shares * mask(shares.shape, dropout, shares)) @ value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)


def attention_shares(query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The softmax of the scores: [rows, heads, queries, keys]. `query`, `key`: [rows, heads, tokens, size], the query
    scaled; `attention_mask`: bool (True: attended), or added to the scores. A query that attends nothing attends all.
    """
    scores = query @ key.transpose(2, 3)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return scores.softmax(dim=-1)
