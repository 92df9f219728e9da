"""LoRA, low-rank updates of a model's weights (Hu et al. 2021, with peft): its target layers, and how it is merged."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import Lora, Model
from hfbsz.train.heads import heads_of


def with_lora(model: Any, spec: Model, lora: Lora, labels: Sequence[str] | None, notes: list[str]) -> Any:
    """Wrap the model with peft: an update of rank `lora.rank` for each target layer. Raises UserError for a new model,
    and for target layers that do not exist or are smaller than the rank."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if spec.shape is not None:
        raise UserError("model.lora: it needs pretrained weights: set model.path or model.package")
    heads = heads_of(model) if labels is not None else []
    excluded = {id(part) for name in heads for part in getattr(model, name).modules()}
    excluded.add(id(model.get_output_embeddings()))
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and id(layer) not in excluded
    }
    targets = _targets(layers, lora, notes)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if labels is None else TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # floats work too
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=heads or None,
        fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in targets),
    )
    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _targets(layers: Mapping[str, Any], lora: Lora, notes: list[str]) -> list[str]:
    """The full names of the target layers: those that end in a name of the recipe, or all that are large enough."""
    too_small = {name: layer.weight.shape for name, layer in layers.items() if lora.rank > min(layer.weight.shape)}
    is_all = lora.targets == "all-linear"
    targets = list(layers) if is_all else _matching(layers, lora.targets)
    usable = [name for name in targets if name not in too_small]
    if is_all and usable and len(usable) < len(targets):  # such as the gates of experts
        small = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in too_small))
        notes.append(f"model.lora.rank: {lora.rank} is not a low rank for {small}: these layers are not trained")
        return usable
    for name in targets:
        if name in too_small:
            rows, columns = too_small[name]
            raise UserError(f"model.lora.rank: {lora.rank} is not a low rank for {name}, which is {rows} × {columns}")
    if not targets:
        raise UserError("model.lora: the model has no linear layer to train")
    return targets


def _matching(layers: Mapping[str, Any], endings: str | list[str]) -> list[str]:
    """The names of the layers that end in one of `endings`. Raises UserError for an ending without a layer."""
    targets: dict[str, None] = {}  # an ordered set
    for ending in [endings] if isinstance(endings, str) else endings:
        matches = [name for name in layers if f".{name}".endswith(f".{ending}")]
        if not matches:
            available = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            hint = did_you_mean(ending, available) or f"; there are {', '.join(available)}"
            raise UserError(f"model.lora.targets: no linear layer is called {ending!r}{hint}")
        targets |= dict.fromkeys(matches)
    return list(targets)


def merged(model: Any) -> Any:
    """A plain transformers model for saving: the low-rank updates are merged into the weights of a copy on the host.

    The model itself is unchanged, bit for bit, and training can continue. The copy shares the weights that LoRA does
    not update if they are in host memory. A model without LoRA is returned as it is.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    updated = {id(weight) for part in model.modules() if hasattr(part, "base_layer") for weight in part.parameters()}
    copies = {
        id(weight): weight
        if weight.device.type == "cpu" and id(weight) not in updated
        else nn.Parameter(weight.detach().to("cpu", copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, copies).cpu().merge_and_unload()
