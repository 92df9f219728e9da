"""The model of a run: new or trained before, a language model or a classifier, trained whole or by low-rank changes."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError

from hfbsz.data.tokenizer.tokenizer import token_count
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import Model
from hfbsz.train.fit import check_causal, check_finite, check_window, fit_vocabulary, pad_token_of
from hfbsz.train.loadable import check, refuse_kind
from hfbsz.train.lora import with_lora
from hfbsz.train.pretrained import field_of, head_of, location, quiet, reason_of


def build_model(
    wanted: Model,
    tokenizer: Any,
    seed: int,
    sequence_length: int,
    labels: Sequence[str] | None = None,
    notes: list[str] | None = None,
) -> Any:
    """A model with float32 weights: loaded from `path` or `package`, or new from `shape` with `seed`. A classifier
    where `labels` are given, in the order of their numbers, else a causal language model.

    Where the recipe asks for LoRA it is wrapped by peft, and its low-rank matrices and a classifier's head alone
    require gradients. What a person should know of the model is added to `notes`. Raises UserError for weights that
    cannot be loaded, an unknown shape, a vocabulary or window that is too small, labels in another order than a trained
    head's, a model that sees later tokens, and layers that are not there.
    """
    if (wanted.path, wanted.package, wanted.shape).count(None) != 2:
        raise UserError(
            "model: name a preset (model=tiny), a folder or Hub id (model.path=…), a file of a package "
            "(model.package=…, model.file=…) or a model.shape, one of them"
        )
    notes = notes if notes is not None else []
    torch.manual_seed(seed)
    with quiet():
        model = _new(wanted, tokenizer, labels, notes) if wanted.shape is not None else _loaded(wanted, labels, notes)
    check_window(model, sequence_length)
    notes += fit_vocabulary(model, tokenizer, wanted)
    if labels is None:
        check_causal(model)
    else:  # after the fact: an embedding that knows of it would never train the token that pads
        model.config.pad_token_id = pad_token_of(model, tokenizer)
    if wanted.lora is not None:
        model = with_lora(model, wanted, wanted.lora, labels, notes)
    if wanted.compile:
        model.compile()
    return model


def set_generation_ends(model: Any, ids: Sequence[int]) -> None:
    """Have text generation of the saved model end at each of the tokens `ids` too, beside those that end it already."""
    own = model.generation_config.eos_token_id
    known = list(own) if isinstance(own, list | tuple) else [] if own is None else [own]
    ends = list(dict.fromkeys([*known, *map(int, ids)]))
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 and not isinstance(own, list | tuple) else ends


def _auto(labels: Sequence[str] | None) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification


def _head(labels: Sequence[str] | None) -> dict[str, Any]:
    """What a configuration says of a classifier's labels."""
    if labels is None:
        return {}
    numbered = dict(enumerate(labels))
    known = {"id2label": numbered, "label2id": {label: number for number, label in numbered.items()}}
    return {**known, "problem_type": "single_label_classification"}


def _attention(wanted: Model, config: Any, labels: Sequence[str] | None, notes: list[str]) -> str:
    """The attention that is asked for, or eager where the model has no other."""
    kinds = _auto(labels)._model_mapping[type(config)]
    if wanted.attention == "eager" or (kinds[0] if isinstance(kinds, tuple) else kinds)._supports_sdpa:
        return wanted.attention
    notes.append(f"model.attention: {config.model_type} has no {wanted.attention}: eager is used")
    return "eager"


def _new(wanted: Model, tokenizer: Any, labels: Sequence[str] | None, notes: list[str]) -> Any:
    special = {"vocab_size": token_count(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    config = _config(dict(wanted.shape or {}), {**special, "eos_token_id": tokenizer.eos_token_id, **_head(labels)})
    refuse_kind("model.shape.model_type", config, labels is not None)
    attention = _attention(wanted, config, labels, notes)
    try:
        return _auto(labels).from_config(config, attn_implementation=attention, dtype=torch.float32)
    except (ImportError, ValueError) as problem:
        raise UserError(f"model: {config.model_type} cannot be built: {reason_of(problem)}") from None


def _loaded(wanted: Model, labels: Sequence[str] | None, notes: list[str]) -> Any:
    where, field = location(wanted), field_of(wanted)
    config = check(wanted, labels is not None)
    head = head_of(wanted) if labels is not None else None
    if head is not None and labels is not None:
        head.check_order(field, labels)
    try:
        model, found = _auto(labels).from_pretrained(
            where,
            dtype=torch.float32,
            attn_implementation=_attention(wanted, config, labels, notes),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told of below
            output_loading_info=True,
            **_head(labels),
        )
    except (ImportError, LookupError, OSError, RuntimeError, SafetensorError, ValueError) as problem:
        raise UserError(f"{field} cannot be loaded: {reason_of(problem)}") from None
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{field} is an adapter: merge it into the weights it was trained on first")
    fresh = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    absent, unused = fresh, set(found["unexpected_keys"])
    if labels is not None:  # a head that is not there, or of other labels, begins anew, as does a pooler before it
        base = f"{model.base_model_prefix}."
        absent = {name for name in absent if name.startswith(base) and ".pooler." not in name}
        unused = {name for name in unused if name.startswith(base)}
    if absent:
        raise UserError(f"{field} lacks weights of {type(model).__name__}, such as {min(absent)}")
    if unused:
        notes.append(f"{field}: {len(unused)} of its weights are not of {type(model).__name__}, such as {min(unused)}")
    if head is not None and labels is not None:
        notes += head.settle(field, model, labels, fresh)
    check_finite(field, model)
    return model


def _config(shape: dict[str, Any], special: dict[str, Any]) -> Any:
    """A transformers configuration of `shape`; `special`: what tokenizer and labels bring; the shape may override."""
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


def count_parameters(wanted: Model, vocab_size: int) -> int:
    """Weights outside the embeddings and the head, without building the model; raises UserError.

    `vocab_size` stands in where the shape names none; it does not enter the count.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfbsz.train.optimizers import embeddings

    where = location(wanted)
    try:
        if where is not None:
            config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        else:
            config = _config(
                dict(wanted.shape or {}), {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}
            )
    except (OSError, ValueError) as problem:
        raise UserError(f"{field_of(wanted)} cannot be loaded: {str(problem).splitlines()[0]}") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in embeddings(model))
