"""Preparation of fine-tuning tasks: examples are read, split, deduplicated and tokenized, one row each."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.data import IGNORED
from hfbsz.data.chat.chat import Chat, Encoded
from hfbsz.data.chat.template import TEMPLATE
from hfbsz.data.manifest import TRAIN, VALIDATION, Manifest, SetCounts
from hfbsz.data.prepare.corpus import Progress, share_of
from hfbsz.data.prepare.documents import is_held_out
from hfbsz.data.prepare.example_reader import Example, Reader
from hfbsz.data.prepare.labels import check_classes, order_labels, share_notes, stratified
from hfbsz.data.prepare.pairs import encode_pair
from hfbsz.data.sources.sources import Opened
from hfbsz.data.tokenizer.encoding import Unencodable, encode_texts
from hfbsz.data.tokenizer.tokenizer import ends_of, load_tokenizer, save_tokenizer, token_count
from hfbsz.display import command
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.fields import Data
from hfbsz.recipe.tasks import RowKind

_ROWS_AT_ONCE = 512
_LABELS_SHOWN = 12


class ExampleBuilder:
    """Writes the rows of all sets of a task. `sources` has the training source (TRAIN), validation if it has its own
    source (VALIDATION), and the evaluation sets. `own_labels` are the labels of the model's classifier."""

    def __init__(
        self,
        kind: RowKind,
        data: Data,
        sources: Mapping[str, Opened],
        progress: Progress,
        own_labels: Sequence[str] | None = None,
    ) -> None:
        self.kind, self.data, self.sources, self.progress = kind, data, sources, progress
        self.own_labels = own_labels
        self.share = 0.0 if VALIDATION in sources else share_of(data)
        self.notes: list[str] = []
        self.readers = {name: Reader(kind, opened) for name, opened in sources.items()}

    def build(self, folder: Path) -> Manifest:
        """Write train.arrow, validation.arrow and eval-N.arrow into `folder`. Raises UserError."""
        if self.data.tokenizer is None:
            raise UserError("data.tokenizer: fine-tuning needs the model's own tokenizer: set it, or model.path")
        self.tokenizer = load_tokenizer(self.data.tokenizer, needs_end=self.kind is not RowKind.LABEL)
        if self.kind is not RowKind.LABEL and not self.tokenizer.chat_template:
            self.tokenizer.chat_template = TEMPLATE
        read = {name: list(reader.examples(self.progress)) for name, reader in self.readers.items()}
        self.notes += [note for reader in self.readers.values() for note in reader.notes]
        self.labels = self._labels(read)
        sets = self._split(read)
        self._clean(sets)
        self._check_training(sets, len(read[TRAIN]))
        self.chat = None if self.labels is not None else self._chat()
        digest = hashlib.sha256()
        train = self._write(folder / "train.arrow", TRAIN, sets.pop(TRAIN), digest)
        validation = self._write(folder / "validation.arrow", VALIDATION, sets.pop(VALIDATION), digest)
        further = {
            name: self._write(folder / f"eval-{number}.arrow", name, examples, hashlib.sha256())
            for number, (name, examples) in enumerate(sets.items())
        }
        save_tokenizer(self.tokenizer, folder / "tokenizer")
        self.notes += self.chat.notes() if self.chat is not None else []
        tally, columns = self.readers[TRAIN].tally, self.readers[TRAIN].columns
        return Manifest(
            train=train,
            validation=validation,
            sets=further,
            vocab_size=token_count(self.tokenizer),
            data_hash=digest.hexdigest(),
            notes=tuple(self.notes),
            columns=tuple(tally.used(columns)),
            unused_columns=tuple(tally.unused(columns)),
            labels=None if self.labels is None else tuple(self.labels),
            end_token=None if self.chat is None else self.chat.end_token_learned,
            end_ids=None if self.chat is None else tuple(sorted(map(int, self.chat.end_ids))),
        )

    def _chat(self) -> Chat:
        ends, day = ends_of(str(self.data.tokenizer)), date.fromisoformat(self.data.date)
        return Chat(self.tokenizer, self.data.answers, self.data.sequence_length, ends, day)

    def _labels(self, read: Mapping[str, Sequence[Example]]) -> list[str] | None:
        """The labels in the order of their class numbers, from all rows of the training source; None for other tasks.
        Raises UserError for values that cannot be classes, and for a label that only another set has."""
        if self.kind is not RowKind.LABEL:
            return None
        rows = Counter(str(example.label) for example in read[TRAIN])
        column = str(self.data.label)
        check_classes(rows, self.data.labels, column)
        class_names = self.sources[TRAIN].source.class_names(column)
        labels = order_labels(rows, self.data.labels, self.own_labels, class_names)
        for name, examples in read.items():
            for example in examples:
                if example.label not in labels:
                    opened = self.sources[name]
                    near = did_you_mean(str(example.label), labels)
                    raise UserError(
                        f"{opened.source.where}: {example.name} has the label {example.label!r}, which is not one of "
                        f"{', '.join(labels)}{near}: add it to data.labels, or leave such rows out: "
                        + command(f"{opened.part}.skip.{opened.data.label}={example.label}")
                    )
        return labels

    def _split(self, read: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
        """Training examples and every evaluation set. Validation is held out by a hash of the group; in a
        classification without groups, it is the same share of every label."""
        training = read[TRAIN]
        if VALIDATION in read:
            validation = read[VALIDATION]
        else:
            held_out = self._held_out(training)
            validation = [example for index, example in enumerate(training) if index in held_out]
            training = [example for index, example in enumerate(training) if index not in held_out]
            if not validation or not training:
                raise UserError(
                    f"data.validation: {self.data.validation} of {len({e.group for e in read[TRAIN]}):,} groups leaves "
                    f"{len(training):,} rows to train on and {len(validation):,} to validate on: take another share"
                )
        return {**read, TRAIN: training, VALIDATION: validation}

    def _held_out(self, examples: Sequence[Example]) -> set[int]:
        """Indices of the examples that are held out for validation."""
        if self.labels is not None and self.data.group is None:
            return stratified(
                [example.label for example in examples], [example.name for example in examples], self.share
            )
        return {index for index, example in enumerate(examples) if is_held_out(example.group, self.share)}

    def _clean(self, sets: dict[str, list[Example]]) -> None:
        """Note duplicates, and training rows that validation has too; drop both unless data.duplicates is keep."""
        drop = self.data.duplicates == "drop"
        action = "dropped" if drop else "kept (data.duplicates)"
        held = {_key(example) for example in sets[VALIDATION]}
        for name in (TRAIN, VALIDATION):
            first: dict[str, Example] = {}
            for example in sets[name]:
                first.setdefault(_key(example), example)
            repeated = len(sets[name]) - len(first)
            relabeled = sum(example.label != first[_key(example)].label for example in sets[name])
            where = "training" if name == TRAIN else "validation"
            if repeated:
                labels = f", {relabeled:,} of them with another label" if relabeled else ""
                self.notes.append(
                    f"{counted(repeated, f'{where} row')} with the text of an earlier one{labels}: {action}"
                )
            if drop:
                sets[name] = list(first.values())
        leaks = [example for example in sets[TRAIN] if _key(example) in held]
        if leaks:
            self.notes.append(f"{counted(len(leaks), 'training row')} that validation has too: {action}")
            if drop:
                sets[TRAIN] = [example for example in sets[TRAIN] if _key(example) not in held]
        trained = {_key(example) for example in sets[TRAIN]}
        for name in (name for name in sets if name not in (TRAIN, VALIDATION)):
            shared = sum(_key(example) in trained for example in sets[name])
            if shared:
                self.notes.append(f"{counted(shared, 'row')} of eval.sets.{name} that training has too: kept")

    def _check_training(self, sets: dict[str, list[Example]], read: int) -> None:
        """Keep data.rows training rows, and note labels whose shares differ in validation. Raises UserError if no row
        is left, or if all have the same label."""
        training = sets[TRAIN]
        if not training:
            raise UserError(
                f"data: none of {read:,} rows is left to train on: all repeat another row's text or are in validation "
                "too (data.duplicates=keep keeps them)"
            )
        if self.data.rows is not None:
            self._take(sets, self.data.rows)
        if self.labels is None:
            return
        labels = [str(example.label) for example in sets[TRAIN]]
        if len(set(labels)) < 2:
            raise UserError(
                f"data.label: all {len(labels):,} training rows have the label {labels[0]!r}: there is nothing to "
                "classify"
            )
        self.notes += share_notes(labels, [str(example.label) for example in sets[VALIDATION]])

    def _take(self, sets: dict[str, list[Example]], count: int) -> None:
        """Keep the `count` training examples with the lowest hashes of their names."""
        if count > len(sets[TRAIN]):
            raise UserError(f"data.rows: {count:,} is more than the {len(sets[TRAIN]):,} training rows there are")
        ranked = sorted(sets[TRAIN], key=lambda example: hashlib.sha256(f"rows/{example.name}".encode()).digest())
        names = {example.name for example in ranked[:count]}
        sets[TRAIN] = [example for example in sets[TRAIN] if example.name in names]

    def _write(self, path: Path, name: str, examples: Sequence[Example], digest: Any) -> SetCounts:
        """Tokenize and write a set; returns its counts."""
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        numbers = List(Value("int32"))
        columns = {"input_ids": numbers, "labels": numbers, "text_bytes": Value("float64")}
        is_pair = self.kind is RowKind.PREFERENCE
        writer = ArrowWriter(
            path=str(path), features=Features({**columns, "chosen_length": Value("int32")} if is_pair else columns)
        )
        rows = tokens = targets = truncated = empty = same = 0
        where = {TRAIN: "training", VALIDATION: "validation"}.get(name, f"eval.sets.{name}")
        for start in range(0, len(examples), _ROWS_AT_ONCE):
            self.progress(f"tokenizing {where}", start, len(examples))
            for row in self._tokenize(examples[start : start + _ROWS_AT_ONCE], self.sources.get(name)):
                truncated += row.was_cut
                if not row.has_targets:
                    empty += 1
                    continue
                if is_pair and row.ids[: row.chosen] == row.ids[row.chosen :]:
                    same += 1
                    continue
                length = {"chosen_length": row.chosen} if is_pair else {}
                digest.update(np.array([*row.ids, -1, *row.labels, -2, *length.values()], np.int32).tobytes())
                writer.write({"input_ids": row.ids, "labels": row.labels, "text_bytes": row.text_bytes, **length})
                rows, tokens = rows + 1, tokens + len(row.ids)
                targets += 1 if is_pair else sum(label != IGNORED for label in row.labels)
        if not rows:
            answers = "two different answers" if is_pair else "an answer"
            raise UserError(
                f"{where}: none of the {len(examples):,} rows has {answers} within data.sequence_length="
                f"{self.data.sequence_length} tokens: take a larger data.sequence_length"
            )
        writer.finalize()
        self._note_cuts(where, truncated, empty)
        if same:
            self.notes.append(f"{counted(same, f'{where} row')} whose answers are the same up to there: left out")
        return SetCounts(rows, tokens, tokens / rows, targets=targets, **self._frequencies(where, examples))

    def _note_cuts(self, where: str, truncated: int, empty: int) -> None:
        if truncated:
            limit = f"data.sequence_length={self.data.sequence_length} tokens"
            self.notes.append(f"{counted(truncated, f'{where} row')} longer than {limit}: cut there")
        if empty:
            self.notes.append(f"{counted(empty, f'{where} row')} without an answer before that: left out")

    def _frequencies(self, where: str, examples: Sequence[Example]) -> dict[str, Any]:
        """Of a classification: the share of the most frequent label, and the entropy of labels (nats). Notes counts."""
        if self.labels is None:
            return {}
        rows = Counter(str(example.label) for example in examples)
        shown = ", ".join(f"{rows[label]:,} {label}" for label in self.labels[:_LABELS_SHOWN])
        self.notes.append(f"{where}: {shown}{', …' if len(self.labels) > _LABELS_SHOWN else ''}")
        shares = [count / rows.total() for count in rows.values()]
        return {"majority": max(shares), "label_nats": -sum(share * math.log(share) for share in shares)}

    def _tokenize(self, examples: Sequence[Example], opened: Opened | None) -> Iterator[Encoded]:
        """The rows of examples: one each, or several where a template changes earlier turns."""
        if self.chat is None:
            assert self.labels is not None
            limit = self.data.sequence_length
            try:
                rows, lengths = encode_texts(self.tokenizer, [example.text for example in examples], limit)
            except Unencodable as problem:
                raise self._row_error(opened, examples[problem.place], str(problem)) from None
            for example, ids, length in zip(examples, rows, lengths, strict=True):
                yield Encoded(ids, [self.labels.index(str(example.label))], 0.0, length > limit)
            return
        for example in examples:
            tools = None if example.tools is None else list(example.tools)
            try:
                if self.kind is RowKind.PREFERENCE:
                    yield encode_pair(self.chat, example.messages, example.rejected, tools)
                else:
                    yield from self.chat.encode(example.messages, tools)
            except (ValueError, UserError) as problem:
                raise self._row_error(opened, example, str(problem)) from None

    def _row_error(self, opened: Opened | None, example: Example, reason: str) -> UserError:
        return UserError(f"{(opened or self.sources[TRAIN]).source.where}: {example.name}: {reason}")


def _key(example: Example) -> str:
    """Two examples with the same key are duplicates: their texts differ at most in case and white space."""
    return " ".join(example.text.casefold().split())
