"""The tokenizer of a run: one that the recipe names, or byte-level BPE trained on the corpus."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hfbsz.data.intact import damage_of, refuse_pointers
from hfbsz.data.tokenizer.encoding import State, Unencodable, is_backend_error, state_of, temporary_state
from hfbsz.errors import UserError
from hfbsz.system.disk import system_error

END = "<|endoftext|>"
# AutoTokenizer needs one of these
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_LOADED_STATES: WeakKeyDictionary[Any, State] = WeakKeyDictionary()  # by tokenizer: its settings when it was loaded


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer (Radford et al. 2019) with one special token, which ends a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def load_tokenizer(name: str | Path, needs_end: bool = True) -> Any:
    """The tokenizer of a folder or Hub id; a folder may hold only GPT-2's vocab.json and merges.txt.

    Raises UserError if it cannot be loaded, or has no end-of-text token although `needs_end` is set.
    """
    folder = Path(name)
    refuse_pointers(f"data.tokenizer: {str(name)!r}", tokenizer_files(str(name)))
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        tokenizer = _from_vocabulary(folder)
    else:
        tokenizer = _from_pretrained(str(name), folder)
        if needs_end and tokenizer.eos_token_id is None:
            raise UserError(f"data.tokenizer: {str(name)!r} has no end-of-text token to separate documents")
        if folder.is_dir() and (folder / "vocab.json").is_file():
            _check_entries(tokenizer, folder)
    if tokenizer.is_fast:
        _LOADED_STATES[tokenizer] = state_of(tokenizer.backend_tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save a tokenizer with the truncation and padding that it had when it was loaded, regardless of its use since.

    Raises OSError, and UserError for text that cannot be written to a file.
    """
    if tokenizer.is_fast:
        loaded_state = _LOADED_STATES.get(tokenizer, State())
        settings: AbstractContextManager[None] = temporary_state(tokenizer.backend_tokenizer, loaded_state)
    else:
        settings = nullcontext()
    try:
        with settings:
            tokenizer.save_pretrained(folder)
    except Unencodable as problem:
        raise system_error(problem.cause) or OSError(problem.cause) from None
    except UnicodeEncodeError as problem:  # its message quotes the text, which no console can print
        raise UserError(
            f"data.tokenizer: it holds text that is not Unicode and cannot be saved: {problem.reason}"
        ) from None


def _from_pretrained(name: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except BaseException as problem:  # the Rust library raises plain Exception, or panics
        if not isinstance(problem, Exception) and not is_backend_error(problem):
            raise
        for path in tokenizer_files(name):
            if reason := damage_of(path):
                raise UserError(f"data.tokenizer: {name!r}: {path.name} {reason}") from None
        if "sentencepiece" in str(problem) and "install" in str(problem):
            raise UserError(f"data.tokenizer: {name!r} needs a package: pip install sentencepiece tiktoken") from None
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise UserError(f"data.tokenizer: {name!r} cannot be loaded: {reason}") from None
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(
            f"data.tokenizer: {name!r} has only special tokens: its vocabulary (tokenizer.json, or another file for "
            "this type of tokenizer) is missing"
        )
    return tokenizer


def token_count(tokenizer: Any) -> int:
    """One more than the largest id of the tokenizer, whose ids may have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def ends_of(name: str) -> set[int]:
    """The end-of-sequence ids of the generation_config.json beside a tokenizer; empty without a valid file."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return set()
    return {end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)}


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / file).is_file() for file in (*_TOKENIZER_FILES, "vocab.json", "merges.txt"))


def tokenizer_files(name: str | None) -> list[Path]:
    """The files in a tokenizer's folder that determine the tokenizer; empty for a Hub id."""
    if name is None or not Path(name).is_dir():
        return []
    return sorted(path for path in Path(name).iterdir() if path.suffix in _SUFFIXES)


def _from_vocabulary(folder: Path) -> Any:
    """GPT-2's byte-level BPE from only vocab.json and merges.txt."""
    from transformers import GPT2Tokenizer

    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    missing = [path.name for path in (vocabulary, merges) if not path.is_file()]
    if len(missing) == 2:
        raise UserError(f"data.tokenizer: {str(folder)!r} holds no tokenizer.json, nor vocab.json and merges.txt")
    if missing:
        raise UserError(f"data.tokenizer: {str(folder)!r} lacks {missing[0]}")
    entries = _entries(vocabulary)
    end = next((token for token in (END, "</s>") if token in entries), None)
    if end is None:
        raise UserError(f"data.tokenizer: {str(vocabulary)!r} has no end-of-text token ({END}) to separate documents")
    try:
        # vocab_file= and merges_file= would silently give a tokenizer of one token
        tokenizer = GPT2Tokenizer(
            vocab=str(vocabulary), merges=str(merges), eos_token=end, bos_token=end, unk_token=end
        )
    except BaseException as problem:  # the Rust library raises plain Exception, or panics
        if not isinstance(problem, Exception) and not is_backend_error(problem):
            raise
        raise UserError(f"data.tokenizer: {str(folder)!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    _check_entries(tokenizer, folder)
    return tokenizer


def _entries(vocabulary: Path) -> dict[str, int]:
    try:
        entries = json.loads(vocabulary.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"data.tokenizer: {str(vocabulary)!r} cannot be read: {problem}") from None
    if not isinstance(entries, dict):
        raise UserError(f"data.tokenizer: {str(vocabulary)!r} is not a mapping of tokens to ids")
    return entries


def _check_entries(tokenizer: Any, folder: Path) -> None:
    """Raise UserError for a tokenizer with fewer entries than vocab.json: transformers can silently ignore files and
    build a tokenizer of a single token."""
    expected = len(_entries(folder / "vocab.json"))
    if len(tokenizer) < expected:
        raise UserError(
            f"data.tokenizer: {str(folder)!r} was loaded with {len(tokenizer)} entries, but vocab.json has {expected}: "
            "its other files do not match"
        )
