"""Low-rank changes of a model's weights (Hu et al. 2021, by peft): which layers take them, and how they are merged."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import Lora, Model
from hfbsz.train.heads import heads_of


def with_lora(model: Any, wanted: Model, lora: Lora, labels: Sequence[str] | None, notes: list[str]) -> Any:
    """peft's wrapper: a change of rank `rank` to each of the target layers. Raises UserError for layers that are not
    there or too narrow."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if wanted.shape is not None:
        raise UserError("model.lora: it changes weights that were trained before: name model.path or model.package")
    heads = heads_of(model) if labels is not None else []
    outside = {id(part) for name in heads for part in getattr(model, name).modules()}
    outside.add(id(model.get_output_embeddings()))
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and id(layer) not in outside
    }
    targets = _targets(layers, lora, notes)
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


def _targets(layers: Mapping[str, Any], lora: Lora, notes: list[str]) -> list[str]:
    """The full names of the layers that a recipe names by their ends, or all that are wide enough."""
    narrow = {name: layer.weight.shape for name, layer in layers.items() if lora.rank > min(layer.weight.shape)}
    everything = lora.targets == "all-linear"
    targets = list(layers) if everything else _named(layers, lora.targets)
    wide = [name for name in targets if name not in narrow]
    if everything and wide and len(wide) < len(targets):  # gates of experts and the like
        ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in narrow))
        notes.append(f"model.lora.rank: {lora.rank} is no low rank for {ends}: these layers are not changed")
        return wide
    for name in targets:
        if name in narrow:
            rows, columns = narrow[name]
            raise UserError(f"model.lora.rank: {lora.rank} is no low rank for {name}, which is {rows} × {columns}")
    if not targets:
        raise UserError("model.lora: the model has no linear layer that it could change")
    return targets


def _named(layers: Mapping[str, Any], asked: str | list[str]) -> list[str]:
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
    are shared with it where they are on the host already. A model without LoRA comes back itself.
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
