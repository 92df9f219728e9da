"""Examples of fine-tuning tasks, read from a source's records."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hfbsz.data.build import Progress
from hfbsz.data.conversations import conversation
from hfbsz.data.formats import Record
from hfbsz.data.sources import Opened
from hfbsz.errors import UserError
from hfbsz.recipe import Data


@dataclass(frozen=True)
class Example:
    """A row before it is tokenised: a text with a label, or a conversation."""

    name: str  # its record's, or its id
    group: str  # what is held out together
    text: str  # of a conversation, what its turns say: for duplicates
    label: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()


class Reader:
    """Reads the examples of one source, and notes what it leaves out; raises UserError for a column without a name."""

    def __init__(self, task: str, opened: Opened) -> None:
        self.task, self.source, self.data, self.part = task, opened.source, opened.data, opened.part
        self.notes: list[str] = []
        self.columns = opened.columns(*_needed(task, opened.data, opened.part), "group", "id")
        self.columns |= {f"{opened.part}.skip.{column}": column for column in opened.data.skip}

    def examples(self, progress: Progress) -> Iterator[Example]:
        """The examples of the source; counts what is left out."""
        left: Counter[str] = Counter()
        names: set[str] = set()
        where = self.source.where
        for number, record in enumerate(self.source.records(self.columns)):
            if number % 4096 == 0:
                progress("reading", number, 0)
            reason = self._skipped(record)
            example = self._example(record) if reason is None else None
            if example is None:
                left[reason or self._nothing()] += 1
                continue
            if self.data.id is not None and example.name in names:
                raise UserError(f"{where}: two rows have the id {example.name!r} ({self.part}.id={self.data.id})")
            names.add(example.name)
            yield example
        self.notes += [f"{count:,} rows left out: {reason} ({where})" for reason, count in left.items()]
        if not names:
            raise UserError(f"{where} holds no row to use" + (f": {', '.join(left)}" if left else ""))

    def _nothing(self) -> str:
        return "no text or no label" if self.task == "classification" else "no answer to learn"

    def _skipped(self, record: Record) -> str | None:
        for column, values in self.data.skip.items():
            value = str(record.columns[column])
            if value in ([values] if isinstance(values, str) else values):
                return f"{column} is {value!r}"
        return None

    def _example(self, record: Record) -> Example | None:
        """None where there is nothing to learn."""
        data, columns = self.data, record.columns
        name = str(columns[data.id]) if data.id is not None else record.name
        group = str(columns[data.group]) if data.group is not None else name
        try:
            if self.task == "classification":
                text, label = columns[data.text] or "", columns[str(data.label)]
                if not isinstance(text, str):
                    raise ValueError(f"a {type(text).__name__}, not text, in column {data.text!r}")
                if not text.strip() or label is None or not str(label).strip():
                    return None
                return Example(name, group, text, str(label).strip())
            if data.messages is not None:
                messages = conversation(columns[data.messages])
            else:
                pair = (columns[str(data.prompt)], columns[str(data.response)])
                messages = conversation([text or "" for text in pair])
            if not any(message["role"] == "assistant" for message in messages):
                return None
            said = "\n".join(message["content"] for message in messages)
            return Example(name, group, said, messages=tuple(messages))
        except ValueError as problem:
            raise UserError(f"{self.source.where}: {record.name}: {problem}") from None


def _needed(task: str, data: Data, part: str) -> tuple[str, ...]:
    """The fields whose columns hold an example of the task."""
    if task == "classification":
        if data.label is None:
            raise UserError(f"{part}.label: name the column that holds the label")
        return "text", "label"
    if data.messages is not None:
        return ("messages",)
    if data.prompt is not None and data.response is not None:
        return "prompt", "response"
    raise UserError(f"{part}.messages: name the column of a conversation, or {part}.prompt and {part}.response")
