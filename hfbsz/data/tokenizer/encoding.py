"""Texts as token ids: a user's text never gives a special token, and a tokenizer is left as it was found."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from hfbsz.errors import UserError


class Unencodable(UserError):
    """A text that the tokenizer fails on: the one at `place` of those that it was given."""

    def __init__(self, cause: str, place: int = 0) -> None:
        self.cause, self.place = cause, place
        super().__init__(f"data.tokenizer: it cannot tokenise this text: {cause}")


def is_of_rust(problem: BaseException) -> bool:
    """Whether a tokenizer's own library failed: it raises Exception itself, or panics, which is no Exception."""
    return type(problem) is Exception or type(problem).__name__ == "PanicException"


class State(NamedTuple):
    """What a fast tokenizer does beside encoding; None: it does not."""

    truncation: Mapping[str, Any] | None = None
    padding: Mapping[str, Any] | None = None
    special_as_text: bool = False  # whether the words of a special token inside a text are text


_PLAIN = State(special_as_text=True)
_SPELLED: WeakKeyDictionary[Any, dict[int, list[int]]] = WeakKeyDictionary()


def encode_texts(tokenizer: Any, texts: Sequence[str], limit: int | None = None) -> tuple[list[list[int]], list[int]]:
    """Ids of each text with the special tokens that the tokenizer adds, cut to `limit` with these kept, and the lengths
    before the cut. Raises UserError where `limit` has no room beside the special tokens."""
    rust = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    added = rust.num_special_tokens_to_add(False) if rust is not None else tokenizer.num_special_tokens_to_add()
    if limit is not None and limit <= added:
        raise UserError(
            f"data.sequence_length: {limit} leaves no room for text beside the {added} tokens that the tokenizer adds"
        )
    plain = encode_plain(tokenizer, texts)
    lengths = [len(ids) + added for ids in plain]
    room = None if limit is None else limit - added
    kept = [_cut(ids, room, tokenizer.truncation_side) for ids in plain]
    if not added:
        return kept, lengths
    if rust is None:
        return [tokenizer.build_inputs_with_special_tokens(ids) for ids in kept], lengths
    before, after = _around(rust)
    return [[*before, *ids, *after] for ids in kept], lengths


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special tokens: none is added, and none is read out of the text."""
    if not tokenizer.is_fast:
        words = (tokenizer.tokenize(text, split_special_tokens=True) for text in texts)
        rows = [tokenizer.convert_tokens_to_ids(tokens) for tokens in words]
    else:
        rows = _encode_fast(tokenizer.backend_tokenizer, texts)
    spelled = _spelled(tokenizer)
    return [_respell(ids, spelled) for ids in rows] if spelled else rows


def _encode_fast(rust: Any, texts: Sequence[str]) -> list[list[int]]:
    """Raises Unencodable with the place of the first text that fails."""
    try:
        with restored(rust, _PLAIN):  # without the masks and offsets of a call: a quarter faster
            return [encoding.ids for encoding in rust.encode_batch_fast(texts, add_special_tokens=False)]
    except Unencodable:
        if len(texts) == 1:
            raise
    for place, text in enumerate(texts):
        try:
            _encode_fast(rust, [text])
        except Unencodable as problem:
            raise Unencodable(problem.cause, place) from None
    raise Unencodable("it fails on many texts at once")


def state_of(rust: Any) -> State:
    return State(rust.truncation, rust.padding, rust.encode_special_tokens)


@contextlib.contextmanager
def restored(rust: Any, state: State) -> Iterator[None]:
    """Inside, a fast tokenizer's backend is in `state`; then as it was before. Raises Unencodable where it fails."""
    before = state_of(rust)
    _put(rust, state)
    try:
        yield
    except BaseException as problem:
        if is_of_rust(problem):
            raise Unencodable(str(problem)) from None
        raise
    finally:
        _put(rust, before)


def _put(rust: Any, state: State) -> None:
    if rust.truncation != state.truncation:
        rust.no_truncation() if state.truncation is None else rust.enable_truncation(**state.truncation)
    if rust.padding != state.padding:
        rust.no_padding() if state.padding is None else rust.enable_padding(**state.padding)
    rust.encode_special_tokens = state.special_as_text


def _cut(ids: list[int], room: int | None, side: str) -> list[int]:
    if room is None or len(ids) <= room:
        return ids
    return ids[-room:] if side == "left" else ids[:room]


def _around(rust: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    with restored(rust, _PLAIN):
        whole = rust.encode("a")
    inside = [place for place, special in enumerate(whole.special_tokens_mask) if not special] or [len(whole.ids)]
    return whole.ids[: inside[0]], whole.ids[inside[-1] + 1 :]


def _respell(ids: list[int], spelled: Mapping[int, list[int]]) -> list[int]:
    if spelled.keys().isdisjoint(ids):
        return ids
    return [part for token in ids for part in spelled.get(token, (token,))]


def _spelled(tokenizer: Any) -> dict[int, list[int]]:
    """Special tokens that the words of a text can become all the same, as in SentencePiece's unigram models, whose
    vocabulary holds them, and the ids of the same words as text."""
    if tokenizer not in _SPELLED:
        _SPELLED[tokenizer] = _find_spelled(tokenizer) if tokenizer.is_fast else {}
    return _SPELLED[tokenizer]


def _find_spelled(tokenizer: Any) -> dict[int, list[int]]:
    rust = tokenizer.backend_tokenizer
    named = {token.content for token in rust.get_added_tokens_decoder().values() if token.special}
    named = {word for word in named | set(tokenizer.all_special_tokens) if word != tokenizer.unk_token}
    special = {rust.token_to_id(word): word for word in sorted(named)}
    with restored(rust, _PLAIN):

        def ids_of(words: Iterable[str]) -> list[list[int]]:
            return [encoding.ids for encoding in rust.encode_batch_fast(list(words), add_special_tokens=False)]

        apart = zip(ids_of(special.values()), ids_of(f"a {word} b" for word in special.values()), strict=True)
        met = [
            token
            for (token, _), (alone, among) in zip(special.items(), apart, strict=True)
            if token in (*alone, *among)
        ]
        halves = [ids_of((special[token][:1], special[token][1:])) for token in met]
    unknown = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
    space = rust.token_to_id("▁")  # SentencePiece puts it before the first word
    return {
        token: [part for half in both for part in half if part not in special and part != space] or unknown
        for token, both in zip(met, halves, strict=True)
    }
