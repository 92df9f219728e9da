"""Reads examples of fine-tuning tasks from the records of a source."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hfbsz.data.chat.conversations import Message, conversation, from_pair, has_answer, transcript
from hfbsz.data.chat.tool_calls import parse_tools
from hfbsz.data.prepare.corpus import Progress
from hfbsz.data.prepare.labels import SkippedRow, class_of
from hfbsz.data.prepare.pairs import pair_of
from hfbsz.data.sources.columns import columns_of, template_of
from hfbsz.data.sources.records import Record, Tally
from hfbsz.data.sources.sources import Opened
from hfbsz.data.sources.texts import as_text, is_missing
from hfbsz.errors import UserError
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.fields import Data
from hfbsz.recipe.tasks import RowKind

_TOOLS = "tools"  # the column of tools if the recipe names none


@dataclass(frozen=True)
class Example:
    """A row before it is tokenized: a text with a label, a conversation, or a pair of conversations."""

    name: str  # that of its record, or its id
    group: str  # examples of one group are held out together
    text: str  # of a conversation its transcript, to find duplicates
    label: str | None = None
    messages: tuple[Message, ...] = ()  # of a pair: the prompt and the chosen answer
    rejected: tuple[Message, ...] = ()  # of a pair: the prompt and the rejected answer
    tools: tuple[dict[str, Any], ...] | None = None


class Reader:
    """Reads the examples of one source, and notes what it leaves out. Raises UserError if the recipe does not name a
    column that the task needs."""

    def __init__(self, kind: RowKind, opened: Opened) -> None:
        self.kind, self.source, self.data, self.part = kind, opened.source, opened.data, opened.part
        self.notes: list[str] = []
        self.tally = Tally()
        self.template = template_of(opened)
        self.tools = (self.data.tools or _TOOLS) if kind in (RowKind.CONVERSATION, RowKind.PREFERENCE) else None
        fields = _needed_fields(kind, opened.data, opened.part)
        optional = [self.tools] if self.tools is not None and self.data.tools is None else []
        self.columns = columns_of(opened, (*fields, "tools", "group", "id"), self.template, optional)

    def examples(self, progress: Progress) -> Iterator[Example]:
        """The examples of the source. At the end, `notes` has the number of rows that were left out, by reason. Raises
        UserError for a row that is invalid, and if there is no row to use."""
        left_out: Counter[str] = Counter()
        names: set[str] = set()
        where = self.source.where
        self.tally = Tally()
        for number, record in enumerate(self.source.records(self.columns, self.tally)):
            if number % 4096 == 0:
                progress("reading", number, 0)
            reason = self._skip_reason(record)
            example: Example | None = None
            if reason is None:
                try:
                    example = self._example(record)
                except SkippedRow as problem:
                    reason = str(problem)
            if example is None:
                left_out[reason or "no answer to learn"] += 1
                continue
            if self.data.id is not None and example.name in names:
                raise UserError(f"{where}: two rows have the id {example.name!r} ({self.part}.id={self.data.id})")
            names.add(example.name)
            yield example
        left_out += self.tally.left_out
        self.notes += self.tally.notes
        self.notes += [f"{counted(count, 'row')} left out: {reason} ({where})" for reason, count in left_out.items()]
        if not names:
            raise UserError(f"{where} holds no row to use" + (f": {', '.join(left_out)}" if left_out else ""))

    def _skip_reason(self, record: Record) -> str | None:
        """Why data.skip leaves a row out; None if it does not."""
        for column, values in self.data.skip.items():
            value = record.columns.get(column)
            text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
            if text in ([values] if isinstance(values, str) else values):
                return f"{column} is {text!r}"
        return None

    def _example(self, record: Record) -> Example | None:
        """The example of a record; None if it has no answer to learn. Raises SkippedRow if it has no text or label."""
        data, columns = self.data, record.columns
        name = str(columns[data.id]) if data.id is not None else record.name
        group = self._group(columns.get(data.group)) if data.group is not None else None
        group = name if group is None else group
        try:
            if self.kind is RowKind.LABEL:
                text, label = self._text(columns, data.text), class_of(columns.get(str(data.label)))
                if text is None:
                    raise SkippedRow("no text")
                return Example(name, group, text, label)
            messages, rejected = (
                self._pair(columns) if self.kind is RowKind.PREFERENCE else (self._messages(columns), [])
            )
            if not has_answer(messages):
                return None
            tools = parse_tools(columns.get(str(self.tools)))
            return Example(
                name,
                group,
                transcript([*messages, *rejected]),
                messages=tuple(messages),
                rejected=tuple(rejected),
                tools=None if tools is None else tuple(tools),
            )
        except ValueError as problem:
            raise UserError(f"{self.source.where}: {record.name}: {problem}") from None

    def _group(self, value: Any) -> str | None:
        """The group that a value names; None for null and empty text: such a row is a group of its own."""
        return None if is_missing(value) or not str(value).strip() else str(value)

    def _text(self, columns: Any, column: str) -> str | None:
        """The text of a row, from the template or else the column; None if it is blank."""
        try:
            text = self.template.fill(columns) if self.template is not None else as_text(columns.get(column))
        except ValueError as problem:
            raise ValueError(f"{problem}, in column {column!r}" if self.template is None else str(problem)) from None
        return text if text and text.strip() else None

    def _messages(self, columns: Any) -> list[Message]:
        data = self.data
        if data.messages is not None:
            return conversation(columns.get(data.messages))
        prompt, system = self._prompt(columns)
        return from_pair(prompt, columns.get(str(data.response)), system)

    def _pair(self, columns: Any) -> tuple[list[Message], list[Message]]:
        """The two conversations of a preference pair. Raises SkippedRow for one of no use."""
        sides = [columns.get(str(name)) for name in (self.data.chosen, self.data.rejected)]
        has_prompt = self.template is not None or self.data.prompt is not None
        return pair_of(*sides, *(self._prompt(columns) if has_prompt else ()))

    def _prompt(self, columns: Any) -> tuple[Any, Any]:
        """The prompt of a row, and its system message."""
        prompt = self.template.fill(columns) if self.template is not None else columns.get(str(self.data.prompt))
        return prompt, columns.get(self.data.system) if self.data.system is not None else None


def _needed_fields(kind: RowKind, data: Data, part: str) -> tuple[str, ...]:
    """The fields that name the columns of a task's examples. Raises UserError if a needed one is not set."""
    if kind is RowKind.LABEL:
        if data.label is None:
            raise UserError(f"{part}.label: name the column that holds the label")
        return ("label",) if data.template is not None else ("text", "label")
    if kind is RowKind.PREFERENCE:
        if data.chosen is None or data.rejected is None:
            missing = "chosen" if data.chosen is None else "rejected"
            raise UserError(
                f"{part}.{missing}: name the columns of both answers, {part}.chosen and {part}.rejected, and of their "
                f"prompt, {part}.prompt, unless both hold whole conversations"
            )
        if data.system is not None and data.prompt is None and data.template is None:
            raise UserError(f"{part}.system: it belongs to {part}.prompt: conversations hold their system messages")
        return (
            ("chosen", "rejected", "system")
            if data.template is not None
            else ("prompt", "chosen", "rejected", "system")
        )
    if data.messages is not None:
        if data.template is not None or data.system is not None:
            raise UserError(
                f"{part}.messages: conversations contain questions and system messages already: leave out "
                f"{part}.{'template' if data.template is not None else 'system'}, or {part}.messages=null"
            )
        return ("messages",)
    if data.response is not None and (data.prompt is not None or data.template is not None):
        return ("response", "system") if data.template is not None else ("prompt", "response", "system")
    raise UserError(
        f"{part}.messages: name the column of a conversation, or {part}.prompt (or {part}.template) and {part}.response"
    )
