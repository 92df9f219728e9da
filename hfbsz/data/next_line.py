"""Multiple-choice examples from the embedded corpus: which line comes next in the source of Python's standard library?

They are from sections of the corpus that every recipe over it holds out, so no model has trained on them. The same
Python gives the same examples, without a network.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hfbsz.data.cache import cache_folder, keep
from hfbsz.data.prepare.documents import Documents, split_sections
from hfbsz.data.sources.sources import Opened, open_source
from hfbsz.recipe.fields import Data

SHARE = 0.01  # of the sections: the smallest share that a recipe can hold out (data.validation)
CONTEXT = 240  # characters of a context at most: about 80 tokens
CHOICES = 4
_PER_SECTION = 4  # examples of a section at most
_LENGTHS = range(12, 80)  # characters of a line that is asked for, without its indentation
_LINES_BEFORE = 3
_VERSION = 1  # of the examples, for the cache


@dataclass(frozen=True)
class Example:
    """A question: which of `choices` (lines, each after a line break) follows `context`?"""

    context: str
    choices: tuple[str, ...]
    answer: int  # index of the right choice


@dataclass(frozen=True)
class _Line:
    """A line that can be asked for."""

    context: str
    text: str
    section: int

    @property
    def indentation(self) -> int:
        return len(self.text) - len(self.text.lstrip())


def examples_file() -> Path:
    """The examples as JSON lines, in the cache. Raises UserError where the cache cannot be written."""
    source = open_source(Data())
    key = hashlib.sha256(json.dumps([_VERSION, source.stamp()]).encode()).hexdigest()[:16]
    entry = cache_folder() / f"nextline-{key}"

    def write(folder: Path) -> None:
        held = split_sections(Documents(Opened(source, Data())), SHARE)
        lines = [json.dumps(asdict(one)) + "\n" for one in examples(part.text for part, is_held in held if is_held)]
        (folder / "examples.jsonl").write_text("".join(lines), encoding="utf-8")

    keep(entry, write)
    return entry / "examples.jsonl"


def examples(sections: Iterator[str]) -> Iterator[Example]:
    """The examples of sections of source code: up to four of each, with lines of other sections as wrong choices."""
    lines = [line for number, text in enumerate(sections) for line in _lines(text, number)]
    by_indentation: dict[int, list[_Line]] = {}
    for line in lines:
        by_indentation.setdefault(line.indentation, []).append(line)
    for line in lines:
        order = sorted(by_indentation[line.indentation], key=lambda other: _hash(line.context, other.text))
        wrong = [other.text for other in order if other.section != line.section and _alike(line.text, other.text)]
        wrong = list(dict.fromkeys(wrong))[: CHOICES - 1]
        if len(wrong) == CHOICES - 1:
            answer = int(_hash(line.context, line.text)[:8], 16) % CHOICES
            choices = [*wrong[:answer], line.text, *wrong[answer:]]
            yield Example(line.context, tuple(f"\n{choice}" for choice in choices), answer)


def _lines(text: str, section: int) -> list[_Line]:
    """Lines of a section that can be asked for, chosen by a hash."""
    rows = text.splitlines()
    found = []
    for index in range(_LINES_BEFORE, len(rows)):
        if len(rows[index].strip()) in _LENGTHS and "\t" not in rows[index]:
            start = index - 1
            while start and sum(len(row) + 1 for row in rows[start - 1 : index]) <= CONTEXT:
                start -= 1
            context = "\n".join(rows[start:index])[-CONTEXT:]
            if context.strip():
                found.append(_Line(context, rows[index].rstrip(), section))
    return sorted(found, key=lambda line: _hash(line.context, line.text))[:_PER_SECTION]


def _alike(right: str, other: str) -> bool:
    """Whether a line can be a wrong choice: another text, of half to twice the length."""
    first, second = right.strip(), other.strip()
    return first != second and len(first) <= 2 * len(second) and len(second) <= 2 * len(first)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
