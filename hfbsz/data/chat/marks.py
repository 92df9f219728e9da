"""Marks: characters put around the texts of messages, so that a rendering tells where each of them came to stand."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.data.chat.conversations import Message

_PRIVATE = re.compile("[\U000f0000-\U0010fffd]")  # the planes that Unicode leaves to private use


@dataclass(frozen=True)
class Found:
    """What a marked rendering tells."""

    text: str  # without the marks
    extents: list[tuple[int, int] | None]  # of each message: where its texts stand, from the first to the last
    whole: list[bool]  # of each message: whether all of its texts stand there, once each
    calls: bool  # whether the name of every tool call stands there

    @property
    def in_order(self) -> bool:
        """Whether every message stands behind the one before it."""
        borders = [border for extent in self.extents if extent is not None for border in extent]
        return borders == sorted(borders)


class Marks:
    """One mark for each message, and one for the name of each call."""

    def __init__(self, messages: Sequence[Message]) -> None:
        free = spare(texts_of(messages))
        self.messages: list[Message] = []
        self.of_message = {next(free): number for number in range(len(messages))}
        self.of_call: set[str] = set()
        self._counts = [0] * len(messages)
        for (mark, number), message in zip(self.of_message.items(), messages, strict=True):
            put = self._counted(mark, number)
            marked: dict[str, Any] = dict(message)
            for key in ("content", "reasoning_content"):
                if marked.get(key):
                    marked[key] = put(marked[key])
            if "tool_calls" in message:
                marked["tool_calls"] = [self._call(call, next(free), put) for call in message["tool_calls"]]
            self.messages.append(marked)  # type: ignore[arg-type]

    def _call(self, call: Mapping[str, Any], mark: str, put: Callable[[str], str]) -> dict[str, Any]:
        self.of_call.add(mark)
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        function = {**call["function"], "name": put(_around(mark)(name)), "arguments": mapped(arguments, put)}
        return {**call, "function": function}

    def _counted(self, mark: str, number: int) -> Callable[[str], str]:
        around = _around(mark)

        def put(text: str) -> str:
            self._counts[number] += 2 * bool(text.strip())
            return around(text)

        return put

    def read(self, rendered: str) -> Found:
        places: list[list[int]] = [[] for _ in self.of_message]
        parts, seen, start, length = [], set(), 0, 0
        for match in _PRIVATE.finditer(rendered):
            mark, place = match.group(), match.start()
            number = self.of_message.get(mark)
            if number is None and mark not in self.of_call:
                continue
            parts.append(rendered[start:place])
            length += place - start
            start = place + 1
            seen.add(mark)
            if number is not None:
                places[number].append(length)
        extents = [(found[0], found[-1]) if found else None for found in places]
        whole = [len(found) == count for found, count in zip(places, self._counts, strict=True)]
        return Found("".join([*parts, rendered[start:]]), extents, whole, self.of_call <= seen)


def spare(texts: Iterable[str]) -> Iterator[str]:
    """Characters of private use that stand in none of the texts."""
    used = {character for text in texts if not text.isascii() for character in _PRIVATE.findall(text)}
    return (character for code in range(0xF0000, 0x10FFFE) if (character := chr(code)) not in used)


def texts_of(value: Any) -> list[str]:
    """All texts in a value, in no order."""
    texts, left = [], [value]
    while left:
        entry = left.pop()
        if isinstance(entry, str):
            texts.append(entry)
        elif isinstance(entry, dict):
            left += entry.values()
        elif isinstance(entry, list | tuple):
            left += entry
    return texts


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A value with its texts changed; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(entry, change) for entry in value]
    return value


def blanks(text: str) -> tuple[str, str]:
    """The blanks that a text begins and ends with."""
    bare = text.strip()
    start = len(text) - len(text.lstrip())
    return text[:start], text[start + len(bare) :]


def _around(mark: str) -> Callable[[str], str]:
    """Marks stand inside of a text's blanks, for templates strip these."""

    def put(text: str) -> str:
        bare = text.strip()
        if not bare:
            return text
        before, after = blanks(text)
        return f"{before}{mark}{bare}{mark}{after}"

    return put
