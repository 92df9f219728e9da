"""Model and optimizer of a run."""

from typing import Any

import torch

from hfbsz.errors import UserError, did_you_mean
from hfbsz.plan import PlannedStep
from hfbsz.recipe import Model, Optim


def build_model(wanted: Model, tokenizer: Any, seed: int, sequence_length: int) -> Any:
    """A causal language model with float32 weights: loaded from `path`, or new from `shape` with `seed`.

    A path that cannot be loaded, an unknown shape, a vocabulary or window that is too small raises UserError.
    """
    from transformers import AutoModelForCausalLM

    if (wanted.path is None) == (wanted.shape is None):
        raise UserError(
            "model: name a preset (model=tiny), a folder or Hub id (model.path=…) or a model.shape, one of them"
        )
    torch.manual_seed(seed)
    if wanted.path is not None:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                wanted.path, dtype=torch.float32, attn_implementation=wanted.attention, trust_remote_code=False
            )
        except (OSError, ValueError) as problem:
            raise UserError(f"model.path: {wanted.path!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    else:
        config = _config(dict(wanted.shape or {}), tokenizer)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=wanted.attention, dtype=torch.float32)
    _check_fit(model.config, tokenizer, sequence_length)
    if wanted.compile:
        model.compile()
    return model


def _config(shape: dict[str, Any], tokenizer: Any) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = shape.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"model.shape.model_type: {kind!r} is no transformers model{did_you_mean(str(kind), CONFIG_MAPPING)}"
        )
    known = AutoConfig.for_model(kind)
    for name in shape:
        if not hasattr(known, name):
            raise UserError(f"model.shape.{name}: {kind} has no such field{did_you_mean(name, vars(known))}")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    try:
        return AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **shape})
    except Exception as problem:  # each configuration class raises its own kinds
        raise UserError(f"model.shape: {' '.join(str(problem).split())}") from None


def _check_fit(config: Any, tokenizer: Any, sequence_length: int) -> None:
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"model: its vocabulary of {config.vocab_size} is smaller than the tokenizer's {len(tokenizer)}: "
            "name the model's own tokenizer (data.tokenizer=…) or a smaller data.vocab_size"
        )
    window = getattr(config, "max_position_embeddings", None)
    if window is not None and sequence_length > window:
        raise UserError(f"data.sequence_length: {sequence_length} is beyond the model's window of {window} tokens")


def build_optimizer(model: Any, optim: Optim, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Fused AdamW in two groups: matrices decay, biases and norms do not (the groups of transformers' Trainer)."""
    from torch import nn
    from transformers.trainer_pt_utils import get_parameter_names

    undecayed = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    names = set(get_parameter_names(model, [nn.LayerNorm], undecayed))
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if (name in names) is decays], "decays": decays}
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, planned: PlannedStep) -> None:
    """Give the optimizer the plan's rate and weight decay of one step."""
    for group in optimizer.param_groups:
        group["lr"] = planned.learning_rate
        group["weight_decay"] = planned.weight_decay if group["decays"] else 0.0
