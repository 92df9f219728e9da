"""Conversations: their forms, and which characters of one the model learns to say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# for a tokenizer without a template of its own; the answer begins after the colon, so that a prompt ends there
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_ROLES = {"human": "user", "prompter": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "assistant", "bot", "model"), "assistant"
)

Message = Mapping[str, str]


class Rendered(NamedTuple):
    """A conversation as text, and (start, end) of the characters of each answer."""

    text: str
    answers: list[tuple[int, int]]


def conversation(value: Any) -> list[dict[str, str]]:
    """Messages of `role` and `content`, from any of the forms that are met; raises ValueError for others.

    The forms: {role, content}; {from, value} (ShareGPT); texts, or lists of {text, sender}, in turn (the first speaker
    is the user). Messages of one speaker in a row become one; what is empty goes.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"a conversation is a list of messages, this is a {type(value).__name__}")
    messages: list[dict[str, str]] = []
    for role, content in _turns(value):
        if not content.strip():
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + content.strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


def _turns(value: Sequence[Any]) -> list[tuple[str, str]]:
    if all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in value):
        return [(_role(turn["role"]), _text(turn["content"])) for turn in value]
    if all(isinstance(turn, Mapping) and {"from", "value"} <= turn.keys() for turn in value):
        return [(_role(turn["from"]), _text(turn["value"])) for turn in value]
    if all(isinstance(turn, str) for turn in value):
        return [(("user", "assistant")[number % 2], turn) for number, turn in enumerate(value)]
    said = [message for turn in value for message in (turn if isinstance(turn, list) else [turn])]
    if said and all(isinstance(message, Mapping) and {"text", "sender"} <= message.keys() for message in said):
        speakers = list(dict.fromkeys(message["sender"] for message in said))
        if len(speakers) > 2:
            raise ValueError(f"{len(speakers)} speakers: a conversation has a user and an assistant")
        return [(("user", "assistant")[speakers.index(m["sender"])], _text(m["text"])) for m in said]
    raise ValueError("messages hold role and content, from and value, or text and sender")


def _role(name: Any) -> str:
    if name not in _ROLES:
        raise ValueError(f"{name!r} is no role; there are {', '.join(sorted(_ROLES))}")
    return _ROLES[name]


def _text(content: Any) -> str:
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"a message's content is text, this is a {type(content).__name__}")
    return content


def render(messages: Sequence[Message], tokenizer: Any) -> Rendered:
    """The conversation by the tokenizer's chat template; raises ValueError where the template rewrites what it wrote
    before, so that no part of the text belongs to one answer."""

    def upto(count: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(list(messages[:count]), tokenize=False, add_generation_prompt=prompt)

    answers = []
    whole = upto(len(messages), False)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and number:  # what opens a conversation answers nothing
            before, after = upto(number, True), upto(number + 1, False)
            if not (after.startswith(before) and whole.startswith(after)):
                raise ValueError("the tokenizer's chat template rewrites earlier turns: take another tokenizer")
            answers.append((len(before), len(after)))
    return Rendered(whole, answers)
