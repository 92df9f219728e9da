"""The model of a run: new or trained before, a language model or a classifier, trained whole or by low-rank changes."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfbsz.data.tokenizer import holds_tokenizer
from hfbsz.errors import UserError, did_you_mean
from hfbsz.pretrained import field_of, location, quiet
from hfbsz.recipe import Lora, Model


def build_model(
    wanted: Model, tokenizer: Any, seed: int, sequence_length: int, labels: Sequence[str] | None = None
) -> Any:
    """A model with float32 weights: loaded from `path` or `package`, or new from `shape` with `seed`. A classifier
    where `labels` are given, in the order of their numbers, else a causal language model.

    Where the recipe asks for LoRA it is wrapped by peft, and its low-rank matrices and a classifier's head alone
    require gradients. Raises UserError for weights that cannot be loaded, an unknown shape, a vocabulary or window that
    is too small, a model that sees later tokens, and layers that are not there.
    """
    if (wanted.path, wanted.package, wanted.shape).count(None) != 2:
        raise UserError(
            "model: name a preset (model=tiny), a folder or Hub id (model.path=…), a file of a package "
            "(model.package=…, model.file=…) or a model.shape, one of them"
        )
    torch.manual_seed(seed)
    model = _new(wanted, tokenizer, labels) if wanted.shape is not None else _loaded(wanted, labels)
    _check_fit(model.config, tokenizer, sequence_length)
    if labels is None:
        _check_causal(model)
    else:  # after the fact: an embedding that knows of it would never train the token that pads
        model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if wanted.lora is not None:
        model = _with_lora(model, wanted, wanted.lora, labels)
    if wanted.compile:
        model.compile()
    return model


def tokenizer_of(wanted: Model) -> str | None:
    """The folder or Hub id of the tokenizer that the weights were trained with; None for a new model, and for a folder
    that holds weights alone."""
    where = location(wanted)
    return None if where is not None and Path(where).is_dir() and not holds_tokenizer(Path(where)) else where


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


def _new(wanted: Model, tokenizer: Any, labels: Sequence[str] | None) -> Any:
    special = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    config = _config(dict(wanted.shape or {}), {**special, "eos_token_id": tokenizer.eos_token_id, **_head(labels)})
    kind = _auto(labels)
    if type(config) not in kind._model_mapping:
        task = "causal language model" if labels is None else "classifier"
        raise UserError(f"model.shape.model_type: transformers has no {task} of {config.model_type!r}")
    try:
        return kind.from_config(config, attn_implementation=wanted.attention, dtype=torch.float32)
    except (ImportError, ValueError) as problem:
        raise UserError(f"model: {config.model_type} cannot be built: {str(problem).splitlines()[0]}") from None


def _loaded(wanted: Model, labels: Sequence[str] | None) -> Any:
    where = location(wanted)
    try:
        with quiet():
            model, found = _auto(labels).from_pretrained(
                where,
                dtype=torch.float32,
                attn_implementation=wanted.attention,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told of below
                output_loading_info=True,
                **_head(labels),
            )
    except (ImportError, OSError, RuntimeError, ValueError) as problem:
        raise UserError(f"{field_of(wanted)} cannot be loaded: {str(problem).splitlines()[0]}") from None
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{field_of(wanted)} is an adapter: merge it into the weights it was trained on first")
    absent = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if labels is not None:  # a head that is not there, or of other labels, begins anew, as does a pooler before it
        base = f"{model.base_model_prefix}."
        absent = {name for name in absent if name.startswith(base) and ".pooler." not in name}
    if absent:
        raise UserError(f"{field_of(wanted)} lacks weights of {type(model).__name__}, such as {min(absent)}")
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


def _check_fit(config: Any, tokenizer: Any, sequence_length: int) -> None:
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"model: its vocabulary of {config.vocab_size} is smaller than the tokenizer's {len(tokenizer)}: "
            "name the model's own tokenizer (data.tokenizer=…) or a smaller data.vocab_size"
        )
    window = getattr(config, "max_position_embeddings", None)
    if window is not None and sequence_length > window:
        raise UserError(f"data.sequence_length: {sequence_length} is beyond the model's window of {window} tokens")


@torch.no_grad()
def _check_causal(model: Any) -> None:
    """Refuse an encoder with a language model's head, to which the next token is no secret. Of configurations that
    leave it open: shown by behaviour."""
    if getattr(model.config, "is_decoder", True):
        return
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]) % model.config.vocab_size
    training = model.training
    first, second = model.eval()(input_ids=tokens, use_cache=False).logits[:, :-1]
    model.train(training)
    if not torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max())):
        raise UserError(
            f"model: {model.config.model_type} lets a token see those that come after it, so it predicts none: take "
            "another model, or task=classification"
        )


def _with_lora(model: Any, wanted: Model, lora: Lora, labels: Sequence[str] | None) -> Any:
    """peft's wrapper: a change of rank `rank` to each of the target layers (Hu et al. 2021)."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if wanted.shape is not None:
        raise UserError("model.lora: it changes weights that were trained before: name model.path or model.package")
    heads = _heads(model) if labels is not None else []
    outside = {id(part) for name in heads for part in getattr(model, name).modules()}
    outside.add(id(model.get_output_embeddings()))
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and id(layer) not in outside
    }
    targets = _targets(layers, lora.targets)
    for name in targets:
        if lora.rank > min(layers[name].weight.shape):
            rows, columns = layers[name].weight.shape
            raise UserError(f"model.lora.rank: {lora.rank} is no low rank for {name}, which is {rows} × {columns}")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if labels is None else TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=heads or None,
        fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in targets),
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is deprecated
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _heads(model: Any) -> list[str]:
    """What a classifier has beside the model that it stands on: new, so it is trained as it is."""
    beside = ((name, part) for name, part in model.named_children() if name != model.base_model_prefix)
    return [name for name, part in beside if next(part.parameters(), None) is not None]


def _targets(layers: dict[str, Any], asked: str | list[str]) -> list[str]:
    """The full names of the layers that a recipe names by their ends, or all."""
    if asked == "all-linear":
        return list(layers)
    found: dict[str, None] = {}
    for end in [asked] if isinstance(asked, str) else asked:
        mine = [name for name in layers if f".{name}".endswith(f".{end}")]
        if not mine:
            known = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            near = did_you_mean(end, known) or f"; there are {', '.join(known)}"
            raise UserError(f"model.lora.targets: no linear layer is called {end!r}{near}")
        found |= dict.fromkeys(mine)
    return list(found)


def merged(model: Any) -> Any:
    """A model as transformers knows it, to be saved: low-rank changes are added to the weights of a copy on the host.

    The model itself stays as it was, to the bit, and can be trained on. Of its weights, those that LoRA does not change
    are shared with it where it lies on the host already. A model without LoRA comes back itself.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    changed = {id(weight) for part in model.modules() if hasattr(part, "base_layer") for weight in part.parameters()}
    copies = {
        id(weight): weight
        if weight.device.type == "cpu" and id(weight) not in changed
        else nn.Parameter(weight.detach().to("cpu", copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, copies).cpu().merge_and_unload()


def count_parameters(wanted: Model, vocab_size: int) -> int:
    """Weights outside the embeddings and the head, without building the model; raises UserError.

    `vocab_size` stands in where the shape names none; it does not enter the count.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfbsz.optimizers import embeddings

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
