"""Conversations as text by a tokenizer's chat template."""

import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from hfbsz.data.chat.bounded import BYTES, SECONDS, TooLong, bounded
from hfbsz.data.chat.conversations import Message
from hfbsz.errors import UserError

# for a tokenizer without a template of its own; the answer begins after the colon, so that a prompt ends there
TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }}{{ '\\n' }}{% endif %}"
    "{% for message in messages %}{{ message['role'].capitalize() }}:"
    "{% if message['content'] or not message['tool_calls'] %} {{ message['content'] }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\\n' if message['content'] or not loop.first else ' ' }}Call: {{ call['function'] | tojson }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(?P<format>.*?)\1\s*\)")

_WHOSE = "the tokenizer's chat template"
_SWELLS, _OWN_WORDS = (
    20,
    2**20,
)  # a text has so many times the characters of its conversation, and so many more, at most
Span = tuple[int, int]  # of characters


class Dialect(NamedTuple):
    """What a template wants messages to be like: most take calls as mappings, and content as text. DeepSeek's join the
    texts of calls, and ask for content that is null; those of models that see images want content in parts."""

    text_arguments: bool = False
    null_content: bool = False
    parts: bool = False

    def put(self, message: Message) -> dict[str, Any]:
        told: dict[str, Any] = dict(message)
        if self.parts:
            told["content"] = [{"type": "text", "text": message["content"]}]
        if "tool_calls" not in message:
            return told
        if self.text_arguments:
            told["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        if self.null_content and not message["content"].strip():
            told["content"] = None
        return told


DIALECTS = [Dialect(), Dialect(parts=True)]
DIALECTS_OF_CALLS = [Dialect(text, null) for null in (False, True) for text in (False, True)] + DIALECTS[1:]


class ChatTemplate:
    """Renders conversations by the template that a tokenizer has for them, with tools or without."""

    def __init__(
        self,
        tokenizer: Any,
        tools: list[dict[str, Any]] | None,
        dialect: Dialect = DIALECTS[0],
        day: date | None = None,
    ) -> None:
        """`day` is what the template takes for today; null: the day of the call."""
        self.tools, self.dialect = tools, dialect
        source = str(tokenizer.get_chat_template(None, tools))
        self.writes_date = bool(_TODAY.search(source))
        self.source = source if day is None else _TODAY.sub(lambda asked: _quoted(day, asked["format"]), source)
        self.marks_answers = bool(_GENERATION.search(self.source))
        self._variables = {key: text for key, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}

    def render(self, messages: Sequence[Message], prompt: bool = False, tools: bool = True) -> str:
        """The text of messages, with the generation prompt behind them or not. Raises ValueError, with the template's
        own words, where it refuses them."""
        return self._render(messages, prompt, tools, False)[0]

    def render_blocks(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of messages, and where the template's own `generation` blocks stand in it."""
        text, spans = self._render(messages, False, True, self.marks_answers)
        return text, spans[0] if self.marks_answers else []

    def _render(
        self, messages: Sequence[Message], prompt: bool, tools: bool, mask: bool
    ) -> tuple[str, list[list[Span]]]:
        from transformers.utils import chat_template_utils

        rendering: Any = chat_template_utils.render_jinja_template  # it says that it returns a text: it returns lists
        given = [self.dialect.put(message) for message in messages]
        try:
            with bounded():
                texts, spans = rendering(
                    [given],
                    tools=self.tools if tools else None,
                    chat_template=self.source,
                    add_generation_prompt=prompt,
                    return_assistant_tokens_mask=mask,
                    **self._variables,
                )
        except TooLong:
            raise UserError(f"{_WHOSE} does not end: stopped after {SECONDS:g} s") from None
        except MemoryError:
            raise UserError(f"{_WHOSE} swells: it takes more than {BYTES / 2**30:g} GiB of memory") from None
        except Exception as problem:  # a template is a program: it can fail in any way
            words = " ".join(str(problem).split()) or type(problem).__name__
            raise ValueError(f"{_WHOSE} refuses this conversation: {words}") from None
        said = sum(len(str(part)) for part in (given, self.tools))
        if len(texts[0]) > _SWELLS * said + _OWN_WORDS:
            raise UserError(f"{_WHOSE} swells: {len(texts[0]):,} characters of a conversation of {said:,}")
        return texts[0], spans


def _quoted(day: date, form: str) -> str:
    """The text that a template gets for `strftime_now`, in the template's language."""
    return json.dumps(day.strftime(form), ensure_ascii=False)


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}
