"""Parsing of conversations into messages, and which messages are answers to learn."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

from hfbsz.data.chat.tool_calls import calls_in_text, parse_calls, parse_text, replace_surrogates, rows_from_columns
from hfbsz.data.sources.texts import as_text, is_missing

_CALL = "call"
_NAMES = {
    "system": ("system",),
    "developer": ("developer",),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatgpt", "ai"),
    "tool": ("tool", "function", "ipython", "observation", "tool_response", "tool_result"),
    _CALL: ("function_call", "tool_call", "tool_calls"),  # an assistant message whose text is the call
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_CALL_KEYS, _SPEAKER_KEYS = ("tool_calls", "function_call"), ("sender", "speaker")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # the names in Transformers
_REFUSAL = "refusal"  # OpenAI's key for the text of a refusal, instead of content
_FLAGS = ("weight", "train", "training", "trainable", "train_on_turn", "loss_mask", "learned")
_UNCLEAR_FLAGS = ("mask", "masked")  # 1 means learned in some data sets, and not learned in others
_READ = {*_ROLE_KEYS, *_CONTENT_KEYS, _REFUSAL, *_CALL_KEYS, *_REASONING_KEYS, *_FLAGS, "loss"}
_WRAPPERS = ("messages", "conversations", "conversation")
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_EXPECTED_KEYS = "messages must hold role and content, from and value, or text and sender"


class Message(TypedDict, total=False):
    """A message. Other keys of the data are passed to the chat template unchanged."""

    role: str  # system, developer, user, assistant or tool
    content: str
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    learned: bool  # assistant: whether it is an answer to learn; other roles: whether the data flags it so


_Turn = tuple[Message, bool | None]  # a message, and whether the data flags it as learned (None: no flag)


def conversation(value: Any) -> list[Message]:
    """The messages of a conversation in any supported form; no messages for null. Raises ValueError for other forms.

    Supported: lists of {role, content} or {from, value}, with tool calls and flags per message (`weight`, `train`), or
    the same as columns of lists; alternating texts, pairs of texts, or {text, sender} (the first speaker is the user,
    and consecutive messages of one speaker are joined); JSON text of any of these. Texts are not changed.
    """
    return _marked(_turns(value))


def from_pair(prompt: Any, response: Any, system: Any = None) -> list[Message]:
    """The conversation of a prompt and its response, each a text, a number or a list of messages. Answers in the
    response are learned, those in the prompt are context. Empty parts are left out. Raises ValueError for other
    forms."""
    context = [(message, False) for message, _ in _side(prompt, "user", "the prompt")]
    return _marked(
        [*_side(system, "system", "the system message"), *context, *_side(response, "assistant", "the response")]
    )


def has_answer(messages: Iterable[Message]) -> bool:
    """Whether a conversation has an answer to learn."""
    return any(message["role"] == "assistant" and message["learned"] for message in messages)


def transcript(messages: Iterable[Message]) -> str:
    """The texts and tool calls of a conversation as one text, by which duplicates are found."""
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls", ())]
        lines += [message["content"], *(json.dumps(call, ensure_ascii=False) for call in calls)]
    return "\n".join(lines)


def _marked(turns: Iterable[_Turn]) -> list[Message]:
    """Messages with `learned` set: assistant messages that are not empty, not flagged otherwise, not the opening."""
    messages, opened = [], False
    for message, flag in turns:
        if message["role"] == "assistant":
            has_content = bool(
                message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content")
            )
            message["learned"] = opened and has_content and flag is not False
        else:
            message["learned"], opened = bool(flag), True
        messages.append(message)
    return messages


def _side(value: Any, role: str, what: str) -> list[_Turn]:
    """The messages of a prompt or response; `what` names it in errors."""
    if isinstance(value, list | tuple | Mapping) or (isinstance(value, str) and _is_messages(value)):
        return _turns(value)
    if isinstance(value, bool):
        raise ValueError(f"{what} is {value}, not text")
    text = as_text(value)
    return [] if text is None or not text.strip() else [(Message(role=role, content=replace_surrogates(text)), None)]


def _is_messages(text: str) -> bool:
    """Whether a text is a list of messages, as JSON or as the Python literal that pandas writes into a CSV file."""
    if not text.lstrip().startswith("["):
        return False
    try:
        turns = parse_text(text, "a list")
    except ValueError:
        return False
    required = (_ROLE_KEYS, (*_CONTENT_KEYS, *_CALL_KEYS))
    return bool(turns) and all(
        isinstance(turn, Mapping) and all(_has(turn, keys) for keys in required) for turn in turns
    )


def _turns(value: Any) -> list[_Turn]:
    turns = _list(value)
    if turns and all(isinstance(turn, str) and turn.lstrip()[:1] == "{" for turn in turns):  # each is JSON text
        objects = [parse_text(turn, "a message") for turn in turns]
        if all(isinstance(turn, Mapping) and _has(turn, _ROLE_KEYS) for turn in objects):
            turns = objects
    if all(isinstance(turn, str) or is_missing(turn) for turn in turns):
        return _merged((("user", "assistant")[number % 2], _text(turn)) for number, turn in enumerate(turns))
    turns = [turn for turn in turns if not is_missing(turn)]
    if not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(_EXPECTED_KEYS)
    if all(_has(turn, _SPEAKER_KEYS) and not _has(turn, _ROLE_KEYS) for turn in turns):
        speakers = list(dict.fromkeys(_first(turn, _SPEAKER_KEYS) for turn in turns))
        if not all(isinstance(speaker, str) and speaker.strip().lower() in _ROLES for speaker in speakers):
            return _merged(_spoken(turns, speakers))
        turns = [{**turn, "role": _first(turn, _SPEAKER_KEYS)} for turn in turns]
    messages = [_message(turn) for turn in turns]
    # many data sets have a system message in every row, often empty
    return [turn for turn in messages if turn[0]["content"].strip() or turn[0]["role"] not in ("system", "developer")]


def _list(value: Any) -> list[Any]:
    """The turns of a conversation as one list."""
    for _ in range(2):  # some data sets encode JSON text as JSON twice
        value = parse_text(value, "a conversation") if isinstance(value, str) else value
    if isinstance(value, Mapping) and len(value) == 1:
        value = next((value[key] for key in _WRAPPERS if key in value), value)
    if is_missing(value):
        return []
    if isinstance(value, Mapping):
        in_columns = any(isinstance(entry, list | tuple) for entry in _speaker_columns(value))
        value = rows_from_columns(value, "turns") if in_columns else [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"a conversation must be a list of messages, this is a {type(value).__name__}")
    if value and all(isinstance(turn, list | tuple) for turn in value):  # pairs of texts, or lists of messages
        if any(isinstance(entry, str) for turn in value for entry in turn) and any(len(turn) != 2 for turn in value):
            raise ValueError("a conversation in lists of texts must have a question and an answer in each")
        return [message for turn in value for message in turn]
    return list(value)


def _speaker_columns(columns: Mapping[str, Any]) -> list[Any]:
    return [columns[key] for key in (*_ROLE_KEYS, *_SPEAKER_KEYS) if columns.get(key) is not None]


def _spoken(turns: Sequence[Mapping[str, Any]], speakers: Sequence[Any]) -> Iterable[tuple[str, str]]:
    if len(speakers) > 2:
        raise ValueError(f"{len(speakers)} speakers: a conversation must have two, a user and an assistant")
    if not all(_has(turn, _CONTENT_KEYS) for turn in turns):
        raise ValueError(_EXPECTED_KEYS)
    roles = dict(zip(speakers, ("user", "assistant"), strict=False))
    return [(roles[_first(turn, _SPEAKER_KEYS)], _text(_first(turn, _CONTENT_KEYS))) for turn in turns]


def _merged(spoken: Iterable[tuple[str, str]]) -> list[_Turn]:
    """Messages without empty ones; consecutive messages of one speaker are joined."""
    messages: list[Message] = []
    for role, content in spoken:
        if messages and messages[-1]["role"] == role and content.strip():
            messages[-1]["content"] += "\n" + content
        elif content.strip():
            messages.append(Message(role=role, content=content))
    return [(message, None) for message in messages]


def _message(turn: Mapping[str, Any]) -> _Turn:
    if not _has(turn, _ROLE_KEYS) or not _has(turn, (*_CONTENT_KEYS, *_CALL_KEYS)):
        raise ValueError(f"{_EXPECTED_KEYS}: this one holds {', '.join(map(str, turn)) or 'nothing'}")
    role, content = _role(_first(turn, _ROLE_KEYS)), _first(turn, (*_CONTENT_KEYS, _REFUSAL))
    calls = [call for key in _CALL_KEYS for call in parse_calls(turn.get(key))]
    if role == _CALL:
        role = "assistant"
        more = calls_in_text(content) if isinstance(content, str) else parse_calls(content)
        content, calls = (None, [*calls, *more]) if more else (content, calls)
    if calls and role != "assistant":
        raise ValueError(f"a {role} message holds tool calls, which only an assistant message may hold")
    others = {key: entry for key, entry in turn.items() if key not in _READ and entry is not None}
    message = cast(Message, {"role": role, "content": _text(content), **replace_surrogates(others)})
    if calls:
        message["tool_calls"] = calls
    if reasoning := _first(turn, _REASONING_KEYS):
        message["reasoning_content"] = _text(reasoning)
    return message, _flag(turn)


def _has(turn: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return any(key in turn for key in keys)


def _first(turn: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _role(name: Any) -> str:
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"{name!r} is not a role; the roles are {', '.join(sorted(_ROLES))}")
    return role


def _flag(turn: Mapping[str, Any]) -> bool | None:
    """Whether the data flags a message as learned (True) or not learned (False); None if it has no flag. Raises
    ValueError for values between 0 and 1, and for flags whose meaning is unclear."""
    flags: list[bool] = []
    for key in _FLAGS:
        flag = turn.get(key)
        if is_missing(flag):
            continue
        if not isinstance(flag, int | float) or flag not in (0, 1):
            raise ValueError(f"{key} of a message must be 0 or 1, this is {flag!r}")
        flags.append(bool(flag))
    for key in _UNCLEAR_FLAGS:
        if isinstance(turn.get(key), int | float) and turn[key] in (0, 1):
            raise ValueError(
                f"{key} of a message may mean that it is learned or that it is not: rename it to train, with 1 or 0"
            )
    if isinstance(turn.get("loss"), bool):  # a number with this name is a measured loss
        flags.append(turn["loss"])
    return all(flags) if flags else None


def _text(content: Any) -> str:
    """The text of a message, or of its parts."""
    if isinstance(content, list | tuple):
        return "".join(_part(part) for part in content if not is_missing(part))
    if isinstance(content, Mapping):
        return _part(content)
    if isinstance(content, bool | bytes):
        raise ValueError(f"a message's content must be text, this is a {type(content).__name__}")
    return replace_surrogates(as_text(content) or "")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return replace_surrogates(part)
    if isinstance(part, Mapping) and part.get("type") == _REFUSAL:
        part = {"text": part.get(_REFUSAL)}
    if not isinstance(part, Mapping) or not ("text" in part or "type" in part):
        raise ValueError(f"a message's content must be text or parts of text, this has a {type(part).__name__}")
    if part.get("type") not in _TEXT_PARTS:
        raise ValueError(f"a message holds a part of type {part['type']!r}: only text is supported")
    others = [str(key) for key, entry in part.items() if key not in ("text", "type") and not is_missing(entry)]
    if others and part.get("type") is None:
        raise ValueError(f"a part of a message has no type, but {', '.join(others)} beside its text")
    if not isinstance(text := part.get("text") or "", str):
        raise ValueError(f"the text of a part must be a string, this is a {type(text).__name__}")
    return replace_surrogates(text)
