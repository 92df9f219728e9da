"""Texts as token ids: user text never becomes a special token, and the tokenizer's own settings are restored."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from hfbsz.errors import UserError


class Unencodable(UserError):
    """A text that the tokenizer fails on; `place` is its index among the texts that were passed."""

    def __init__(self, cause: str, place: int = 0) -> None:
        self.cause, self.place = cause, place
        super().__init__(f"data.tokenizer: it cannot tokenize this text: {cause}")


def is_backend_error(problem: BaseException) -> bool:
    """Whether the `tokenizers` library failed: it raises plain Exception, or PanicException, a BaseException."""
    return type(problem) is Exception or type(problem).__name__ == "PanicException"


class State(NamedTuple):
    """The settings of a fast tokenizer's backend that affect encoding; None means off."""

    truncation: Mapping[str, Any] | None = None
    padding: Mapping[str, Any] | None = None
    special_as_text: bool = False  # whether the names of special tokens in a text are encoded as ordinary text


_PLAIN = State(special_as_text=True)
_REPLACEMENTS: WeakKeyDictionary[Any, dict[int, list[int]]] = WeakKeyDictionary()  # by tokenizer


def encode_texts(tokenizer: Any, texts: Sequence[str], limit: int | None = None) -> tuple[list[list[int]], list[int]]:
    """The ids of each text with the special tokens that the tokenizer adds, truncated to `limit` tokens including them,
    and the lengths before truncation. Raises UserError if `limit` leaves no room beside the special tokens."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    added = backend.num_special_tokens_to_add(False) if backend is not None else tokenizer.num_special_tokens_to_add()
    if limit is not None and limit <= added:
        raise UserError(
            f"data.sequence_length: {limit} leaves no room for text beside the {added} tokens that the tokenizer adds"
        )
    plain = encode_plain(tokenizer, texts)
    lengths = [len(ids) + added for ids in plain]
    room = None if limit is None else limit - added
    truncated = [_truncated(ids, room, tokenizer.truncation_side) for ids in plain]
    if not added:
        return truncated, lengths
    if backend is None:
        return [tokenizer.build_inputs_with_special_tokens(ids) for ids in truncated], lengths
    prefix, suffix = _prefix_and_suffix(backend)
    return [[*prefix, *ids, *suffix] for ids in truncated], lengths


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text without special tokens: none is added, and none results from the text itself."""
    if not tokenizer.is_fast:
        tokens = (tokenizer.tokenize(text, split_special_tokens=True) for text in texts)
        rows = [tokenizer.convert_tokens_to_ids(each) for each in tokens]
    else:
        rows = _encode_fast(tokenizer.backend_tokenizer, texts)
    replacements = _special_replacements(tokenizer)
    return [_replaced(ids, replacements) for ids in rows] if replacements else rows


def _encode_fast(backend: Any, texts: Sequence[str]) -> list[list[int]]:
    """Raises Unencodable with the index of the first text that fails."""
    try:
        with temporary_state(backend, _PLAIN):
            # the backend itself instead of tokenizer(texts): without masks and offsets it is a quarter faster
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    except Unencodable:
        if len(texts) == 1:
            raise
    for index, text in enumerate(texts):
        try:
            _encode_fast(backend, [text])
        except Unencodable as problem:
            raise Unencodable(problem.cause, index) from None
    raise Unencodable("it fails on many texts at once")


def state_of(backend: Any) -> State:
    """The current settings of a fast tokenizer's backend."""
    return State(backend.truncation, backend.padding, backend.encode_special_tokens)


@contextlib.contextmanager
def temporary_state(backend: Any, state: State) -> Iterator[None]:
    """A context in which a fast tokenizer's backend has these settings; its previous ones are restored at the end.
    Raises Unencodable if the backend fails inside it."""
    before = state_of(backend)
    _set_state(backend, state)
    try:
        yield
    except BaseException as problem:
        if is_backend_error(problem):
            raise Unencodable(str(problem)) from None
        raise
    finally:
        _set_state(backend, before)


def _set_state(backend: Any, state: State) -> None:
    if backend.truncation != state.truncation:
        backend.no_truncation() if state.truncation is None else backend.enable_truncation(**state.truncation)
    if backend.padding != state.padding:
        backend.no_padding() if state.padding is None else backend.enable_padding(**state.padding)
    backend.encode_special_tokens = state.special_as_text


def _truncated(ids: list[int], room: int | None, side: str) -> list[int]:
    if room is None or len(ids) <= room:
        return ids
    return ids[-room:] if side == "left" else ids[:room]


def _prefix_and_suffix(backend: Any) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that the tokenizer adds before and after a text."""
    with temporary_state(backend, _PLAIN):
        encoding = backend.encode("a")
    ids = encoding.ids
    ordinary = [index for index, special in enumerate(encoding.special_tokens_mask) if not special] or [len(ids)]
    return ids[: ordinary[0]], ids[ordinary[-1] + 1 :]


def _replaced(ids: list[int], replacements: Mapping[int, list[int]]) -> list[int]:
    if replacements.keys().isdisjoint(ids):
        return ids
    return [part for token in ids for part in replacements.get(token, (token,))]


def _special_replacements(tokenizer: Any) -> dict[int, list[int]]:
    """Special tokens that a text still produces although their names are encoded as text, and the ids to use instead.

    SentencePiece unigram models are an example: their vocabulary holds the special tokens.
    """
    if tokenizer not in _REPLACEMENTS:
        _REPLACEMENTS[tokenizer] = _find_replacements(tokenizer) if tokenizer.is_fast else {}
    return _REPLACEMENTS[tokenizer]


def _find_replacements(tokenizer: Any) -> dict[int, list[int]]:
    backend = tokenizer.backend_tokenizer
    names = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    names = {name for name in names | set(tokenizer.all_special_tokens) if name != tokenizer.unk_token}
    special = {backend.token_to_id(name): name for name in sorted(names)}
    with temporary_state(backend, _PLAIN):

        def encode(texts: Iterable[str]) -> list[list[int]]:
            return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

        alone = encode(special.values())
        in_text = encode(f"a {name} b" for name in special.values())
        produced = [
            token
            for token, *encoded in zip(special, alone, in_text, strict=True)
            if any(token in ids for ids in encoded)
        ]
        halves = [encode((special[token][:1], special[token][1:])) for token in produced]
    unknown = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
    space = backend.token_to_id("▁")  # SentencePiece puts it before the first word
    return {
        token: [part for half in both for part in half if part not in special and part != space] or unknown
        for token, both in zip(produced, halves, strict=True)
    }
