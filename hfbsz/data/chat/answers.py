"""Finds the spans of a rendered conversation that are answers to learn."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from hfbsz.data.chat.conversations import Message
from hfbsz.data.chat.marks import MarkedText, Marks, blanks, texts_of
from hfbsz.data.chat.template import CALL_DIALECTS, DIALECTS, ChatTemplate, Span
from hfbsz.data.tokenizer.special_tokens import special_names

_HEAD = 32  # characters of a generation prompt that may be an answer's first words, such as <think>
# limits of the cache of answer boundaries: characters around an answer, and entries
_MAX_CONTEXT, _MAX_ENTRIES = 1000, 4096


class Rendered(NamedTuple):
    """A conversation, or its beginning, as text, and the character spans (start, end) of its answers to learn."""

    text: str
    answers: list[Span]
    as_last: bool  # whether every answer ends as it does when it is the last message; False: not known


class LastTurn(NamedTuple):
    """A conversation up to an answer, rendered with the answer as the last message."""

    text: str
    start: int  # where the answer begins; it ends with the text
    prompt_rest: str  # what the generation prompt has where the answer begins; empty if the answer follows the prompt


class _Missing(ValueError):
    """A part of a conversation is missing in its rendering."""


class Boundaries(NamedTuple):
    """How far an answer's span extends beyond its marked texts, in characters."""

    before: int
    after: int
    unchanged: bool  # whether the full rendering begins with that of the answer as the last message
    prompt_rest: str  # as in LastTurn: another answer may begin with it


class Answers:
    """Finds the answers of conversations in the renderings of one tokenizer's template, and counts what is unusual."""

    def __init__(self, tokenizer: Any, day: date | None = None) -> None:
        self.tokenizer, self.day = tokenizer, day
        self.counts: Counter[str] = Counter()
        self.prompt_end = ""  # the end of a generation prompt that an answer did not begin with
        self.boundaries: dict[tuple[Any, ...], Boundaries] = {}
        self.special = tuple(special_names(tokenizer))
        self._dialect = DIALECTS[0]
        self._shows_tools = False

    def rows(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, last: bool) -> list[Rendered]:
        """The renderings that together hold every answer to learn, or only the last: one, or several if the template
        renders earlier turns differently after later ones. Raises ValueError if the template rejects the conversation
        (with its own message) or leaves out a part of it."""
        template = ChatTemplate(self.tokenizer, tools, self._dialect, self.day)
        self.counts["dated"] += template.writes_date
        if "developer" not in template.source:
            messages = [_as_system(message) for message in messages]
        learned = [n for n, message in enumerate(messages) if message["role"] == "assistant" and message["learned"]]
        if not learned:
            return []
        full = self._full(template, messages)
        learned = learned[-1:] if last else learned
        if template.marks_answers:
            rows = [Rendered(full.text, _block_spans(messages, full, learned), False)]
        else:
            rows = _Finder(self, template, messages, full).rows(learned)
        self._count_changed(rows, [messages[number] for number in learned])
        return rows

    def _full(self, template: ChatTemplate, messages: Sequence[Message]) -> "_Full":
        """The rendering of all messages, plain and marked, in the first dialect in which nothing is missing."""
        marks = Marks(messages)
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        dialects = CALL_DIALECTS if calls else DIALECTS
        problem: ValueError | None = None
        for dialect in sorted(dialects, key=lambda dialect: dialect != self._dialect):
            template.dialect = dialect
            try:
                full = _Full(*template.render_blocks(messages), marks.read(template.render(marks.messages)))
                _check_complete(messages, calls, full)
            except ValueError as error:
                # report the error of the dialect that gets furthest
                if problem is None or (isinstance(error, _Missing) and not isinstance(problem, _Missing)):
                    problem = error
                continue
            self._dialect = dialect
            self._note_tools(template, messages, full.text)
            return full
        assert problem is not None
        raise problem

    def _note_tools(self, template: ChatTemplate, messages: Sequence[Message], text: str) -> None:
        if template.tools is not None and not self._shows_tools:
            self._shows_tools = template.render(messages, tools=False) != text
            self.counts["tools"] += not self._shows_tools

    def _count_changed(self, rows: Sequence[Rendered], answers: Sequence[Message]) -> None:
        """Count the answers that the template does not render word for word."""
        rendered = "\n".join(row.text[max(0, start - _HEAD) : end] for row in rows for start, end in row.answers)
        for message in answers:
            texts = [message["content"].strip(), message.get("reasoning_content", "").strip()]
            self.counts["changed"] += not all(_is_in(text, rendered) for text in texts)


class _Full(NamedTuple):
    """A full conversation's rendering, its `generation` blocks, and its marked rendering."""

    text: str
    blocks: list[Span]
    marked: MarkedText

    @property
    def is_regular(self) -> bool:
        """Whether the marks give the positions of messages in the plain text."""
        return self.marked.text == self.text and self.marked.in_order


class _Finder:
    """Finds the answers of one conversation. An answer begins where the generation prompt ends, and ends where the
    template's text for its turn ends."""

    def __init__(self, shared: Answers, template: ChatTemplate, messages: Sequence[Message], full: _Full) -> None:
        self.shared, self.template, self.messages, self.full = shared, template, messages, full
        self.kinds = frozenset((message["role"], "tool_calls" in message) for message in messages)

    def rows(self, learned: Sequence[int]) -> list[Rendered]:
        """The full rendering, or several renderings of beginnings, with the answers of the messages `learned`."""
        spans = []
        for number in learned:
            span = self._span(number)
            if span is None:
                return self._as_last_turns(learned)
            spans.append(span)
        return [Rendered(self.full.text, spans, True)]

    def _span(self, number: int) -> Span | None:
        """The span of an answer in the full rendering; None if it is rendered differently than as the last turn."""
        key, extent = self._context(number), self.full.marked.extents[number]
        if key is not None and extent is not None and (known := self.shared.boundaries.get(key)) is not None:
            start = extent[0] - known.before
            if not known.prompt_rest or self.full.text[start] != known.prompt_rest[0]:
                return (start, extent[1] + known.after) if known.unchanged else None
        last = self._last_turn(number)
        end = self._end_in(self.full.text, last)
        if key is not None and extent is not None:
            before, after = extent[0] - last.start, (end or extent[1]) - extent[1]
            inside = 0 <= before <= len(key[0]) and 0 <= after <= len(key[1])
            if inside and len(key[0]) + len(key[1]) < _MAX_CONTEXT and len(self.shared.boundaries) < _MAX_ENTRIES:
                self.shared.boundaries[key] = Boundaries(before, after, end is not None, last.prompt_rest)
        return None if end is None else (last.start, end)

    def _context(self, number: int) -> tuple[Any, ...] | None:
        """The key of an answer in the cache of boundaries: the text around it, and all else that may decide its form.

        With the cache, each kind of turn is rendered as the last message only once, so rendering takes time linear in
        the number of turns. None if the marks do not tell which text is around the answer.
        """
        extents, text = self.full.marked.extents, self.full.text
        extent = extents[number]
        if extent is None or not self.full.is_regular or not self.full.marked.complete[number]:
            return None
        earlier = (other[1] for other in reversed(extents[:number]) if other is not None)
        later = (other[0] for other in extents[number + 1 :] if other is not None)
        before, after = text[next(earlier, 0) : extent[0]], text[extent[1] : next(later, len(text))]
        is_last = number == len(self.messages) - 1
        message = self.messages[number]
        has = *(key for key, value in message.items() if value), *blanks(message["content"])
        return before, after, is_last, has, self.kinds, bool(self.template.tools), self.template.source

    def _as_last_turns(self, learned: Sequence[int]) -> list[Rendered]:
        """A row for each answer as the last message; an answer that a later row holds unchanged shares that row."""
        rows: list[Rendered] = []
        for number in reversed(learned):
            last = self._last_turn(number)
            for row in rows:
                if (end := self._end_in(row.text, last)) is not None:
                    row.answers.insert(0, (last.start, end))
                    break
            else:
                rows.append(Rendered(last.text, [(last.start, len(last.text))], True))
        self.shared.counts["rewritten"] += len(learned) > 1
        self.shared.counts["rows"] += len(rows) if len(learned) > 1 else 0
        return rows[::-1]

    def _last_turn(self, number: int) -> LastTurn:
        """An answer as the last message. It begins after the generation prompt, or where its text differs from the
        prompt (those of reasoning models may open a thought that the answer does not have)."""
        prompt = self.template.render(self.messages[:number], prompt=True)
        text = self.template.render(self.messages[: number + 1])
        if text.startswith(prompt):
            return LastTurn(text, len(prompt), "")
        start = _common_prefix(text, prompt)
        start -= text[:start].endswith("<")  # two different tags have this in common
        content = self.messages[number]["content"].strip()
        if content and (position := text.rfind(content)) >= 0:
            start = min(start, position)
        contents = (message["content"].strip() for message in reversed(self.messages[:number]))
        question = next(filter(None, contents), "")
        if not any(form in text[:start] for form in _forms(question)):
            raise ValueError(
                "the tokenizer's chat template renders the turns before an answer differently when the answer follows, "
                "so the answer cannot be told from them: use another tokenizer"
            )
        self.shared.prompt_end = prompt[-24:]
        self.shared.counts["prompt"] += 1
        return LastTurn(text, start, prompt[start:])

    def _end_in(self, longer: str, last: LastTurn) -> int | None:
        """Where an answer ends in a longer rendering that begins with the same text; None if it does not. A token that
        ends the conversation after the one that ends the turn, as Phi-3's, may be missing there."""
        if longer.startswith(last.text):
            return len(last.text)
        text = last.text
        while closing := next(filter(text.endswith, self.shared.special), ""):
            text = text[: -len(closing)]
            if longer.startswith(text) and text[last.start :].rstrip().endswith(self.shared.special):
                return len(text)
        return None


def _block_spans(messages: Sequence[Message], full: _Full, learned: Sequence[int]) -> list[Span]:
    """The template's own `generation` blocks that belong to the answers `learned`."""
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if list(learned) == answers:
        return full.blocks
    if full.is_regular:  # a block belongs to the last message that begins before its end
        starts = [(extent[0], number) for number, extent in enumerate(full.marked.extents) if extent is not None]
        owners = [max((s for s in starts if s[0] < block[1]), default=(0, -1))[1] for block in full.blocks]
    elif len(full.blocks) == len(answers):
        owners = answers
    else:
        raise ValueError(
            "the generation blocks of the tokenizer's chat template cannot be assigned to answers, and not every "
            "answer is to be learned"
        )
    return [block for block, owner in zip(full.blocks, owners, strict=True) if owner in learned]


def _check_complete(messages: Sequence[Message], calls: Sequence[dict[str, Any]], full: _Full) -> None:
    """Raise _Missing for a message or call that is not in the rendering; the text of answers may be changed."""
    marked = full.marked.text == full.text  # otherwise the template depends on the content of messages
    for message, extent in zip(messages, full.marked.extents, strict=True):
        content = message["content"].strip()
        if message["role"] == "assistant" or not content or extent is not None:
            continue
        if marked or not _is_rendered(content, full.text):
            raise _Missing(
                f"the tokenizer's chat template leaves out the {message['role']} message {content[:40]!r}: use a "
                "tokenizer whose template renders it"
            )
    if not full.marked.has_calls or any(_as_python(call, full.text) for call in calls):
        raise _Missing("the tokenizer's chat template does not render tool calls: use a tokenizer whose template does")


def _as_system(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _as_python(call: dict[str, Any], text: str) -> bool:
    """Whether arguments were rendered as a Python dict's repr: the template expects them as text."""
    arguments = call["function"]["arguments"]
    return bool(arguments) and str(arguments) in text


def _forms(content: str) -> list[str]:
    """A text in the forms in which templates render it: as it is, or as JSON."""
    return [content, *(json.dumps(content, ensure_ascii=escaped)[1:-1] for escaped in (False, True))]


def _is_rendered(content: str, text: str) -> bool:
    """Whether a rendering contains a message's text, or all values of the JSON in it."""
    if any(form in text for form in _forms(content)) or _is_in(content, text):
        return True
    try:
        values = [value.strip() for value in texts_of(json.loads(content))]
    except (ValueError, RecursionError):
        return False
    return bool(values) and all(value in text for value in values)


def _is_in(content: str, text: str) -> bool:
    """Whether a text contains another, white space aside."""
    return content in text or "".join(content.split()) in "".join(text.split())


def _common_prefix(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
