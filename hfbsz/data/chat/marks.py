"""Marks: characters put around the texts of messages, to find the position of each message in a rendering."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.data.chat.conversations import Message

_PRIVATE = re.compile("[\U000f0000-\U0010fffd]")  # the private-use planes of Unicode


@dataclass(frozen=True)
class MarkedText:
    """A marked rendering, and what its marks tell."""

    text: str  # without the marks
    extents: list[tuple[int, int] | None]  # of each message: start of its first text, end of its last; None if absent
    complete: list[bool]  # of each message: whether each of its texts occurs exactly once
    has_calls: bool  # whether the name of every tool call occurs

    @property
    def in_order(self) -> bool:
        """Whether the messages occur in order, without overlap."""
        ends = [end for extent in self.extents if extent is not None for end in extent]
        return ends == sorted(ends)


class Marks:
    """Messages with marks: one character for each message, and one for the name of each call."""

    def __init__(self, messages: Sequence[Message]) -> None:
        free = spare(texts_of(messages))
        self.messages: list[Message] = []
        self.of_message = {next(free): number for number in range(len(messages))}
        self.of_call: set[str] = set()
        self._counts = [0] * len(messages)
        for (mark, number), message in zip(self.of_message.items(), messages, strict=True):
            add_mark = self._counting(mark, number)
            marked: dict[str, Any] = dict(message)
            for key in ("content", "reasoning_content"):
                if marked.get(key):
                    marked[key] = add_mark(marked[key])
            if "tool_calls" in message:
                marked["tool_calls"] = [self._call(call, next(free), add_mark) for call in message["tool_calls"]]
            self.messages.append(marked)  # type: ignore[arg-type]

    def _call(self, call: Mapping[str, Any], mark: str, add_mark: Callable[[str], str]) -> dict[str, Any]:
        self.of_call.add(mark)
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        function = {**call["function"], "name": add_mark(_around(mark)(name)), "arguments": mapped(arguments, add_mark)}
        return {**call, "function": function}

    def _counting(self, mark: str, number: int) -> Callable[[str], str]:
        """A function that puts marks around a text, and counts them for the message `number`."""
        around = _around(mark)

        def add_mark(text: str) -> str:
            self._counts[number] += 2 * bool(text.strip())
            return around(text)

        return add_mark

    def read(self, rendered: str) -> MarkedText:
        """Find the marks in the rendering of `self.messages`, and remove them."""
        positions: list[list[int]] = [[] for _ in self.of_message]
        parts, seen, start, length = [], set(), 0, 0
        for match in _PRIVATE.finditer(rendered):
            mark, position = match.group(), match.start()
            number = self.of_message.get(mark)
            if number is None and mark not in self.of_call:
                continue
            parts.append(rendered[start:position])
            length += position - start
            start = position + 1
            seen.add(mark)
            if number is not None:
                positions[number].append(length)
        extents = [(ends[0], ends[-1]) if ends else None for ends in positions]
        complete = [len(ends) == count for ends, count in zip(positions, self._counts, strict=True)]
        return MarkedText("".join([*parts, rendered[start:]]), extents, complete, self.of_call <= seen)


def spare(texts: Iterable[str]) -> Iterator[str]:
    """Private-use characters that occur in none of the texts."""
    used = {character for text in texts if not text.isascii() for character in _PRIVATE.findall(text)}
    return (character for code in range(0xF0000, 0x10FFFE) if (character := chr(code)) not in used)


def texts_of(value: Any) -> list[str]:
    """All strings in a nested value, in no particular order."""
    texts, remaining = [], [value]
    while remaining:
        entry = remaining.pop()
        if isinstance(entry, str):
            texts.append(entry)
        elif isinstance(entry, dict):
            remaining += entry.values()
        elif isinstance(entry, list | tuple):
            remaining += entry
    return texts


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with `change` applied to its strings, except keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(entry, change) for entry in value]
    return value


def blanks(text: str) -> tuple[str, str]:
    """Leading and trailing white space of a text."""
    start = len(text) - len(text.lstrip())
    return text[:start], text[start + len(text.strip()) :]


def _around(mark: str) -> Callable[[str], str]:
    """A function that puts a mark at both ends of a text, inside of its outer white space, which templates strip."""

    def add_marks(text: str) -> str:
        bare = text.strip()
        if not bare:
            return text
        before, after = blanks(text)
        return f"{before}{mark}{bare}{mark}{after}"

    return add_marks
