"""Documents: the texts of a source, and which of them are held out."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from hfbsz.data.sources import Opened
from hfbsz.errors import UserError

FEW_DOCUMENTS = 20  # below this, validation is the corpus's contiguous tail


@dataclass(frozen=True)
class Document:
    name: str  # its record's
    text: str


class Documents:
    """The texts in the text column of a source. It counts, afresh in every pass, what it saw and what held no text."""

    def __init__(self, opened: Opened) -> None:
        self.source, self.columns = opened.source, opened.columns("text")
        self.seen = self.empty = 0

    def __iter__(self) -> Iterator[Document]:
        self.seen = self.empty = 0
        ((field, column),) = self.columns.items()
        for record in self.source.records(self.columns):
            text = record.columns[column]
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"{self.source.where}: {record.name} holds a {type(text).__name__}, not text, in column "
                    f"{column!r} ({field})"
                )
            self.seen += 1
            if text is None or not text.strip():
                self.empty += 1
            else:  # JSON can hold halves of surrogate pairs, which are no text
                yield Document(record.name, text.encode("utf-8", "replace").decode())

    def notes(self) -> list[str]:
        """What the last pass left out."""
        if not self.empty:
            return []
        return [f"{self.empty:,} of {self.seen:,} documents hold no text and were left out ({self.source.where})"]


def deal(documents: Iterable[Document], share: float) -> Iterator[tuple[Document, bool]]:
    """(document, whether it is held out), in one pass: by a hash of its name, or the tail of few documents."""
    iterator = iter(documents)
    first = list(islice(iterator, FEW_DOCUMENTS))
    if len(first) < FEW_DOCUMENTS:
        train, tail = split_tail(first, share)
        yield from ((document, False) for document in train)
        yield from ((document, True) for document in tail)
    else:
        yield from ((document, is_held_out(document.name, share)) for document in chain(first, iterator))


def is_held_out(name: str, share: float) -> bool:
    """Whether a document belongs to validation: a hash of its name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < share


def split_tail(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Training documents and the held-out tail, `share` of all characters, cut at a line's end where there is one."""
    held = round(share * sum(len(document.text) for document in documents))
    train = list(documents)
    tail: list[Document] = []
    while held > 0 and train:
        last = train.pop()
        if len(last.text) > held:
            cut = len(last.text) - held
            line = last.text.rfind("\n", 0, cut) + 1
            cut = line if line and cut - line <= held else cut
            train.append(Document(last.name, last.text[:cut]))
            last = Document(f"{last.name} (tail)", last.text[cut:])
        tail.insert(0, last)
        held -= len(last.text)
    return train, tail
