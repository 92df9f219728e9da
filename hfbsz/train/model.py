"""The model of a run: new or pretrained, a causal language model or a classifier, trained in full or with LoRA."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError

from hfbsz.data.tokenizer.tokenizer import token_count
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import Model
from hfbsz.train.dropout import draw_fast
from hfbsz.train.first_token import compute_first_token
from hfbsz.train.fit import check_causal, check_finite, check_window, fit_vocabulary, pad_token_of
from hfbsz.train.layers import compile_layers, recompute_activations
from hfbsz.train.loadable import check, refuse_kind
from hfbsz.train.lora import with_lora
from hfbsz.train.pretrained import field_of, head_of, location, quiet, reason_of


def build_model(
    spec: Model,
    tokenizer: Any,
    seed: int,
    sequence_length: int,
    labels: Sequence[str] | None = None,
    notes: list[str] | None = None,
) -> Any:
    """Build a model with float32 weights, loaded from `path` or `package`, or new from `shape` with `seed`.

    It is a classifier if `labels` (class names in the order of their ids) are given, else a causal language model.
    With LoRA it is wrapped by peft, and only its low-rank matrices and a classifier's head require gradients. Notes for
    the user are appended to `notes`.

    Raises UserError for weights that cannot be loaded, an unknown shape, a vocabulary or window that is too small,
    labels in another order than those of a pretrained head, a model that attends to later tokens, target layers that do
    not exist, and a model that cannot be compiled or whose activations cannot be recomputed.
    """
    if (spec.path, spec.package, spec.shape).count(None) != 2:
        raise UserError(
            "model: name exactly one of a preset (model=tiny), a folder or Hub id (model.path=…), a file of a package "
            "(model.package=…, model.file=…) and a model.shape"
        )
    notes = notes if notes is not None else []
    torch.manual_seed(seed)
    with quiet():
        model = _new(spec, tokenizer, labels, notes) if spec.shape is not None else _loaded(spec, labels, notes)
    check_window(model, sequence_length)
    notes += fit_vocabulary(model, tokenizer, spec)
    if labels is None:
        check_causal(model)
    else:  # set after building: an embedding built with a padding_idx would never train that token
        model.config.pad_token_id = pad_token_of(model, tokenizer)
        compute_first_token(model, spec)
    if spec.lora is not None:
        model = with_lora(model, spec, spec.lora, labels, notes)
    if not spec.compile:
        draw_fast(model)
    if spec.activation_checkpointing:
        recompute_activations(model)
    if spec.compile:
        compile_layers(model)
    return model


def set_generation_ends(model: Any, ids: Sequence[int]) -> None:
    """Add the tokens `ids` to those at which text generation of the saved model ends (`eos_token_id`)."""
    before = model.generation_config.eos_token_id
    present = list(before) if isinstance(before, list | tuple) else [] if before is None else [before]
    ends = list(dict.fromkeys([*present, *map(int, ids)]))
    is_single = len(ends) == 1 and not isinstance(before, list | tuple)
    model.generation_config.eos_token_id = ends[0] if is_single else ends


def _auto_class(labels: Sequence[str] | None) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification


def _label_fields(labels: Sequence[str] | None) -> dict[str, Any]:
    """The configuration fields that describe a classifier's labels; empty for a language model."""
    if labels is None:
        return {}
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def _attention(spec: Model, config: Any, labels: Sequence[str] | None, notes: list[str]) -> str:
    """The attention implementation of the recipe, or eager if the model supports no other."""
    classes = _auto_class(labels)._model_mapping[type(config)]
    if spec.attention == "eager" or (classes[0] if isinstance(classes, tuple) else classes)._supports_sdpa:
        return spec.attention
    notes.append(f"model.attention: {config.model_type} has no {spec.attention}: eager is used")
    return "eager"


def _new(spec: Model, tokenizer: Any, labels: Sequence[str] | None, notes: list[str]) -> Any:
    special = {"vocab_size": token_count(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    config = _config(
        dict(spec.shape or {}), {**special, "eos_token_id": tokenizer.eos_token_id, **_label_fields(labels)}
    )
    refuse_kind("model.shape.model_type", config, labels is not None)
    attention = _attention(spec, config, labels, notes)
    try:
        return _auto_class(labels).from_config(config, attn_implementation=attention, dtype=torch.float32)
    except (ImportError, ValueError) as problem:
        raise UserError(f"model: {config.model_type} cannot be built: {reason_of(problem)}") from None


def _loaded(spec: Model, labels: Sequence[str] | None, notes: list[str]) -> Any:
    name_or_path, field = location(spec), field_of(spec)
    config = check(spec, labels is not None)
    head = head_of(spec) if labels is not None else None
    if head is not None and labels is not None:
        head.check_order(field, labels)
    try:
        model, loading_info = _auto_class(labels).from_pretrained(
            name_or_path,
            dtype=torch.float32,
            attn_implementation=_attention(spec, config, labels, notes),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
            **_label_fields(labels),
        )
    except (ImportError, LookupError, OSError, RuntimeError, SafetensorError, ValueError) as problem:
        raise UserError(f"{field} cannot be loaded: {reason_of(problem)}") from None
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{field} is an adapter: merge it into its base model first")
    new = {*loading_info["missing_keys"], *(name for name, *_ in loading_info["mismatched_keys"])}
    missing, unused = new, set(loading_info["unexpected_keys"])
    if labels is not None:  # a missing head, or one of other labels, is initialized, and so is a pooler before it
        base = f"{model.base_model_prefix}."
        missing = {name for name in missing if name.startswith(base) and ".pooler." not in name}
        unused = {name for name in unused if name.startswith(base)}
    if missing:
        raise UserError(f"{field} lacks weights of {type(model).__name__}, such as {min(missing)}")
    if unused:
        notes.append(f"{field}: {len(unused)} weights are not used by {type(model).__name__}, such as {min(unused)}")
    if head is not None and labels is not None:
        notes += head.keep_or_reset(field, model, labels, new)
    check_finite(field, model)
    return model


def _config(shape: dict[str, Any], special: dict[str, Any]) -> Any:
    """A transformers configuration from `shape`, which overrides `special`, the fields set by tokenizer and labels.

    Raises UserError for an unknown model type or field.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = shape.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"model.shape.model_type: transformers has no model type {kind!r}{did_you_mean(str(kind), CONFIG_MAPPING)}"
        )
    default = AutoConfig.for_model(kind)
    for name in shape:
        if not hasattr(default, name):
            raise UserError(f"model.shape.{name}: {kind} has no such field{did_you_mean(name, vars(default))}")
    try:
        return AutoConfig.for_model(kind, **{**special, **shape})
    except Exception as problem:  # each configuration class raises errors of its own
        raise UserError(f"model.shape: {' '.join(str(problem).split())}") from None


def count_parameters(spec: Model, vocab_size: int) -> int:
    """The number of parameters outside the embeddings and the head, without allocating the model.

    `vocab_size` is used if the shape has none; it does not affect the count. Raises UserError for a model that cannot
    be loaded or built.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfbsz.train.optimizers import embeddings

    name_or_path = location(spec)
    try:
        if name_or_path is not None:
            config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        else:
            config = _config(
                dict(spec.shape or {}), {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}
            )
    except (OSError, ValueError) as problem:
        raise UserError(f"{field_of(spec)} cannot be loaded: {str(problem).splitlines()[0]}") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in embeddings(model))
