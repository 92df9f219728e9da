"""Documents: the texts of a source, and which of them are held out."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hfbsz.data.prepare.pieces import pieces
from hfbsz.data.sources.columns import columns_of, template_of
from hfbsz.data.sources.records import Record, Tally
from hfbsz.data.sources.sources import Opened
from hfbsz.errors import UserError

FEW_DOCUMENTS = 20  # below this, validation is the corpus's contiguous tail


@dataclass(frozen=True)
class Document:
    """A document, or a piece of a long one."""

    name: str  # its record's
    text: str
    more: bool = False  # whether the next one continues it
    before: str = ""  # the end of the piece before it


class Documents:
    """The texts of a source: its text column, or what a template makes of its columns. It counts, afresh in every pass,
    what it saw and what held no text."""

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
        """The text of a record, and of those that continue its document."""
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
        return (text or "").encode("utf-8", "replace").decode()  # halves of surrogate pairs are no text

    def few(self, most: int | None = None) -> int | None:
        """The characters of all documents where there are fewer than FEW_DOCUMENTS, else None; asked for once, it
        reads on to the twentieth document, or to `most` characters, and no further."""
        if self._few is None:
            count, characters, continued = 0, 0, False
            for document in self:
                count += not continued
                if count == FEW_DOCUMENTS or (most is not None and characters >= most):
                    break
                characters += len(document.text)
                continued = document.more
            self._few = count, characters
        return self._few[1] if self.is_few else None

    @property
    def is_few(self) -> bool:
        """Whether `few` has found fewer than FEW_DOCUMENTS."""
        return self._few is not None and self._few[0] < FEW_DOCUMENTS

    def notes(self) -> list[str]:
        """What the last pass left out, and how it read the files."""
        if not self.empty:
            return list(self.tally.notes)
        left = f"{self.empty:,} of {self.seen:,} documents hold no text and were left out ({self.source.where})"
        return [*self.tally.notes, left]


def deal(documents: Documents, share: float, most: int | None = None) -> Iterator[tuple[Document, bool]]:
    """(document, whether it is held out): by a hash of its name, or the tail of few documents, of which no more than
    about `most` characters are then taken."""
    if share and (characters := documents.few(most)) is not None:
        return split_tail(documents, characters, share)
    return ((document, is_held_out(document.name, share)) for document in documents)


def is_held_out(name: str, share: float) -> bool:
    """Whether a document belongs to validation: a hash of its name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < share


def split_tail(documents: Iterable[Document], characters: int, share: float) -> Iterator[tuple[Document, bool]]:
    """(document, whether it belongs to the held-out tail): `share` of the first so many characters, cut at a line's end
    where there is one in the piece that is cut."""
    held = round(share * characters)
    border, start, tail = characters - held, 0, ""  # the tail: name of the document that was cut
    for document in documents:
        end = start + len(document.text)
        if document.more and end >= characters:  # what is not taken does not continue it
            document = replace(document, more=False)
        if start >= border or end <= border:
            name = f"{document.name} (tail)" if document.name == tail else document.name
            yield replace(document, name=name), start >= border
        else:
            cut = border - start
            line = document.text.rfind("\n", 0, cut) + 1
            cut = line if line and cut - line <= held else cut
            tail = document.name
            yield Document(tail, document.text[:cut], False, document.before), False
            yield Document(f"{tail} (tail)", document.text[cut:], document.more), True
        start = end
        if start >= characters:
            return
