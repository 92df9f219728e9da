"""Weights that were trained before, looked at before anything is loaded: are they whole, and of a kind that is trained
here? Headers and configurations alone are read."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hfbsz.data.intact import damage_of, refuse_pointers
from hfbsz.display import command
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.pretrained import field_of, location, quiet, unreadable

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_THAN_TEXT = re.compile("vision|image|video|audio|speech|vq")  # in the name of a part's configuration
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check(wanted: Model, classifier: bool) -> Any:
    """The transformers configuration of weights that can be loaded and trained, as far as their headers tell; None for
    a new model. Raises UserError for damaged or missing files, and for kinds of models that are not trained here."""
    where = location(wanted)
    if where is None:
        return None
    field, folder = field_of(wanted), Path(where)
    if folder.is_file():
        raise UserError(f"{field} is a file: name the folder that holds it, with config.json and {_WEIGHTS}")
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise UserError(f"{field} is an adapter: merge it into the weights it was trained on first")
        refuse_pointers(field, sorted(folder.glob("*.json")))
        if not (folder / "config.json").is_file():
            raise UserError(f"{field} cannot be loaded: it holds no config.json")
    config = _config(wanted, where)
    refuse_kind(field, config, classifier)
    if folder.is_dir():
        _check_weights(field, folder, config)
    return config


def _config(wanted: Model, where: str) -> Any:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(where, trust_remote_code=False)
    except Exception as problem:  # each configuration class raises its own kinds
        raise UserError(unreadable(wanted, where, problem)) from None


def refuse_kind(field: str, config: Any, classifier: bool) -> None:
    """Raise UserError for a configuration of which there is no model of text that can be trained here."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{field}: {kind} is an encoder-decoder, which is not trained here: {_instead(classifier)}")
    if parts := sorted(part for part in getattr(config, "sub_configs", {}) if _OTHER_THAN_TEXT.search(part)):
        raise UserError(
            f"{field}: {kind} takes more than text ({', '.join(parts)}), which is not trained here: "
            f"{_instead(classifier)}"
        )
    if type(config) not in (AutoModelForSequenceClassification if classifier else AutoModelForCausalLM)._model_mapping:
        task = "classifier" if classifier else "causal language model"
        raise UserError(f"{field}: transformers has no {task} of {kind!r}: {_instead(classifier)}")
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        how = packed.get("quant_method", "quantized") if isinstance(packed, dict) else type(packed).__name__
        raise UserError(
            f"{field} holds packed weights ({how}), which are not trained: take the model's unpacked weights"
        )


def _instead(classifier: bool) -> str:
    if classifier:
        return "take an encoder such as BERT, or a decoder such as Llama"
    return "take a decoder such as GPT-2 or Llama"


def _check_weights(field: str, folder: Path, config: Any) -> None:
    """Raise UserError for weights that are missing, in another form, or damaged, by the headers of their files."""
    for name in _files_of_weights(field, folder, config):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{field}: {name}, which {_INDEX} names, is not there: fetch it again")
        if reason := damage_of(path):
            raise UserError(f"{field}: {name} {reason}")
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as problem:
            reason = str(problem).removeprefix("Error while deserializing header: ")
            raise UserError(f"{field}: {name} is cut or damaged ({reason}): fetch it again") from None


def _files_of_weights(field: str, folder: Path, config: Any) -> list[str]:
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    index = folder / _INDEX
    if index.is_file():
        if reason := damage_of(index):
            raise UserError(f"{field}: {_INDEX} {reason}")
        named = json.loads(index.read_text(encoding="utf-8"))
        shards = named.get("weight_map") if isinstance(named, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{field}: {_INDEX} names no file (weight_map): fetch it again")
        return sorted(set(map(str, shards.values())))
    held = sorted(path.name for path in folder.iterdir() if path.suffix in (*_PICKLED, ".safetensors", ".gguf"))
    if any(name.endswith(".bin") for name in held):
        raise UserError(
            f"{field} holds pickled weights ({held[0]}), which are not read: convert them: {_convert(folder, config)}"
        )
    there = f"; there are {', '.join(held[:8])}" if held else ""
    raise UserError(f"{field} holds no {_WEIGHTS}{there}")


def _convert(folder: Path, config: Any) -> str:
    """The command that saves a folder's pickled weights as safetensors, beside them."""
    import transformers

    named = (getattr(config, "architectures", None) or [""])[0]
    kind = named if hasattr(transformers, named or "-") else "AutoModel"
    where = json.dumps(str(folder), ensure_ascii=False)
    code = f"import transformers as t; t.{kind}.from_pretrained({where}).save_pretrained({where})"
    return command("python", "-c", code)
