"""Rendering of conversations to text by a tokenizer's chat template."""

import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from hfbsz.data.chat.bounded import BYTES, SECONDS, TooLong, bounded
from hfbsz.data.chat.conversations import Message
from hfbsz.errors import UserError

# for tokenizers without a template; the answer begins directly after the colon, where the generation prompt ends
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
# the longest rendering, in characters: _MAX_RATIO times those of the conversation, and _MAX_EXTRA more
_MAX_RATIO, _MAX_EXTRA = 20, 2**20
Span = tuple[int, int]  # of characters


class Dialect(NamedTuple):
    """The form of messages that a template expects. Most take arguments of calls as mappings, and content as text.
    DeepSeek's concatenate arguments as text and test for null content; those of vision models expect content in
    parts."""

    text_arguments: bool = False  # arguments of calls as JSON text
    null_content: bool = False  # null instead of empty content in messages with calls
    parts: bool = False  # content as a list of parts

    def convert(self, message: Message) -> dict[str, Any]:
        """The message in this form."""
        converted: dict[str, Any] = dict(message)
        if self.parts:
            converted["content"] = [{"type": "text", "text": message["content"]}]
        if "tool_calls" not in message:
            return converted
        if self.text_arguments:
            converted["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        if self.null_content and not message["content"].strip():
            converted["content"] = None
        return converted


DIALECTS = [Dialect(), Dialect(parts=True)]
CALL_DIALECTS = [Dialect(text, null) for null in (False, True) for text in (False, True)] + DIALECTS[1:]


class ChatTemplate:
    """Renders conversations, with or without tools, by a tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: Any,
        tools: list[dict[str, Any]] | None,
        dialect: Dialect = DIALECTS[0],
        day: date | None = None,
    ) -> None:
        """`day` is the date that the template uses as today's; None: the current date."""
        self.tools, self.dialect = tools, dialect
        source = str(tokenizer.get_chat_template(None, tools))
        self.writes_date = bool(_TODAY.search(source))
        self.source = source if day is None else _TODAY.sub(lambda match: _quoted(day, match["format"]), source)
        self.marks_answers = bool(_GENERATION.search(self.source))
        self._variables = {key: text for key, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}

    def render(self, messages: Sequence[Message], prompt: bool = False, tools: bool = True) -> str:
        """The text of messages, followed by the generation prompt if `prompt`. Raises ValueError, with the template's
        own message, if it rejects them, and UserError if it exceeds the limits of time, memory or length."""
        return self._render(messages, prompt, tools, False)[0]

    def render_blocks(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of messages, and the spans of the template's own `generation` blocks in it. Raises like `render`."""
        text, spans = self._render(messages, False, True, self.marks_answers)
        return text, spans[0] if self.marks_answers else []

    def _render(
        self, messages: Sequence[Message], prompt: bool, tools: bool, mask: bool
    ) -> tuple[str, list[list[Span]]]:
        from transformers.utils import chat_template_utils

        rendering: Any = chat_template_utils.render_jinja_template  # annotated as returning str, but it returns lists
        converted = [self.dialect.convert(message) for message in messages]
        try:
            with bounded():
                texts, spans = rendering(
                    [converted],
                    tools=self.tools if tools else None,
                    chat_template=self.source,
                    add_generation_prompt=prompt,
                    return_assistant_tokens_mask=mask,
                    **self._variables,
                )
        except TooLong:
            raise UserError(f"{_WHOSE} does not end: stopped after {SECONDS:g} s of CPU time") from None
        except MemoryError:
            raise UserError(f"{_WHOSE} uses too much memory: more than {BYTES / 2**30:g} GiB") from None
        except Exception as problem:  # a template is code: it can raise anything
            words = " ".join(str(problem).split()) or type(problem).__name__
            raise ValueError(f"{_WHOSE} refuses this conversation: {words}") from None
        size = sum(len(str(part)) for part in (converted, self.tools))
        if len(texts[0]) > _MAX_RATIO * size + _MAX_EXTRA:
            raise UserError(f"{_WHOSE} renders too much text: {len(texts[0]):,} characters from {size:,}")
        return texts[0], spans


def _quoted(day: date, form: str) -> str:
    """The date as a Jinja string literal, which replaces the call of `strftime_now`."""
    return json.dumps(day.strftime(form), ensure_ascii=False)


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}
