"""Preparation of a text corpus: documents are tokenized and written as training or evaluation rows, in one pass."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfbsz.data.manifest import TRAIN, VALIDATION, Manifest, SetCounts
from hfbsz.data.prepare.budget import BYTES_PER_TOKEN, Needed
from hfbsz.data.prepare.documents import Document, Documents, split_documents, split_sections
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

Progress = Callable[[str, int, int], None]  # (activity, amount done, total; 0: not known)
Split = Iterable[tuple[Document, bool]]  # documents, and whether each is held out

_TOKENIZER_TEXT = 50_000_000  # characters that train a tokenizer at most: half a minute
_DOCUMENTS_AT_ONCE = 256
_UNLIKE = 0.1  # nats/token: from this difference of unigram cross-entropies a note says that two texts differ
_MIN_TOKENS = 10_000  # validation tokens for that
# a tokenizer uses about 100 bytes of memory per character
_CHARACTERS_AT_ONCE = max(2**21, 2 * PIECE * (os.cpu_count() or 1))


class Builder:
    """Writes the rows of all sets. `sources` has the training source (TRAIN), validation if it has its own source
    (VALIDATION), and the evaluation sets. `needed`: how much of the training source is read; None: all of it."""

    def __init__(self, data: Data, sources: Mapping[str, Opened], needed: Needed | None, progress: Progress) -> None:
        self.data, self.sources, self.progress, self.needed = data, sources, progress, needed
        self.max_characters = None if needed is None else needed.sequences * data.sequence_length * BYTES_PER_TOKEN
        self.share = 0.0 if VALIDATION in sources else share_of(data)
        self.by_section = self.share > 0 and data.holds_out_sections
        self.documents = Documents(sources[TRAIN])
        self.notes: list[str] = []
        self.cuts = self.changed = 0  # cuts in long documents, and those at which tokens may differ

    def build(self, folder: Path) -> Manifest:
        """Write train.arrow, validation.arrow, eval-N.arrow and the tokenizer to `folder`. Raises UserError."""
        self.tokenizer = load_tokenizer(self.data.tokenizer) if self.data.tokenizer else self._trained_tokenizer()
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

    def _trained_tokenizer(self) -> Any:
        limit = _TOKENIZER_TEXT if self.max_characters is None else min(_TOKENIZER_TEXT, self.max_characters)
        texts = (document.text for document, held in self._split() if not held)
        size = min(limit, self.documents.source.size() or limit)

        def show(done: int) -> None:
            self.progress("training the tokenizer", min(done, size), size)

        beginning = _Beginning(texts, limit, show)
        tokenizer = train_tokenizer(beginning, self.data.vocab_size)
        if beginning.truncated and self.needed is None:
            self.notes.append(f"the tokenizer was trained on the first {limit:,} characters")
        return tokenizer

    def _split(self) -> Iterator[tuple[Document, bool]]:
        if self.by_section:
            return split_sections(self.documents, self.share)
        # with few documents twice as much, because a token may stand for more text than usual
        limit = None if self.max_characters is None else 2 * self.max_characters
        return split_documents(self.documents, self.share, limit)

    def _train(self, train: RowWriter, held_out: RowWriter) -> None:
        split = self._split()
        has_tail = self.share > 0 and self.documents.is_few
        self._pass(self.documents, split, train, held_out, None if has_tail else self.needed)
        self._note_training(train, has_tail)
        self._note_cuts()

    def _writer(self, path: Path, keep_tail: bool) -> RowWriter:
        return RowWriter(path, self.data, token_count(self.tokenizer), self.tokenizer.eos_token_id, keep_tail)

    def _pass(
        self, documents: Documents, split: Split, train: RowWriter, held_out: RowWriter, needed: Needed | None
    ) -> None:
        """Tokenize documents and add each to one of two sets, until there are as many training rows as needed."""
        size = documents.source.size()
        for batch in _batches(split):
            try:
                tokens = self._tokenize(batch)
            except Unencodable as problem:
                where = f"{documents.source.where}: {batch[problem.place][0].name}"
                raise UserError(f"{where}: {problem}") from None
            for (document, held), ids in zip(batch, tokens, strict=True):
                (held_out if held else train).add(ids, document.text.encode(), document.more)
                if _enough(train, needed):
                    return
            if needed is not None:
                self.progress("tokenizing", min(train.rows, needed.sequences), needed.sequences)
            else:
                done = train.bytes + (held_out.bytes if held_out is not train else 0)
                self.progress("tokenizing", min(done, size), size)

    def _tokenize(self, batch: list[tuple[Document, bool]]) -> list[list[int]]:
        """Tokens of documents and pieces. A piece is tokenized together with the end of the preceding piece, whose
        tokens are then removed, so that no token depends on where a document was cut."""
        documents = [document for document, _ in batch]
        tokens = self.encode([document.before + document.text for document in documents])
        pieces = [index for index, document in enumerate(documents) if document.before]
        contexts = self.encode([documents[index].before for index in pieces]) if pieces else []
        for index, context in zip(pieces, contexts, strict=True):
            if tokens[index][: len(context)] == context:
                tokens[index] = tokens[index][len(context) :]
            else:
                tokens[index] = self.encode([documents[index].text])[0]
                self.changed += 1
        self.cuts += len(pieces)
        return tokens

    def _note_training(self, train: RowWriter, has_tail: bool) -> None:
        self.notes += self.documents.notes()
        if has_tail:
            count = counted(self.documents.seen - self.documents.empty, "document")
            self.notes.append(f"{count} only: validation is the last {self.data.validation} of the text")
        if self.needed is None:
            return
        if self.data.stream and not _enough(train, self.needed):
            self.notes.append(f"the stream ended after {train.rows:,} of {self.needed.sequences:,} rows")
        elif not self.data.stream:
            prepared = f"{train.bytes / 1e6:,.1f} MB of text were prepared ({train.rows:,} training rows)"
            size = self.documents.source.size() / 1e6
            self.notes.append(
                f"{prepared} of {size:,.0f} MB of {self.documents.source.where}, as much as the budget needs; "
                "data.stream=false prepares all"
            )

    def _note_cuts(self) -> None:
        if self.changed:
            self.notes.append(
                f"long documents were tokenized in pieces: at {self.changed:,} of {self.cuts:,} cuts tokens may differ "
                "from those of the full document (text without spaces?)"
            )

    def _evaluation(self, documents: Documents, writer: RowWriter) -> None:
        """Write the rows of a set with its own source; of a stream or a large source, no more than training needs."""
        is_large = isinstance(documents.source, Hub) or documents.source.size() > SMALL_CORPUS
        self._pass(documents, split_documents(documents, 0.0), writer, writer, self.needed if is_large else None)
        self.notes += documents.notes()

    def _manifest(self, train: RowWriter, validation: RowWriter, sets: Mapping[str, RowWriter]) -> Manifest:
        counts, tally, columns = train.close(), self.documents.tally, self.documents.columns
        validation_counts = _close_evaluation(validation, train)
        self._note_unlike_parts(train, validation)
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

    def _note_unlike_parts(self, train: RowWriter, validation: RowWriter) -> None:
        """Note held-out text whose token frequencies show that it is of another kind than the training text."""
        held_out, trained = (unigram_nats(part.frequencies, train.frequencies) for part in (validation, train))
        if self.share and abs(held_out - trained) > _UNLIKE and validation.frequencies.sum() >= _MIN_TOKENS:
            advice = "" if self.by_section else "; data.validation_unit=section holds out parts of all documents"
            self.notes.append(
                f"validation and training text differ: token frequencies alone give {held_out:.2f} and {trained:.2f} "
                f"nats/token, so that the two losses cannot be compared{advice}"
            )

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
    """The share of documents that is held out, between 0 and 1. Raises UserError for another data.validation."""
    share = data.validation.value / 100
    if data.validation.unit != "%" or not 0 < share < 1:
        raise UserError(f"data.validation: '{data.validation}' is not a share of the documents: use 1% to 99%")
    return share


def _enough(writer: RowWriter, needed: Needed | None) -> bool:
    if needed is None:
        return False
    return writer.rows >= needed.sequences and (needed.tokens is None or writer.inputs >= needed.tokens)


def _batches(split: Split) -> Iterator[list[tuple[Document, bool]]]:
    """Batches of documents to tokenize: large enough for all cores, small enough for memory."""
    batch: list[tuple[Document, bool]] = []
    characters = 0
    for document, held in split:
        batch.append((document, held))
        characters += len(document.text)
        if len(batch) == _DOCUMENTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Beginning:
    """The first `limit` characters of texts. After the iteration, `truncated` tells whether there were more. `show` is
    called with the number of characters read."""

    def __init__(self, texts: Iterable[str], limit: int, show: Callable[[int], None]) -> None:
        self._texts, self._limit, self._remaining, self._show = texts, limit, limit, show
        self.truncated = False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._show(self._limit - self._remaining)
            if self._remaining <= 0:
                self.truncated = True
                return
            yield text[: self._remaining]
            self._remaining -= len(text)


def _close_evaluation(writer: RowWriter, train: RowWriter) -> SetCounts:
    """The counts of an evaluation set, with its unigram cross-entropy under the training tokens' frequencies."""
    counts = writer.close()
    bits = unigram_nats(writer.frequencies, train.frequencies) * float(writer.frequencies.sum()) / math.log(2)
    return replace(counts, unigram_bits_per_byte=bits / max(1, counts.bytes or 0))


def unigram_nats(frequencies: NDArray[np.int64], training: NDArray[np.int64]) -> float:
    """The cross-entropy in nats/token of tokens with these frequencies under those of the training tokens, each plus
    one (Laplace smoothing); 0 without tokens. Both have the shape (vocabulary,)."""
    probabilities = (training + 1) / (training.sum() + len(training))
    return float(-(frequencies * np.log(probabilities)).sum() / max(1, frequencies.sum()))
