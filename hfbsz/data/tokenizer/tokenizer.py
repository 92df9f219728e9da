"""The tokenizer of a run: a named one, or byte-level BPE trained on the corpus."""

import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hfbsz.data.intact import damage_of, refuse_pointers
from hfbsz.data.tokenizer.encoding import State, Unencodable, is_of_rust, restored, state_of
from hfbsz.errors import UserError
from hfbsz.system.disk import system_error

END = "<|endoftext|>"
_COMPLETE = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")  # AutoTokenizer reads these
_OF_A_TOKENIZER = (".json", ".txt", ".model", ".jinja")
_OWN: WeakKeyDictionary[Any, State] = WeakKeyDictionary()  # of each tokenizer that was loaded: as its own file has it


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer (Radford et al. 2019) with one special token, which ends a document."""
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
    """A tokenizer by folder or Hub id; a folder may hold nothing but GPT-2's vocab.json and merges.txt.

    One that cannot be had, or marks no document's end where that is needed, raises UserError.
    """
    folder = Path(name)
    refuse_pointers(f"data.tokenizer: {str(name)!r}", tokenizer_files(str(name)))
    if folder.is_dir() and not any((folder / file).is_file() for file in _COMPLETE):
        tokenizer = _from_vocabulary(folder)
    else:
        tokenizer = _complete(str(name), folder)
        if needs_end and tokenizer.eos_token_id is None:
            raise UserError(f"data.tokenizer: {str(name)!r} has no end-of-text token to set documents apart")
        if folder.is_dir() and (folder / "vocab.json").is_file():
            _check_entries(tokenizer, folder)
    if tokenizer.is_fast:
        _OWN[tokenizer] = state_of(tokenizer.backend_tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save a tokenizer as it was loaded: with the cut and the padding of its own tokenizer.json, whatever its use here
    has set. Raises OSError, and UserError for text that no file can hold."""
    own = restored(tokenizer.backend_tokenizer, _OWN.get(tokenizer, State())) if tokenizer.is_fast else nullcontext()
    try:
        with own:
            tokenizer.save_pretrained(folder)
    except Unencodable as problem:
        raise system_error(problem.cause) or OSError(problem.cause) from None
    except UnicodeEncodeError as problem:  # its message shows the text, which no console could
        raise UserError(
            f"data.tokenizer: it holds text that is not Unicode and cannot be saved: {problem.reason}"
        ) from None


def _complete(name: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except BaseException as problem:  # the Rust side raises Exception itself, or panics
        if not isinstance(problem, Exception) and not is_of_rust(problem):
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
            f"data.tokenizer: {name!r} gave special tokens alone: its vocabulary (tokenizer.json, or the file of its "
            "kind) is not there"
        )
    return tokenizer


def token_count(tokenizer: Any) -> int:
    """One more than the greatest id that the tokenizer gives, which may leave gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))


def ends_of(name: str) -> set[int]:
    """The ids at which generation ends by the generation_config.json beside a tokenizer; none without one."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return set()
    found = ends if isinstance(ends, list) else [ends]
    return {end for end in found if isinstance(end, int)}


def holds_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (*_COMPLETE, "vocab.json", "merges.txt"))


def tokenizer_files(name: str | None) -> list[Path]:
    """The files that decide what a tokenizer's folder gives; none for a Hub id."""
    if name is None or not Path(name).is_dir():
        return []
    return sorted(path for path in Path(name).iterdir() if path.suffix in _OF_A_TOKENIZER)


def _from_vocabulary(folder: Path) -> Any:
    """GPT-2's byte-level BPE from vocab.json and merges.txt alone."""
    from transformers import GPT2Tokenizer  # vocab_file= and merges_file= would silently give a tokenizer of one token

    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    missing = [path.name for path in (vocabulary, merges) if not path.is_file()]
    if len(missing) == 2:
        raise UserError(f"data.tokenizer: {str(folder)!r} holds no tokenizer.json, nor vocab.json and merges.txt")
    if missing:
        raise UserError(f"data.tokenizer: {str(folder)!r} lacks {missing[0]}")
    known = _entries(vocabulary)
    end = next((token for token in (END, "</s>") if token in known), None)
    if end is None:
        raise UserError(f"data.tokenizer: {str(vocabulary)!r} has no end-of-text token ({END}) to set documents apart")
    try:
        tokenizer = GPT2Tokenizer(
            vocab=str(vocabulary), merges=str(merges), eos_token=end, bos_token=end, unk_token=end
        )
    except BaseException as problem:  # the Rust side raises Exception itself, or panics
        if not isinstance(problem, Exception) and not is_of_rust(problem):
            raise
        raise UserError(f"data.tokenizer: {str(folder)!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    _check_entries(tokenizer, folder)
    return tokenizer


def _entries(vocabulary: Path) -> dict[str, int]:
    try:
        known = json.loads(vocabulary.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"data.tokenizer: {str(vocabulary)!r} cannot be read: {problem}") from None
    if not isinstance(known, dict):
        raise UserError(f"data.tokenizer: {str(vocabulary)!r} is no mapping of tokens to numbers")
    return known


def _check_entries(tokenizer: Any, folder: Path) -> None:
    """transformers can silently build a tokenizer of one token from files that it did not read."""
    known = len(_entries(folder / "vocab.json"))
    if len(tokenizer) < known:
        raise UserError(
            f"data.tokenizer: {str(folder)!r} gave {len(tokenizer)} entries where vocab.json has {known}: its other "
            "files do not fit"
        )
