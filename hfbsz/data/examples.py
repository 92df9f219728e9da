"""Rows of fine-tuning tasks: one example each, split, cleaned, counted and tokenised."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.data import IGNORED
from hfbsz.data.build import TRAIN, Progress, share_of
from hfbsz.data.conversations import TEMPLATE, render
from hfbsz.data.documents import is_held_out
from hfbsz.data.reading import Example, Reader
from hfbsz.data.sources import Opened
from hfbsz.data.tokenizer import load_tokenizer
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe import Data

_ROWS_AT_ONCE = 512
_LABELS_SHOWN = 12


class ExampleBuilder:
    """Makes the rows of all sets of a task: `sources` are the training source, by the name TRAIN, and evaluation sets,
    '' being validation where that is a source of its own."""

    def __init__(self, task: str, data: Data, sources: Mapping[str, Opened], progress: Progress) -> None:
        self.task, self.data, self.sources, self.progress = task, data, sources, progress
        self.share = 0.0 if "" in sources else share_of(data)
        self.notes: list[str] = []
        self.readers = {name: Reader(task, opened) for name, opened in sources.items()}

    def build(self, folder: Path) -> dict[str, Any]:
        """Write train.arrow and eval-N.arrow into `folder`; returns what is known of them. Raises UserError."""
        if self.data.tokenizer is None:
            raise UserError("data.tokenizer: fine-tuning takes the model's own tokenizer: name it, or a model.path")
        self.tokenizer = load_tokenizer(self.data.tokenizer, needs_end=self.task != "classification")
        if self.task == "instruction" and not self.tokenizer.chat_template:
            self.tokenizer.chat_template = TEMPLATE
        read = {name: list(reader.examples(self.progress)) for name, reader in self.readers.items()}
        self.notes += [note for reader in self.readers.values() for note in reader.notes]
        sets = self._split(read)
        self.labels = self._labels(sets)
        self._clean(sets)
        digest = hashlib.sha256()
        meta: dict[str, Any] = {"sets": {}, "labels": self.labels, "vocab_size": len(self.tokenizer)}
        for number, (name, examples) in enumerate(sets.items()):
            file = "train.arrow" if name == TRAIN else f"eval-{number - 1}.arrow"
            counts = self._write(folder / file, name, examples, digest if name in (TRAIN, "") else hashlib.sha256())
            if name == TRAIN:
                meta["train"] = counts
            else:
                meta["sets"][name] = counts
        self.tokenizer.save_pretrained(folder / "tokenizer")
        return meta | {"data_hash": digest.hexdigest(), "notes": self.notes}

    def _split(self, read: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
        """Training rows and every evaluation set, validation held out by a hash of its groups."""
        training = read[TRAIN]
        if "" in read:
            validation = read[""]
        else:
            validation = [example for example in training if is_held_out(example.group, self.share)]
            training = [example for example in training if not is_held_out(example.group, self.share)]
            if not validation or not training:
                raise UserError(
                    f"data.validation: {self.data.validation} of {len({e.group for e in read[TRAIN]}):,} groups leaves "
                    f"{len(training):,} rows to train on and {len(validation):,} to validate on: take another share"
                )
        return {TRAIN: training, "": validation, **{k: v for k, v in read.items() if k not in (TRAIN, "")}}

    def _labels(self, sets: Mapping[str, Sequence[Example]]) -> list[str] | None:
        """The labels in the order of their numbers; refuses one that is not known, and one alone."""
        if self.task != "classification":
            return None
        found = Counter(str(example.label) for example in sets[TRAIN])
        labels = self.data.labels or sorted(found)
        for name, examples in sets.items():
            for example in examples:
                if example.label not in labels:
                    opened = self.sources.get(name, self.sources[TRAIN])
                    near = did_you_mean(str(example.label), labels)
                    raise UserError(
                        f"{opened.source.where}: {example.name} has the label {example.label!r}, which is none of "
                        f"{', '.join(labels)}{near}: add it to data.labels, or leave such rows out: "
                        f"{opened.part}.skip.{opened.data.label}={example.label!r}"
                    )
        seen = [label for label in labels if found[label]]
        if len(seen) < 2:
            only = f"all {found.total():,} training rows have the label {seen[0]!r}" if seen else "no row has a label"
            raise UserError(f"data.label: {only}: there is nothing to tell apart")
        if len(labels) > 1000:
            raise UserError(f"data.label: {len(labels):,} different labels: is {self.data.label!r} the column meant?")
        return list(labels)

    def _clean(self, sets: dict[str, list[Example]]) -> None:
        """Tell of duplicates and leaks, and drop them where that is wished; keep data.rows training rows."""
        drop = self.data.duplicates == "drop"
        done = "dropped" if drop else "kept (data.duplicates)"
        held = {_key(example) for example in sets[""]}
        for name in (TRAIN, ""):
            first: dict[str, Example] = {}
            for example in sets[name]:
                first.setdefault(_key(example), example)
            again = len(sets[name]) - len(first)
            at_odds = sum(example.label != first[_key(example)].label for example in sets[name])
            where = "training" if name == TRAIN else "validation"
            if again:
                odd = f", {at_odds:,} of them with another label" if at_odds else ""
                self.notes.append(f"{again:,} {where} rows repeat the text of an earlier one{odd}: {done}")
            if drop:
                sets[name] = list(first.values())
        leaks = [example for example in sets[TRAIN] if _key(example) in held]
        if leaks:
            self.notes.append(f"{len(leaks):,} training rows stand in validation too: {done}")
            if drop:
                sets[TRAIN] = [example for example in sets[TRAIN] if _key(example) not in held]
        trained = {_key(example) for example in sets[TRAIN]}
        for name in (name for name in sets if name not in (TRAIN, "")):
            shared = sum(_key(example) in trained for example in sets[name])
            if shared:
                self.notes.append(f"{shared:,} rows of eval.sets.{name} stand in the training rows too: kept")
        if self.data.rows is not None:
            self._take(sets, self.data.rows)

    def _take(self, sets: dict[str, list[Example]], wanted: int) -> None:
        if wanted > len(sets[TRAIN]):
            raise UserError(f"data.rows: {wanted:,} is more than the {len(sets[TRAIN]):,} training rows there are")
        ranked = sorted(sets[TRAIN], key=lambda example: hashlib.sha256(f"rows/{example.name}".encode()).digest())
        kept = {example.name for example in ranked[:wanted]}
        sets[TRAIN] = [example for example in sets[TRAIN] if example.name in kept]

    def _write(self, path: Path, name: str, examples: Sequence[Example], digest: Any) -> dict[str, Any]:
        """Tokenise and write a set; returns counts."""
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        numbers = List(Value("int32"))
        writer = ArrowWriter(
            path=str(path), features=Features({"input_ids": numbers, "labels": numbers, "text_bytes": Value("float64")})
        )
        rows = tokens = targets = cut = empty = 0
        where = "training" if name == TRAIN else f"eval.sets.{name}" if name else "validation"
        for start in range(0, len(examples), _ROWS_AT_ONCE):
            self.progress(f"tokenising {where}", start, len(examples))
            for ids, labels, text_bytes, was_cut in self._tokenise(examples[start : start + _ROWS_AT_ONCE]):
                cut += was_cut
                if all(label == IGNORED for label in labels):
                    empty += 1
                    continue
                digest.update(np.array([*ids, -1, *labels, -2], np.int32).tobytes())
                writer.write({"input_ids": ids, "labels": labels, "text_bytes": text_bytes})
                rows, tokens = rows + 1, tokens + len(ids)
                targets += sum(label != IGNORED for label in labels)
        if not rows:
            raise UserError(f"{where}: no row has a target within data.sequence_length={self.data.sequence_length}")
        writer.finalize()
        if cut:
            limit = self.data.sequence_length
            self.notes.append(f"{cut:,} of {len(examples):,} {where} rows are longer than {limit} tokens: cut there")
        if empty:
            self.notes.append(f"{empty:,} {where} rows have no target before that: left out")
        counts = {"rows": rows, "tokens": tokens, "targets": targets, "tokens_per_row": tokens / rows}
        return counts | self._frequencies(where, examples)

    def _frequencies(self, where: str, examples: Sequence[Example]) -> dict[str, Any]:
        """How often each label is, and what its frequency alone would reach."""
        if self.labels is None:
            return {}
        found = Counter(str(example.label) for example in examples)
        shown = ", ".join(f"{found[label]:,} {label}" for label in self.labels[:_LABELS_SHOWN])
        self.notes.append(f"{where}: {shown}{', …' if len(self.labels) > _LABELS_SHOWN else ''}")
        shares = [count / found.total() for count in found.values()]
        return {"majority": max(shares), "label_nats": -sum(share * math.log(share) for share in shares)}

    def _tokenise(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], list[int], float, bool]]:
        """Tokens, labels, bytes of what the labels stand for, and whether the row was cut."""
        limit = self.data.sequence_length
        if self.labels is not None:
            texts = [example.text for example in examples]
            plain = {"return_attention_mask": False, "verbose": False}
            lengths = [len(ids) for ids in self.tokenizer(texts, **plain)["input_ids"]]
            cut = self.tokenizer(texts, **plain, truncation=True, max_length=limit)["input_ids"]
            for example, ids, length in zip(examples, cut, lengths, strict=True):
                yield ids, [self.labels.index(str(example.label))], 0.0, length > limit
            return
        for example in examples:
            try:
                text, answers = render(example.messages, self.tokenizer)
            except ValueError as problem:
                raise UserError(f"data.tokenizer: {problem}") from None
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
            # a row of n inputs has n targets: one token more than sequence_length
            labels = [token if _in(span, answers) else IGNORED for token, span in zip(ids, spans, strict=True)]
            kept = [span for span, label in zip(spans[1 : limit + 1], labels[1 : limit + 1], strict=True) if label >= 0]
            size = sum(len(text[start:end].encode()) for start, end in kept)
            yield ids[: limit + 1], [IGNORED, *labels[1 : limit + 1]], float(size), len(ids) > limit + 1


def _in(span: tuple[int, int], answers: Sequence[tuple[int, int]]) -> bool:
    """Whether a token ends inside an answer: one that straddles its beginning is part of what has to be said."""
    start, end = span
    return start < end and any(first < end <= last for first, last in answers)


def _key(example: Example) -> str:
    """What makes two rows one: the same words, whatever their case and spaces."""
    return " ".join(example.text.casefold().split())
