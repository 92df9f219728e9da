"""The model of a run."""

from collections.abc import Sequence
from typing import Any

import torch

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe import Model


def tokenizer_of(wanted: Model) -> str | None:
    return wanted.path


def build_model(
    wanted: Model, tokenizer: Any, seed: int, sequence_length: int, labels: Sequence[str] | None = None
) -> Any:
    """A causal language model with float32 weights: loaded from `path`, or new from `shape` with `seed`.

    A path that cannot be loaded, an unknown shape, a vocabulary or window that is too small raises UserError.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    more = {} if labels is None else {"num_labels": len(labels)}
    if (wanted.path is None) == (wanted.shape is None):
        raise UserError(
            "model: name a preset (model=tiny), a folder or Hub id (model.path=…) or a model.shape, one of them"
        )
    torch.manual_seed(seed)
    if wanted.path is not None:
        try:
            model = kind.from_pretrained(
                wanted.path, **more, dtype=torch.float32, attn_implementation=wanted.attention, trust_remote_code=False
            )
        except (OSError, ValueError) as problem:
            raise UserError(f"model.path: {wanted.path!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    else:
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = _config(dict(wanted.shape or {}), {"vocab_size": len(tokenizer), **ends})
        model = AutoModelForCausalLM.from_config(config, attn_implementation=wanted.attention, dtype=torch.float32)
    _check_fit(model.config, tokenizer, sequence_length)
    if wanted.compile:
        model.compile()
    return model


def _config(shape: dict[str, Any], special: dict[str, int | None]) -> Any:
    """A transformers configuration of `shape`; `special`: what the tokenizer brings and the shape may override."""
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
    try:
        return AutoConfig.for_model(kind, **{**special, **shape})
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


def count_parameters(wanted: Model, vocab_size: int) -> int:
    """Weights outside the embeddings and the head, without building the model; raises UserError.

    `vocab_size` stands in where the shape names none; it does not enter the count.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfbsz.optimizers import embeddings

    try:
        if wanted.path is not None:
            config = AutoConfig.from_pretrained(wanted.path, trust_remote_code=False)
        else:
            config = _config(
                dict(wanted.shape or {}), {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}
            )
    except (OSError, ValueError) as problem:
        raise UserError(f"model.path: {wanted.path!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in embeddings(model))
