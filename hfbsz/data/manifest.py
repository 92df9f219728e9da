"""Metadata of prepared rows, cached with them: counts of every set, labels, columns, notes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

TRAIN, VALIDATION = "train/", "validation/"  # names of sources, reserved: no further evaluation set can have them


@dataclass(frozen=True)
class SetCounts:
    """Counts of one set of rows. None: not defined for this kind of rows."""

    rows: int
    tokens: int
    tokens_per_row: float  # mean inputs of a row
    documents: int | None = None  # of a corpus; so is `bytes` (UTF-8)
    bytes: int | None = None
    unigram_bits_per_byte: float | None = None  # of an evaluation set, under the training set's token frequencies
    targets: int | None = None  # of a fine-tuning task
    majority: float | None = None  # of a classification: the share of the most frequent label
    label_nats: float | None = None  # and the entropy of the label frequencies, in nats


@dataclass(frozen=True)
class Manifest:
    """The metadata of an entry of the token cache."""

    train: SetCounts
    validation: SetCounts
    sets: Mapping[str, SetCounts]  # further evaluation sets, by name, in the order of their files
    vocab_size: int
    data_hash: str  # SHA-256 of the training and validation tokens
    notes: tuple[str, ...]
    columns: tuple[str, ...]  # read from the source
    unused_columns: tuple[str, ...]
    labels: tuple[str, ...] | None = None  # of a classification, in the order of their ids
    end_token: str | None = None  # of conversations: the learned token that ends an answer
    end_ids: tuple[int, ...] | None = None  # of conversations: ids of the tokens that end a generation; None: a corpus

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_dict`. Raises TypeError or KeyError for invalid data."""
        sets = {name: SetCounts(**counts) for name, counts in data["sets"].items()}
        lists = ("notes", "columns", "unused_columns", "labels", "end_ids")
        tuples = {name: None if data[name] is None else tuple(data[name]) for name in lists}
        counts = {name: SetCounts(**data[name]) for name in ("train", "validation")}
        return cls(**{**data, **tuples, **counts, "sets": sets})
