"""Text files: their documents, read in pieces."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import IO

from hfbsz.data.sources.records import Record, Tally
from hfbsz.data.sources.texts import unescape
from hfbsz.errors import UserError

_CHUNK = 2**18  # characters that are read at once
_MARKERS = ("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|im_end|>", "</s>", "<eos>", "[EOS]")
_MANY = 20  # markers in a file that are told of
_TITLE = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)  # of WikiText


def read_text_file(
    path: object, name: str, column: str, open_text: Callable[[], IO[str]], separator: str | None, tally: Tally
) -> Iterator[Record]:
    """The documents of a text file: the file itself, or what `separator` (data.separator) makes of it.

    A document comes in records of one name, of which all but the last say `more`; it is called `name`, or `name:1`,
    `name:2`, … Raises UserError for a file that holds NUL bytes, and for a separator that is none.
    """
    with closing(open_text()) as file:
        chunks = _checked(path, iter(lambda: file.read(_CHUNK), ""))
        if separator is None:
            for chunk in _counted(name, chunks, tally):
                yield Record(name, {column: chunk}, True)
            yield Record(name, {column: ""})
            return
        number = 1
        blank: str | None = ""  # the white space that a document begins with: alone it is none
        for text, ends in _parts(chunks, separator):
            if blank is not None:
                text = blank + text
                blank = None if text.strip() else "" if ends else text
            if blank is None:
                yield Record(f"{name}:{number}", {column: text}, not ends)
                if ends:
                    number, blank = number + 1, ""


def _checked(path: object, chunks: Iterable[str]) -> Iterator[str]:
    for chunk in chunks:
        if "\0" in chunk:
            raise UserError(f"{path}: not text (it holds NUL bytes): leave it out")
        yield chunk


def _counted(name: str, chunks: Iterable[str], tally: Tally) -> Iterator[str]:
    """The chunks; markers of documents that stand in them many times are told of."""
    counts = dict.fromkeys(_MARKERS, 0)
    titles = 0
    for chunk in chunks:
        for marker in _MARKERS:
            counts[marker] += chunk.count(marker)
        titles += len(_TITLE.findall(chunk)) if " = " in chunk else 0
        yield chunk
    marker = max(counts, key=lambda text: counts[text])
    if counts[marker] >= _MANY:
        tally.note(f"{name} holds {marker!r} {counts[marker]:,} times: data.separator='{marker}' makes documents of it")
    elif titles >= _MANY:
        tally.note(
            f"{name} holds {titles:,} lines like ' = Title = ': data.separator='/^ = [^=]+ = $/' begins documents"
        )


def _parts(chunks: Iterator[str], separator: str) -> Iterator[tuple[str, bool]]:
    """(text, whether a document ends after it): the documents, one after the other, in as many parts as they take."""
    if separator == "lines":
        return ((line.rstrip("\r\n"), True) for line in _lines(chunks))
    if separator == "blank":
        return _paragraphs(chunks)
    if len(separator) > 2 and separator.startswith("/") and separator.endswith("/"):
        return _begun(chunks, separator[1:-1])
    return _split(chunks, unescape(separator))


def _paragraphs(chunks: Iterator[str]) -> Iterator[tuple[str, bool]]:
    for line in _lines(chunks):
        yield (line, False) if line.strip() else ("", True)
    yield "", True


def _begun(chunks: Iterator[str], pattern: str) -> Iterator[tuple[str, bool]]:
    try:
        begins = re.compile(pattern)
    except re.error as problem:
        raise UserError(f"data.separator: {pattern!r} is no regular expression: {problem}") from None
    for line in _lines(chunks):
        if begins.search(line.rstrip("\r\n")):
            yield "", True
        yield line, False
    yield "", True


def _split(chunks: Iterator[str], separator: str) -> Iterator[tuple[str, bool]]:
    """(text, whether a document ends after it), the separator taken out."""
    if not separator:
        raise UserError("data.separator: it is empty: write a text, blank, lines or /pattern/")
    left = ""
    for chunk in chunks:
        *documents, left = (left + chunk).split(separator)
        yield from ((document, True) for document in documents)
        keep = len(left) - len(separator) + 1  # the separator may go on in the next chunk
        if keep > _CHUNK:
            yield left[:keep], False
            left = left[keep:]
    yield left, True


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    left = ""
    for chunk in chunks:
        *lines, left = (left + chunk).split("\n")
        yield from (f"{line}\n" for line in lines)
    if left:
        yield left
