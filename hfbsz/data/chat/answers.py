"""Which characters of a conversation's rendering are answers to learn."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from hfbsz.data.chat.conversations import Message
from hfbsz.data.chat.marks import Found, Marks, blanks, texts_of
from hfbsz.data.chat.template import DIALECTS, DIALECTS_OF_CALLS, ChatTemplate, Span
from hfbsz.data.tokenizer.special_tokens import special_names

_HEAD = 32  # characters of a generation prompt that may be an answer's first words, such as <think>
_LONGEST, _MOST = 1000, 4096  # characters around an answer, and such surroundings, that are remembered


class Rendered(NamedTuple):
    """A conversation, or its beginning, as text, and (start, end) of the characters of each answer to learn."""

    text: str
    answers: list[Span]
    at_own_time: (
        bool  # whether every answer ends as it does at its own time, for which the template's blocks do not vouch
    )


class Own(NamedTuple):
    """An answer as it is rendered at its own time: as the last message."""

    text: str
    start: int
    otherwise: str  # what the generation prompt has in the place of the answer


class _Vanished(ValueError):
    """A part of a conversation is not in its rendering."""


class Place(NamedTuple):
    """Where an answer begins and ends in the rendering of the whole, counted from the ends of what it says."""

    before: int
    after: int
    stays: bool  # whether the whole holds the answer, and all before it, as at its own time
    otherwise: str  # what the generation prompt has there: another answer may begin with that


class Answers:
    """Finds the answers of conversations in the renderings of one tokenizer's template, and counts what is odd."""

    def __init__(self, tokenizer: Any, day: date | None = None) -> None:
        self.tokenizer, self.day = tokenizer, day
        self.odd: Counter[str] = Counter()
        self.prompt_end = ""  # of a generation prompt that answers do not begin with
        self.places: dict[tuple[Any, ...], Place] = {}
        self.special = tuple(special_names(tokenizer))
        self._dialect = DIALECTS[0]
        self._shows_tools = False

    def rows(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, last: bool) -> list[Rendered]:
        """The renderings that hold every answer to learn, or the last alone: one; or several, where the template writes
        earlier turns otherwise once later ones are there. Raises ValueError, with the template's own words where it
        refuses, and where a part of the conversation would vanish."""
        template = ChatTemplate(self.tokenizer, tools, self._dialect, self.day)
        self.odd["dated"] += template.writes_date
        if "developer" not in template.source:
            messages = [_as_system(message) for message in messages]
        learnt = [n for n, message in enumerate(messages) if message["role"] == "assistant" and message["learnt"]]
        if not learnt:
            return []
        whole = self._whole(template, messages)
        learnt = learnt[-1:] if last else learnt
        if template.marks_answers:
            rows = [Rendered(whole.text, _of_blocks(messages, whole, learnt), False)]
        else:
            rows = _Finder(self, template, messages, whole).rows(learnt)
        self._count_changed(rows, [messages[number] for number in learnt])
        return rows

    def _whole(self, template: ChatTemplate, messages: Sequence[Message]) -> "_Whole":
        """The rendering of all messages, plain and read from marks, in the first dialect in which all of it stands."""
        marks = Marks(messages)
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        dialects = DIALECTS_OF_CALLS if calls else DIALECTS
        problem: ValueError | None = None
        for dialect in sorted(dialects, key=lambda dialect: dialect != self._dialect):
            template.dialect = dialect
            try:
                whole = _Whole(*template.render_blocks(messages), marks.read(template.render(marks.messages)))
                _check_all_stands(messages, calls, whole)
            except ValueError as found:
                # the dialect that comes furthest says what is wrong
                if problem is None or (isinstance(found, _Vanished) and not isinstance(problem, _Vanished)):
                    problem = found
                continue
            self._dialect = dialect
            self._see_tools(template, messages, whole.text)
            return whole
        assert problem is not None
        raise problem

    def _see_tools(self, template: ChatTemplate, messages: Sequence[Message], text: str) -> None:
        if template.tools is not None and not self._shows_tools:
            self._shows_tools = template.render(messages, tools=False) != text
            self.odd["tools"] += not self._shows_tools

    def _count_changed(self, rows: Sequence[Rendered], answers: Sequence[Message]) -> None:
        """Count the answers that the template does not write as they are."""
        told = "\n".join(row.text[max(0, start - _HEAD) : end] for row in rows for start, end in row.answers)
        for message in answers:
            texts = [message["content"].strip(), message.get("reasoning_content", "").strip()]
            self.odd["changed"] += not all(_is_in(text, told) for text in texts)


class _Whole(NamedTuple):
    """A conversation's rendering, its `generation` blocks, and what its marked rendering tells."""

    text: str
    blocks: list[Span]
    found: Found

    @property
    def is_regular(self) -> bool:
        """Whether the marks tell where messages stand in the plain text."""
        return self.found.text == self.text and self.found.in_order


class _Finder:
    """The answers of one conversation: from the end of the generation prompt to the end of what the template writes for
    their turn."""

    def __init__(self, known: Answers, template: ChatTemplate, messages: Sequence[Message], whole: _Whole) -> None:
        self.known, self.template, self.messages, self.whole = known, template, messages, whole
        self.kinds = frozenset((message["role"], "tool_calls" in message) for message in messages)

    def rows(self, learnt: Sequence[int]) -> list[Rendered]:
        spans = []
        for number in learnt:
            span = self._in_whole(number)
            if span is None:
                return self._at_their_times(learnt)
            spans.append(span)
        return [Rendered(self.whole.text, spans, True)]

    def _in_whole(self, number: int) -> Span | None:
        """The span of an answer in the whole conversation; None where it is not there as it was at its own time."""
        key, extent = self._surroundings(number), self.whole.found.extents[number]
        if key is not None and extent is not None and (place := self.known.places.get(key)) is not None:
            start = extent[0] - place.before
            if not place.otherwise or self.whole.text[start] != place.otherwise[0]:
                return (start, extent[1] + place.after) if place.stays else None
        own = self._own(number)
        end = self._end_in(self.whole.text, own)
        if key is not None and extent is not None:
            before, after = extent[0] - own.start, (end or extent[1]) - extent[1]
            inside = 0 <= before <= len(key[0]) and 0 <= after <= len(key[1])
            if inside and len(key[0]) + len(key[1]) < _LONGEST and len(self.known.places) < _MOST:
                self.known.places[key] = Place(before, after, end is not None, own.otherwise)
        return None if end is None else (own.start, end)

    def _surroundings(self, number: int) -> tuple[Any, ...] | None:
        """What stands around an answer: where this is the same, the template has done the same.

        So each kind of turn is compared with its rendering at its own time once, and rendering stays linear in turns.
        None where marks do not tell what stands around it.
        """
        extents, text = self.whole.found.extents, self.whole.text
        extent = extents[number]
        if extent is None or not self.whole.is_regular or not self.whole.found.whole[number]:
            return None
        earlier = (other[1] for other in reversed(extents[:number]) if other is not None)
        later = (other[0] for other in extents[number + 1 :] if other is not None)
        before, after = text[next(earlier, 0) : extent[0]], text[extent[1] : next(later, len(text))]
        ends = number == len(self.messages) - 1
        said = self.messages[number]
        has = *(key for key, value in said.items() if value), *blanks(said["content"])
        return before, after, ends, has, self.kinds, bool(self.template.tools), self.template.source

    def _at_their_times(self, learnt: Sequence[int]) -> list[Rendered]:
        """A row for each answer as it is rendered as the last message; one row for those that it holds just so."""
        rows: list[Rendered] = []
        for number in reversed(learnt):
            own = self._own(number)
            for row in rows:
                if (end := self._end_in(row.text, own)) is not None:
                    row.answers.insert(0, (own.start, end))
                    break
            else:
                rows.append(Rendered(own.text, [(own.start, len(own.text))], True))
        self.known.odd["rewritten"] += len(learnt) > 1
        self.known.odd["rows"] += len(rows) if len(learnt) > 1 else 0
        return rows[::-1]

    def _own(self, number: int) -> Own:
        """An answer as the last message, and where it begins: behind the generation prompt, or where it differs from
        that (the prompts of reasoning models open a thought, which the answers of data may not have)."""
        prompt = self.template.render(self.messages[:number], prompt=True)
        text = self.template.render(self.messages[: number + 1])
        if text.startswith(prompt):
            return Own(text, len(prompt), "")
        start = _common(text, prompt)
        start -= text[:start].endswith("<")  # two tags begin alike
        content = self.messages[number]["content"].strip()
        if content and (place := text.rfind(content)) >= 0:
            start = min(start, place)
        contents = (message["content"].strip() for message in reversed(self.messages[:number]))
        asked = next(filter(None, contents), "")
        if not any(form in text[:start] for form in _forms(asked)):
            raise ValueError(
                "the tokenizer's chat template writes the turns before an answer otherwise once the answer is there: "
                "no part of the text is the answer's; take another tokenizer"
            )
        self.known.prompt_end = prompt[-24:]
        self.known.odd["prompt"] += 1
        return Own(text, start, prompt[start:])

    def _end_in(self, whole: str, own: Own) -> int | None:
        """Where an answer ends in a text that holds it and all before it; a mark that closes the conversation behind
        the mark that closes the turn, as Phi-3's, need not be there."""
        if whole.startswith(own.text):
            return len(own.text)
        text = own.text
        while closing := next(filter(text.endswith, self.known.special), ""):
            text = text[: -len(closing)]
            if whole.startswith(text) and text[own.start :].rstrip().endswith(self.known.special):
                return len(text)
        return None


def _of_blocks(messages: Sequence[Message], whole: _Whole, learnt: Sequence[int]) -> list[Span]:
    """The template's own `generation` blocks, of the answers that are learnt."""
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if list(learnt) == answers:
        return whole.blocks
    if whole.is_regular:  # a block belongs to the last message that begins before its end
        starts = [(extent[0], number) for number, extent in enumerate(whole.found.extents) if extent is not None]
        owners = [max(((at, n) for at, n in starts if at < block[1]), default=(0, -1))[1] for block in whole.blocks]
    elif len(whole.blocks) == len(answers):
        owners = answers
    else:
        raise ValueError(
            "the generation blocks of the tokenizer's chat template cannot be told apart by answer, and not every "
            "answer is to be learnt"
        )
    return [block for block, owner in zip(whole.blocks, owners, strict=True) if owner in learnt]


def _check_all_stands(messages: Sequence[Message], calls: Sequence[dict[str, Any]], whole: _Whole) -> None:
    marked = whole.found.text == whole.text  # else the template depends on what messages say
    for message, extent in zip(messages, whole.found.extents, strict=True):
        content = message["content"].strip()
        if message["role"] == "assistant" or not content or extent is not None:
            continue
        if marked or not _stands(content, whole.text):
            raise _Vanished(
                f"the tokenizer's chat template leaves out the {message['role']} message {content[:40]!r}: take one "
                "whose template renders it"
            )
    if not whole.found.calls or any(_as_python(call, whole.text) for call in calls):
        raise _Vanished("the tokenizer's chat template does not render tool calls: take one whose template does")


def _as_system(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _as_python(call: dict[str, Any], text: str) -> bool:
    """Whether a template wrote the arguments as Python shows a mapping, for it takes them as text."""
    arguments = call["function"]["arguments"]
    return bool(arguments) and str(arguments) in text


def _forms(content: str) -> list[str]:
    """A text as templates write it: as it is, or as JSON."""
    return [content, *(json.dumps(content, ensure_ascii=escaped)[1:-1] for escaped in (False, True))]


def _stands(content: str, text: str) -> bool:
    """Whether a message's text stands in a rendering: in a form of its own, or as the values of its JSON."""
    if any(form in text for form in _forms(content)) or _is_in(content, text):
        return True
    try:
        values = [value.strip() for value in texts_of(json.loads(content))]
    except (ValueError, RecursionError):
        return False
    return bool(values) and all(value in text for value in values)


def _is_in(content: str, text: str) -> bool:
    """Whether a text holds another, blanks aside."""
    return content in text or "".join(content.split()) in "".join(text.split())


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
