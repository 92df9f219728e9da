"""Preference pairs: two conversations with a common prompt, of which one answer was preferred to the other."""

from collections.abc import Sequence
from typing import Any

from hfbsz.data.chat.chat import Chat, Encoded
from hfbsz.data.chat.conversations import Message, conversation, from_pair, has_answer
from hfbsz.data.prepare.labels import SkippedRow

Pair = tuple[list[Message], list[Message]]  # the chosen and the rejected conversation
_NAMES = ("chosen", "rejected")


def pair_of(chosen: Any, rejected: Any, *prompt_and_system: Any) -> Pair:
    """The conversations of a pair, in which only the messages after the common prompt are learned.

    With a prompt (and a system message, or None), `chosen` and `rejected` are its answers: texts, or lists of messages.
    Without one, both are whole conversations, whose common beginning is the prompt. Raises SkippedRow, with the reason,
    for a pair of no use, and ValueError for other forms.
    """
    if prompt_and_system:
        prompt, system = prompt_and_system
        size = len(from_pair(prompt, None, system))
        one, other = (from_pair(prompt, side, system) for side in (chosen, rejected))
        for name, messages in zip(_NAMES, (one, other), strict=True):
            if len(messages) > size and messages[size]["role"] != "assistant":
                raise ValueError(
                    f"the {name} answer begins with a {messages[size]['role']} message: it holds its prompt itself, so "
                    "leave out the column of the prompt"
                )
    else:
        one, other = (_whole(name, side) for name, side in zip(_NAMES, (chosen, rejected), strict=True))
        size = _common(one, other)
        if one and other and not size:
            raise ValueError(
                "the chosen and the rejected conversation begin with different messages: name the column of their "
                "prompt in data.prompt"
            )
        for message in (*one[:size], *other[:size]):
            message["learned"] = False
    for name, messages in zip(_NAMES, (one, other), strict=True):
        if not has_answer(messages[size:]):
            same = len(one) == len(other) == size
            raise SkippedRow("chosen and rejected are the same" if same and size else f"no {name} answer to learn")
    if _common(one, other) == len(one) == len(other):
        raise SkippedRow("chosen and rejected are the same")
    return one, other


def encode_pair(
    chat: Chat, chosen: Sequence[Message], rejected: Sequence[Message], tools: list[dict[str, Any]] | None
) -> Encoded:
    """The row of a pair. Raises ValueError like `Chat.encode`, and if the template makes several rows of a side."""
    sides = [chat.encode(messages, tools) for messages in (chosen, rejected)]
    if any(len(rows) != 1 for rows in sides):
        raise ValueError(
            "the chat template renders earlier answers differently after later ones, so that a side of the pair would "
            "be several rows: data.answers=last learns its last answer only"
        )
    (one,), (other,) = sides
    return Encoded(
        [*one.ids, *other.ids],
        [*one.labels, *other.labels],
        one.text_bytes + other.text_bytes,
        one.was_cut or other.was_cut,
        len(one.ids),
    )


def _whole(name: str, value: Any) -> list[Message]:
    """A side without a separate prompt. Raises ValueError for a text that is no conversation."""
    try:
        return conversation(value)
    except ValueError:
        if not isinstance(value, str):
            raise
        raise ValueError(
            f"the {name} answer is a text, not a conversation: name the column of its prompt in data.prompt"
        ) from None


def _common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of leading messages that are the same."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if _told(a) != _told(b)), min(len(one), len(other)))


def _told(message: Message) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "learned"}
