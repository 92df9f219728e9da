"""One pass over each source: documents are tokenised and dealt to the training rows or to validation's."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.data.manifest import TRAIN, VALIDATION, Manifest, SetCounts
from hfbsz.data.prepare.budget import BYTES_PER_TOKEN, Needed
from hfbsz.data.prepare.documents import Document, Documents, deal
from hfbsz.data.prepare.pieces import PIECE
from hfbsz.data.prepare.row_writer import RowWriter
from hfbsz.data.sources.hub import Hub
from hfbsz.data.sources.sources import Opened
from hfbsz.data.tokenizer.encoding import Unencodable
from hfbsz.data.tokenizer.fast_encoding import PlainEncoder
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, save_tokenizer, token_count, train_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.fields import SMALL_CORPUS, Data

Progress = Callable[[str, int, int], None]  # (what is being done, done, of all)
Dealt = Iterable[tuple[Document, bool]]  # a document, and whether it is held out

_TOKENIZER_TEXT = 50_000_000  # characters that train a tokenizer at most: half a minute
_DOCUMENTS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = max(2**21, 2 * PIECE * (os.cpu_count() or 1))  # a tokenizer takes about 100 bytes for each


class Builder:
    """Makes the rows of all sets: `sources` are the training source, TRAIN; validation, by VALIDATION, where it has a
    source of its own; and evaluation sets. `needed`: how far the training source is read; None: to its end."""

    def __init__(self, data: Data, sources: Mapping[str, Opened], needed: Needed | None, progress: Progress) -> None:
        self.data, self.sources, self.progress, self.needed = data, sources, progress, needed
        self.most = None if needed is None else needed.sequences * data.sequence_length * BYTES_PER_TOKEN
        self.share = 0.0 if VALIDATION in sources else share_of(data)
        self.documents = Documents(sources[TRAIN])
        self.notes: list[str] = []
        self.cuts = self.changed = 0  # of long documents, and those at which a token may be another

    def build(self, folder: Path) -> Manifest:
        """Write train.arrow, validation.arrow, eval-N.arrow and the tokenizer into `folder`."""
        self.tokenizer = load_tokenizer(self.data.tokenizer) if self.data.tokenizer else self._trained()
        save_tokenizer(self.tokenizer, folder / "tokenizer")
        self.encode = PlainEncoder(self.tokenizer)
        names = [name for name in self.sources if name not in (TRAIN, VALIDATION)]
        train = self._writer(folder / "train.arrow", keep_tail=not self.data.pack)
        validation = self._writer(folder / "validation.arrow", keep_tail=True)
        sets = {name: self._writer(folder / f"eval-{i}.arrow", keep_tail=True) for i, name in enumerate(names)}
        self._train(train, validation)
        for name, writer in {VALIDATION: validation, **sets}.items():
            if name in self.sources:
                self._evaluation(Documents(self.sources[name]), writer)
        return self._manifest(train, validation, sets)

    def _trained(self) -> Any:
        limit = _TOKENIZER_TEXT if self.most is None else min(_TOKENIZER_TEXT, self.most)
        texts = (document.text for document, held in self._dealt() if not held)
        size = min(limit, self.documents.source.size() or limit)
        taken = _Beginning(texts, limit, lambda done: self.progress("training the tokenizer", min(done, size), size))
        tokenizer = train_tokenizer(taken, self.data.vocab_size)
        if taken.was_cut and self.needed is None:
            self.notes.append(f"the tokenizer was trained on the first {limit:,} characters")
        return tokenizer

    def _dealt(self) -> Iterator[tuple[Document, bool]]:
        most = None if self.most is None else 2 * self.most  # of few documents: a token may stand for more text
        return deal(self.documents, self.share, most)

    def _train(self, train: RowWriter, held_out: RowWriter) -> None:
        dealt = self._dealt()
        has_tail = self.share > 0 and self.documents.is_few
        self._pass(self.documents, dealt, train, held_out, None if has_tail else self.needed)
        self._note_training(train, has_tail)
        self._note_cuts()

    def _writer(self, path: Path, keep_tail: bool) -> RowWriter:
        return RowWriter(path, self.data, token_count(self.tokenizer), self.tokenizer.eos_token_id, keep_tail)

    def _pass(
        self, documents: Documents, dealt: Dealt, train: RowWriter, held_out: RowWriter, needed: Needed | None
    ) -> None:
        """Tokenise documents, each into one of two sets; as many as give the training rows that are needed."""
        size = documents.source.size()
        for batch in _batches(dealt):
            try:
                found = self._tokenise(batch)
            except Unencodable as problem:
                where = f"{documents.source.where}: {batch[problem.place][0].name}"
                raise UserError(f"{where}: {problem}") from None
            for (document, held), ids in zip(batch, found, strict=True):
                (held_out if held else train).add(ids, document.text.encode(), document.more)
                if _enough(train, needed):
                    return
            if needed is not None:
                self.progress("tokenising", min(train.rows, needed.sequences), needed.sequences)
            else:
                done = train.bytes + (held_out.bytes if held_out is not train else 0)
                self.progress("tokenising", min(done, size), size)

    def _tokenise(self, batch: list[tuple[Document, bool]]) -> list[list[int]]:
        """Tokens of documents and pieces. A piece is tokenised with the end of the one before it, whose tokens are then
        taken off: so no token depends on where a document was cut."""
        documents = [document for document, _ in batch]
        found = self.encode([document.before + document.text for document in documents])
        cut = [place for place, document in enumerate(documents) if document.before]
        contexts = self.encode([documents[place].before for place in cut]) if cut else []
        for place, context in zip(cut, contexts, strict=True):
            if found[place][: len(context)] == context:
                found[place] = found[place][len(context) :]
            else:
                found[place] = self.encode([documents[place].text])[0]
                self.changed += 1
        self.cuts += len(cut)
        return found

    def _note_training(self, train: RowWriter, has_tail: bool) -> None:
        self.notes += self.documents.notes()
        if has_tail:
            found = counted(self.documents.seen - self.documents.empty, "document")
            self.notes.append(f"{found} only: validation is the last {self.data.validation} of the text")
        if self.needed is None:
            return
        if self.data.stream and not _enough(train, self.needed):
            self.notes.append(f"the stream ended after {train.rows:,} of {self.needed.sequences:,} rows")
        elif not self.data.stream:
            read = f"{train.bytes / 1e6:,.1f} MB of text were prepared ({train.rows:,} training rows)"
            size = self.documents.source.size() / 1e6
            self.notes.append(
                f"{read} of {size:,.0f} MB of {self.documents.source.where}, for the budget takes no more; "
                "data.stream=false prepares all"
            )

    def _note_cuts(self) -> None:
        if self.changed:
            self.notes.append(
                f"long documents were tokenised in pieces: at {self.changed:,} of {self.cuts:,} cuts tokens may differ "
                "from those of the whole document (text without spaces?)"
            )

    def _evaluation(self, documents: Documents, writer: RowWriter) -> None:
        """Rows of a set that has a source of its own; of a stream, or a large one, no more than training takes."""
        is_large = isinstance(documents.source, Hub) or documents.source.size() > SMALL_CORPUS
        self._pass(documents, deal(documents, 0.0), writer, writer, self.needed if is_large else None)
        self.notes += documents.notes()

    def _manifest(self, train: RowWriter, validation: RowWriter, sets: Mapping[str, RowWriter]) -> Manifest:
        counts, tally, columns = train.close(), self.documents.tally, self.documents.columns
        validation_counts = _close_evaluation(validation, train)
        digest = hashlib.sha256(train.digest.digest())
        digest.update(validation.digest.digest())  # further sets may be added or removed between two starts
        manifest = Manifest(
            train=counts,
            validation=validation_counts,
            sets={name: _close_evaluation(writer, train) for name, writer in sets.items()},
            vocab_size=token_count(self.tokenizer),
            data_hash=digest.hexdigest(),
            notes=tuple(self.notes),
            columns=tuple(tally.used(columns)),
            unused_columns=tuple(tally.unused(columns)),
        )
        self._refuse_empty(manifest)
        return manifest

    def _refuse_empty(self, manifest: Manifest) -> None:
        train = manifest.train
        if not train.tokens:
            raise UserError(f"{self.documents.source.where} holds no text")
        if not train.rows:
            raise UserError(
                f"data: the corpus has {train.tokens} training tokens, fewer than one row of "
                f"data.sequence_length={self.data.sequence_length}: take a larger corpus or shorter rows"
            )
        sets = {f"eval.sets.{name}": counts for name, counts in manifest.sets.items()}
        for field, counts in {"data.validation": manifest.validation, **sets}.items():
            if not counts.rows:
                raise UserError(f"{field}: no text to evaluate on: take a larger share or more files")


def share_of(data: Data) -> float:
    """The share of the documents that is held out, from 0 to 1."""
    share = data.validation.value / 100
    if data.validation.unit != "%" or not 0 < share < 1:
        raise UserError(f"data.validation: '{data.validation}' is no share of the documents: write 1% to 99%")
    return share


def _enough(writer: RowWriter, needed: Needed | None) -> bool:
    if needed is None:
        return False
    return writer.rows >= needed.sequences and (needed.tokens is None or writer.inputs >= needed.tokens)


def _batches(dealt: Dealt) -> Iterator[list[tuple[Document, bool]]]:
    """Documents to tokenise at once: enough for all cores, few enough for memory."""
    batch: list[tuple[Document, bool]] = []
    characters = 0
    for document, held in dealt:
        batch.append((document, held))
        characters += len(document.text)
        if len(batch) == _DOCUMENTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Beginning:
    """The texts up to so many characters; `was_cut` says, once they were read, whether there were more. `show` is told
    of the characters read."""

    def __init__(self, texts: Iterable[str], characters: int, show: Callable[[int], None]) -> None:
        self._texts, self._most, self._left, self._show, self.was_cut = texts, characters, characters, show, False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._show(self._most - self._left)
            if self._left <= 0:
                self.was_cut = True
                return
            yield text[: self._left]
            self._left -= len(text)


def _close_evaluation(writer: RowWriter, train: RowWriter) -> SetCounts:
    """The counts of an evaluation set; its unigram cross-entropy is under the training tokens' frequencies, each plus
    one (Laplace smoothing)."""
    counts, frequencies = writer.close(), train.frequencies
    probabilities = (frequencies + 1) / (frequencies.sum() + len(frequencies))
    bits = float(-(writer.frequencies * np.log2(probabilities)).sum())
    return replace(counts, unigram_bits_per_byte=bits / max(1, counts.bytes or 0))
