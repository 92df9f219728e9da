"""Text files: their documents, read in pieces."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import IO

from hfbsz.data.sources.open_file import ReadOptions
from hfbsz.data.sources.records import Record, Tally
from hfbsz.data.sources.texts import unescape
from hfbsz.errors import UserError

_CHUNK = 2**18  # characters per read
_MARKERS = ("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|im_end|>", "</s>", "<eos>", "[EOS]")
_MIN_MARKERS = 20  # occurrences in a file from which a note suggests a separator
_WIKITEXT_TITLE = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)


def read_text_file(
    path: object, name: str, column: str, open_text: Callable[[], IO[str]], options: ReadOptions, tally: Tally
) -> Iterator[Record]:
    """The documents of a text file: the complete file, or the parts into which `separator` of the options splits it.

    A document may span several records of the same name, of which all but the last have `more` set. The name is `name`
    without a separator, else `name:1`, `name:2`, … Raises UserError for a file that holds NUL bytes, and for an invalid
    separator.
    """
    with closing(open_text()) as file:
        chunks = _checked(path, iter(lambda: file.read(_CHUNK), ""))
        if options.separator is None:
            for chunk in _counted(name, chunks, options.part, tally):
                yield Record(name, {column: chunk}, True)
            yield Record(name, {column: ""})
            return
        number = 1
        leading: str | None = ""  # white space at the start of a document, which is no document by itself
        for text, ends in _parts(chunks, options.separator, f"{options.part}.separator"):
            if leading is not None:
                text = leading + text
                leading = None if text.strip() else "" if ends else text
            if leading is None:
                yield Record(f"{name}:{number}", {column: text}, not ends)
                if ends:
                    number, leading = number + 1, ""


def _checked(path: object, chunks: Iterable[str]) -> Iterator[str]:
    for chunk in chunks:
        if "\0" in chunk:
            raise UserError(f"{path}: not text (it holds NUL bytes): leave it out")
        yield chunk


def _counted(name: str, chunks: Iterable[str], part: str, tally: Tally) -> Iterator[str]:
    """The chunks; a note suggests a separator if they hold many document markers or titles."""
    counts = dict.fromkeys(_MARKERS, 0)
    titles = 0
    for chunk in chunks:
        for marker in _MARKERS:
            counts[marker] += chunk.count(marker)
        titles += len(_WIKITEXT_TITLE.findall(chunk)) if " = " in chunk else 0
        yield chunk
    marker = max(counts, key=lambda text: counts[text])
    if counts[marker] >= _MIN_MARKERS:
        tally.note(
            f"{name} holds {marker!r} {counts[marker]:,} times: {part}.separator='{marker}' splits it into documents"
        )
    elif titles >= _MIN_MARKERS:
        tally.note(
            f"{name} holds {titles:,} lines like ' = Title = ': {part}.separator='/^ = [^=]+ = $/' starts a document "
            "at each"
        )


def _parts(chunks: Iterator[str], separator: str, field: str) -> Iterator[tuple[str, bool]]:
    """(text, whether a document ends after it) for all documents in order, each in one or more parts."""
    if separator == "lines":
        return ((line.rstrip("\r\n"), True) for line in _lines(chunks))
    if separator == "blank":
        return _paragraphs(chunks)
    if len(separator) > 2 and separator.startswith("/") and separator.endswith("/"):
        return _split_before_lines(chunks, separator[1:-1], field)
    return _split(chunks, unescape(separator), field)


def _paragraphs(chunks: Iterator[str]) -> Iterator[tuple[str, bool]]:
    for line in _lines(chunks):
        yield (line, False) if line.strip() else ("", True)
    yield "", True


def _split_before_lines(chunks: Iterator[str], pattern: str, field: str) -> Iterator[tuple[str, bool]]:
    """A document starts at each line in which the regular expression matches."""
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        raise UserError(f"{field}: {pattern!r} is not a valid regular expression: {problem}") from None
    for line in _lines(chunks):
        if compiled.search(line.rstrip("\r\n")):
            yield "", True
        yield line, False
    yield "", True


def _split(chunks: Iterator[str], separator: str, field: str) -> Iterator[tuple[str, bool]]:
    """The documents between occurrences of a separator, without the separator."""
    if not separator:
        raise UserError(f"{field}: it is empty: write a text, blank, lines or /pattern/")
    rest = ""
    for chunk in chunks:
        *documents, rest = (rest + chunk).split(separator)
        yield from ((document, True) for document in documents)
        complete = len(rest) - len(separator) + 1  # the last characters may be the start of a separator
        if complete > _CHUNK:
            yield rest[:complete], False
            rest = rest[complete:]
    yield rest, True


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest
