"""Labels of a classification: which values are classes, their order, and a stratified split."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from hfbsz.data.sources.texts import is_missing
from hfbsz.display import command
from hfbsz.errors import UserError

_MISSING = {"nan", "NaN", "NAN", "null", "NULL", "<NA>"}  # how tables write a missing value
_MAX_CLASSES = 1000
_MAX_FRACTIONS = 20  # distinct labels that are fractions, such as half stars
_MAX_DISTANCE = 0.1  # total variation distance of the label shares of two sets; above it, a note if significant
_SIGNIFICANCE = 1e-3  # p-value of the chi-squared test


class SkippedRow(Exception):
    """A row without a label or text: it is left out, and counted by this reason."""


def class_of(value: Any) -> str:
    """The class of a value of the label column: its text without surrounding white space; 2.0 is `2`.

    Raises SkippedRow for null, NaN and empty text, and ValueError for a list or mapping (several labels).
    """
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise SkippedRow("no label")
    if isinstance(value, str) and value.strip() in _MISSING:
        raise SkippedRow(f"the label is {value.strip()!r}")
    if isinstance(value, list | tuple | set | Mapping):
        raise ValueError(
            f"the label is a {type(value).__name__}, {value!r}: a row must have one class, several labels per row are "
            "not supported: make a column of one label"
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # integer columns with missing values become float columns
    return str(value).strip()


def as_number(label: str) -> float | None:
    """A label as a number; None if it is not a finite number."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def order_labels(
    labels: Iterable[str],
    configured: Sequence[str] | None,
    model_labels: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> list[str]:
    """All labels in the order of their class numbers: those of data.labels, else the model's or else the data set's if
    they include all `labels`, else `labels` sorted (as numbers if all are)."""
    if configured:
        return list(configured)
    distinct = set(labels)
    for known in (model_labels, class_names):
        if known and distinct <= set(known):
            return list(known)
    numbers = {label: as_number(label) for label in distinct}
    if all(number is not None for number in numbers.values()):
        return sorted(distinct, key=lambda label: (numbers[label], label))
    return sorted(distinct)


def check_classes(counts: Counter[str], configured: Sequence[str] | None, column: str, part: str = "data") -> None:
    """Raise UserError if the values of the label column (`counts`: rows of each) cannot be classes: only one value, or
    more than 1,000; numbers to predict; or −1 beside 0, since −1 stands for no label in many data sets."""
    if len(counts) < 2:
        rows = f"all {counts.total():,} rows have the label {next(iter(counts))!r}" if counts else "no row has a label"
        raise UserError(f"{part}.label: {rows}: there is nothing to classify")
    if len(counts) > _MAX_CLASSES:
        raise UserError(f"{part}.label: {len(counts):,} different labels: is {column!r} the right column?")
    numbers = [as_number(label) for label in counts]
    fractions = [number for number in numbers if number is not None and not number.is_integer()]
    if fractions and len(fractions) > _MAX_FRACTIONS and None not in numbers:
        raise UserError(
            f"{part}.label: {len(counts):,} different numbers in column {column!r}, such as {fractions[0]:g}: values "
            "to predict, not classes: name a column of classes"
        )
    if not configured and {"-1", "0"} <= counts.keys():
        listed = ",".join(order_labels(counts, None, None, None))
        raise UserError(
            f"{part}.label: {counts['-1']:,} rows have the label -1, which stands for no label in many data sets: "
            f"{command(f'{part}.skip.{column}=-1')} leaves them out, {command(f'{part}.labels=[{listed}]')} makes it a "
            "class"
        )


def stratified(labels: Sequence[Hashable], names: Sequence[str], share: float) -> set[int]:
    """Indices of the rows that are held out: `share` of every class, as nearly as integers allow, namely the rows with
    the lowest hashes of their names. Every class keeps at least one row for training."""
    by_class: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        by_class[label].append(index)
    hashes = [_hash(name) for name in names]
    counts = {label: int(share * len(indices)) for label, indices in by_class.items()}
    for indices in by_class.values():
        indices.sort(key=lambda index: hashes[index])
    missing = round(share * len(labels)) - sum(counts.values())
    by_remainder = sorted(
        by_class, key=lambda label: (counts[label] - share * len(by_class[label]), hashes[by_class[label][0]])
    )
    for label in [label for label in by_remainder if len(by_class[label]) > counts[label] + 1][: max(0, missing)]:
        counts[label] += 1
    return {index for label, indices in by_class.items() for index in indices[: counts[label]]}


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def share_notes(training: Iterable[str], validation: Iterable[str]) -> list[str]:
    """Notes on the labels of two sets: a class that one of them lacks, only one class, or different shares."""
    trained, held_out = Counter(training), Counter(validation)
    notes = []
    if unseen := [label for label in held_out if label not in trained]:
        notes.append(
            f"{_listed(unseen)} only in validation: no training row has {'it' if len(unseen) == 1 else 'them'}"
        )
    if len(held_out) == 1 and len(trained) > 1:
        notes.append(f"every validation row has the label {next(iter(held_out))!r}: its accuracy is not informative")
    elif absent := [label for label in trained if label not in held_out]:
        notes.append(f"{_listed(absent)} in no validation row")
    labels = list({**trained, **held_out})
    shares = {label: (trained[label] / trained.total(), held_out[label] / held_out.total()) for label in labels}
    distance = sum(abs(one - other) for one, other in shares.values()) / 2
    if (
        distance > _MAX_DISTANCE
        and len(labels) > 1
        and _differs([trained[label] for label in labels], [held_out[label] for label in labels])
    ):
        widest = max(labels, key=lambda label: abs(shares[label][0] - shares[label][1]))
        in_training, in_validation = shares[widest]
        notes.append(
            f"the shares of labels differ between validation and training: {widest!r} is {in_validation:.0%} of "
            f"validation, {in_training:.0%} of training"
        )
    return notes


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:6])) + (", …" if len(labels) > 6 else "")
    return f"{len(labels):,} label{'s'[: len(labels) > 1]} ({shown}) {'is' if len(labels) == 1 else 'are'}"


def _differs(first: list[int], second: list[int]) -> bool:
    """Whether the label counts of two sets differ significantly (chi-squared test)."""
    from scipy.stats import chi2_contingency

    return bool(chi2_contingency([first, second]).pvalue < _SIGNIFICANCE)
