"""Documents: the texts of a source, and their split into training and held-out documents."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hfbsz.data.prepare.pieces import pieces
from hfbsz.data.sources.columns import columns_of, template_of
from hfbsz.data.sources.records import Record, Tally
from hfbsz.data.sources.sources import Opened
from hfbsz.errors import UserError

FEW_DOCUMENTS = 20  # with fewer documents, validation is the end of the corpus
SECTION = 800  # characters of a section at least, and half of what it has at most
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Document:
    """A document, or a piece of a long one."""

    name: str  # that of its record
    text: str
    more: bool = False  # whether the next one continues this document
    before: str = ""  # the end of the preceding piece


class Documents:
    """The documents of a source: its text column, or a template filled with its columns. Every pass counts the
    documents (`seen`) and those without text (`empty`) from 0. Raises UserError for a value that is not text."""

    def __init__(self, opened: Opened) -> None:
        self.source, self.part = opened.source, opened.part
        self.template = template_of(opened)
        self.columns = columns_of(opened, () if self.template is not None else ("text",), self.template)
        self.seen = self.empty = 0
        self.tally = Tally()
        self._few: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Document]:
        self.seen = self.empty = 0
        self.tally = Tally()
        records = iter(self.source.records(self.columns, self.tally))
        for record in records:
            self.seen += 1
            for piece in pieces(self._chunks(record, records)):
                if not (piece.more or piece.before or piece.text.strip()):
                    self.empty += 1
                else:
                    yield Document(record.name, piece.text, piece.more, piece.before)

    def _chunks(self, record: Record, following: Iterator[Record]) -> Iterator[str]:
        """The text of a record, and of the following records that continue the document."""
        yield self._text(record)
        while record.more:
            record = next(following)
            yield self._text(record)

    def _text(self, record: Record) -> str:
        if self.template is not None:
            try:
                return self.template.fill(record.columns)
            except ValueError as problem:
                raise UserError(f"{self.source.where}: {record.name}: {problem} ({self.part}.template)") from None
        ((field, column),) = self.columns.needed.items()
        text = record.columns.get(column)
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{self.source.where}: {record.name} holds a {type(text).__name__}, not text, in column {column!r} "
                f"({field})"
            )
        return (text or "").encode("utf-8", "replace").decode()  # unpaired surrogates become `?`

    def few(self, max_characters: int | None = None) -> int | None:
        """Total characters of all documents if there are fewer than FEW_DOCUMENTS, else None. The first call reads the
        source up to that number of documents, or up to `max_characters`."""
        if self._few is None:
            count, characters, continued = 0, 0, False
            for document in self:
                count += not continued
                if count == FEW_DOCUMENTS or (max_characters is not None and characters >= max_characters):
                    break
                characters += len(document.text)
                continued = document.more
            self._few = count, characters
        return self._few[1] if self.is_few else None

    @property
    def is_few(self) -> bool:
        """Whether `few` was called and counted fewer than FEW_DOCUMENTS."""
        return self._few is not None and self._few[0] < FEW_DOCUMENTS

    def notes(self) -> list[str]:
        """Notes on the last pass: how files were read, and how many documents were left out."""
        if not self.empty:
            return list(self.tally.notes)
        left_out = f"{self.empty:,} of {self.seen:,} documents hold no text and were left out ({self.source.where})"
        return [*self.tally.notes, left_out]


def split_documents(
    documents: Documents, share: float, max_characters: int | None = None
) -> Iterator[tuple[Document, bool]]:
    """Pairs of a document and whether it is held out: by a hash of its text, so that equal texts are in one part; or,
    with few documents, the end of the text, of which about `max_characters` are then read."""
    if share and (characters := documents.few(max_characters)) is not None:
        return split_tail(documents, characters, share)
    return _split_by_text(documents, share)


def _split_by_text(documents: Iterable[Document], share: float) -> Iterator[tuple[Document, bool]]:
    held = more = False
    for document in documents:
        if not more:  # the first piece decides for all of a document
            held = is_held_out(document.text.strip(), share)
        more = document.more
        yield document, held


def split_sections(documents: Iterable[Document], share: float) -> Iterator[tuple[Document, bool]]:
    """Pairs of a document and whether it is held out, where sections of documents are held out, each by a hash of its
    text: equal sections are in one part. The text between two of them is one training document.

    Both parts then have text of the same documents: their losses can be compared, also where few documents differ much.
    """
    for document in documents:
        text = ""
        for number, section in enumerate(sections(document.text), 1):
            if not is_held_out(section.strip(), share):
                text += section
                continue
            if text.strip():
                yield Document(document.name, text), False
            if section.strip():
                yield Document(f"{document.name} (section {number})", section), True
            text = ""
        if text.strip():
            yield Document(document.name, text), False


def sections(text: str) -> Iterator[str]:
    """The text in sections of SECTION to 2·SECTION characters that end after a blank line, if there is none after a
    line, and else anywhere; the last may be shorter."""
    start = 0
    while len(text) - start > 2 * SECTION:
        first, last = start + SECTION, start + 2 * SECTION
        blank = _BLANK_LINE.search(text, first - 1, last)
        end = blank.end() if blank else text.rfind("\n", first, last) + 1 or last
        yield text[start:end]
        start = end
    yield text[start:]


def is_held_out(text: str, share: float) -> bool:
    """Whether a text or a group belongs to validation, by a hash: the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < share


def split_tail(documents: Iterable[Document], characters: int, share: float) -> Iterator[tuple[Document, bool]]:
    """Pairs of a document and whether it belongs to the held-out tail: the last `share` of the first `characters`
    characters. The document at the boundary is split, after a line break if one is near."""
    held = round(share * characters)
    boundary, start, tail = characters - held, 0, ""  # tail: name of the document that was split
    for document in documents:
        end = start + len(document.text)
        if document.more and end >= characters:  # what follows is not used
            document = replace(document, more=False)
        if start >= boundary or end <= boundary:
            name = f"{document.name} (tail)" if document.name == tail else document.name
            yield replace(document, name=name), start >= boundary
        else:
            cut = boundary - start
            line = document.text.rfind("\n", 0, cut) + 1
            cut = line if line and cut - line <= held else cut
            tail = document.name
            yield Document(tail, document.text[:cut], False, document.before), False
            yield Document(f"{tail} (tail)", document.text[cut:], document.more), True
        start = end
        if start >= characters:
            return
