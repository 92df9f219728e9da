"""The tokenizer of a run: a named one, or byte-level BPE trained on the corpus."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError

END = "<|endoftext|>"


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


def load_tokenizer(name: str | Path) -> Any:
    """A tokenizer by folder or Hub id; one that cannot be had, or marks no document's end, raises UserError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(f"data.tokenizer: {str(name)!r} cannot be loaded: {reason}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"data.tokenizer: {str(name)!r} has no end-of-text token to set documents apart")
    return tokenizer
