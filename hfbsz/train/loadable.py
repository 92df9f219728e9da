"""Checks on pretrained weights before they are loaded: are the files complete, and is the kind of model supported?

Only configurations and the headers of weight files are read.
"""

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
_NOT_TEXT = re.compile("vision|image|video|audio|speech|vq")  # in the name of a sub-configuration
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check(spec: Model, classifier: bool) -> Any:
    """Check that weights can be loaded and trained; returns their transformers configuration, None for a new model.

    Raises UserError for damaged or missing files, and for kinds of models that are not supported.
    """
    name_or_path = location(spec)
    if name_or_path is None:
        return None
    field, folder = field_of(spec), Path(name_or_path)
    if folder.is_file():
        raise UserError(f"{field} is a file: name the folder that holds it, with config.json and {_WEIGHTS}")
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise UserError(f"{field} is an adapter: merge it into its base model first")
        refuse_pointers(field, sorted(folder.glob("*.json")))
        if not (folder / "config.json").is_file():
            raise UserError(f"{field} cannot be loaded: it holds no config.json")
    config = _config(spec, name_or_path)
    refuse_kind(field, config, classifier)
    if folder.is_dir():
        _check_weights(field, folder, config)
    return config


def _config(spec: Model, name_or_path: str) -> Any:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as problem:  # each configuration class raises errors of its own
        raise UserError(unreadable(spec, name_or_path, problem)) from None


def refuse_kind(field: str, config: Any, classifier: bool) -> None:
    """Raise UserError for a configuration that has no text model for the task: encoder-decoders, multimodal and
    quantized models, and those that transformers has no class for."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{field}: {kind} is an encoder-decoder, which is not supported: {_instead(classifier)}")
    if parts := sorted(part for part in getattr(config, "sub_configs", {}) if _NOT_TEXT.search(part)):
        raise UserError(
            f"{field}: {kind} takes inputs other than text ({', '.join(parts)}), which is not supported: "
            f"{_instead(classifier)}"
        )
    if type(config) not in (AutoModelForSequenceClassification if classifier else AutoModelForCausalLM)._model_mapping:
        task = "classifier" if classifier else "causal language model"
        raise UserError(f"{field}: transformers has no {task} for {kind!r}: {_instead(classifier)}")
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        if isinstance(quantization, dict):
            method = quantization.get("quant_method", "quantized")
        else:
            method = type(quantization).__name__
        raise UserError(
            f"{field} holds quantized weights ({method}), which cannot be trained: use the model's unquantized weights"
        )


def _instead(classifier: bool) -> str:
    if classifier:
        return "use an encoder such as BERT, or a decoder such as Llama"
    return "use a decoder such as GPT-2 or Llama"


def _check_weights(field: str, folder: Path, config: Any) -> None:
    """Raise UserError for weights that are missing, in another format, or damaged according to their file headers."""
    for name in _weight_files(field, folder, config):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{field}: {name}, which {_INDEX} lists, is missing: download it again")
        if reason := damage_of(path):
            raise UserError(f"{field}: {name} {reason}")
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as problem:
            reason = str(problem).removeprefix("Error while deserializing header: ")
            raise UserError(f"{field}: {name} is truncated or damaged ({reason}): download it again") from None


def _weight_files(field: str, folder: Path, config: Any) -> list[str]:
    """Names of the weight files in a folder: one, or those listed in the index. Raises UserError if there are none."""
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    index = folder / _INDEX
    if index.is_file():
        if reason := damage_of(index):
            raise UserError(f"{field}: {_INDEX} {reason}")
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{field}: {_INDEX} lists no file (weight_map): download it again")
        return sorted(set(map(str, shards.values())))
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (*_PICKLED, ".safetensors", ".gguf"))
    if any(name.endswith(".bin") for name in others):
        raise UserError(
            f"{field} holds pickled weights ({others[0]}), which are not read: convert them: "
            f"{_conversion_command(folder, config)}"
        )
    instead = f"; it holds {', '.join(others[:8])}" if others else ""
    raise UserError(f"{field} holds no {_WEIGHTS}{instead}")


def _conversion_command(folder: Path, config: Any) -> str:
    """The command that saves a folder's pickled weights as safetensors, in the same folder."""
    import transformers

    architecture = (getattr(config, "architectures", None) or [""])[0]
    model_class = architecture if hasattr(transformers, architecture or "-") else "AutoModel"
    path = json.dumps(str(folder), ensure_ascii=False)
    code = f"import transformers as t; t.{model_class}.from_pretrained({path}).save_pretrained({path})"
    return command("python", "-c", code)
