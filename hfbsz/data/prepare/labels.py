"""Labels of a classification: which values are classes, their order, and a split that keeps their shares."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from hfbsz.data.sources.texts import is_missing
from hfbsz.display import command
from hfbsz.errors import UserError

_NO_NUMBER = {"nan", "NaN", "NAN", "null", "NULL", "<NA>"}  # as tables write a missing value
_MOST_CLASSES = 1000
_MOST_NUMBERS = 20  # classes that are fractions, such as half stars
_FAR = 0.1  # total variation of two sets' label shares that is told of, where it is not chance
_SURE = 1e-3


class NoClass(Exception):
    """A value that is no class: its row is left out, and counted by this reason."""


def class_of(value: Any) -> str:
    """The class that a value of the label column names: text without white space around it, a whole number as such.

    Raises NoClass for null, NaN and empty text, and ValueError for a list or mapping, which are several labels.
    """
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise NoClass("no label")
    if isinstance(value, str) and value.strip() in _NO_NUMBER:
        raise NoClass(f"the label is {value.strip()!r}")
    if isinstance(value, list | tuple | set | Mapping):
        raise ValueError(
            f"the label is a {type(value).__name__}, {value!r}: a row has one class, rows of several labels are not "
            "trained: make a column of one label"
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a table with missing labels turns whole numbers into fractions
    return str(value).strip()


def number_of(label: str) -> float | None:
    """A label as a number; None where it is a word."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def ordered(
    found: Mapping[str, int], asked: Sequence[str] | None, own: Sequence[str] | None, names: Sequence[str] | None
) -> list[str]:
    """The labels in the order of their numbers: as `asked`, else as the model has its `own` where they hold all that
    were found, else as the data set's `names`, else sorted, numbers as numbers."""
    if asked:
        return list(asked)
    for known in (own, names):
        if known and set(found) <= set(known):
            return list(known)
    numbers = {label: number_of(label) for label in found}
    if all(number is not None for number in numbers.values()):
        return sorted(found, key=lambda label: (numbers[label], label))
    return sorted(found)


def check_classes(found: Counter[str], asked: Sequence[str] | None, column: str, part: str = "data") -> None:
    """Raise UserError where the values of the label column are no classes: one alone, thousands, numbers to predict,
    or a −1 beside 0, which stands for no label as often as for a class."""
    if len(found) < 2:
        only = f"all {found.total():,} rows have the label {next(iter(found))!r}" if found else "no row has a label"
        raise UserError(f"{part}.label: {only}: there is nothing to tell apart")
    if len(found) > _MOST_CLASSES:
        raise UserError(f"{part}.label: {len(found):,} different labels: is {column!r} the column meant?")
    numbers = [number_of(label) for label in found]
    fractions = [number for number in numbers if number is not None and not number.is_integer()]
    if fractions and len(fractions) > _MOST_NUMBERS and None not in numbers:
        raise UserError(
            f"{part}.label: {len(found):,} different numbers in column {column!r}, such as {fractions[0]:g}: values to "
            "predict, not classes: name a column of classes"
        )
    if not asked and {"-1", "0"} <= found.keys():
        listed = ",".join(ordered(found, None, None, None))
        raise UserError(
            f"{part}.label: {found['-1']:,} rows have the label -1, which stands for no label in many data sets: "
            f"{command(f'{part}.skip.{column}=-1')} leaves them out, {command(f'{part}.labels=[{listed}]')} makes it a "
            "class"
        )


def stratified(labels: Sequence[Hashable], names: Sequence[str], share: float) -> set[int]:
    """The places of the rows that are held out: `share` of every class, as nearly as whole rows allow, those with the
    lowest hashes of their names; a class keeps at least one row to train on."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    ranks = [_hash(name) for name in names]
    counts = {label: int(share * len(mine)) for label, mine in places.items()}
    for mine in places.values():
        mine.sort(key=lambda place: ranks[place])
    open_ = round(share * len(labels)) - sum(counts.values())
    by_remainder = sorted(
        places, key=lambda label: (counts[label] - share * len(places[label]), ranks[places[label][0]])
    )
    for label in [label for label in by_remainder if len(places[label]) > counts[label] + 1][: max(0, open_)]:
        counts[label] += 1
    return {place for label, mine in places.items() for place in mine[: counts[label]]}


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def share_notes(training: Iterable[str], validation: Iterable[str]) -> list[str]:
    """What is odd about the labels of the two sets: a class that one of them lacks, one class alone, other shares."""
    trained, held = Counter(training), Counter(validation)
    notes = []
    if only := [label for label in held if label not in trained]:
        notes.append(
            f"{_listed(only)} only in validation: no training row teaches {'it' if len(only) == 1 else 'them'}"
        )
    if len(held) == 1 and len(trained) > 1:
        notes.append(f"every validation row has the label {next(iter(held))!r}: its accuracy says little")
    elif absent := [label for label in trained if label not in held]:
        notes.append(f"{_listed(absent)} in no validation row")
    labels = list({**trained, **held})
    far = sum(abs(trained[label] / trained.total() - held[label] / held.total()) for label in labels) / 2
    if (
        far > _FAR
        and len(labels) > 1
        and _not_chance([trained[label] for label in labels], [held[label] for label in labels])
    ):
        widest = max(labels, key=lambda label: abs(trained[label] / trained.total() - held[label] / held.total()))
        notes.append(
            f"the labels of validation have other shares than those of training: {widest!r} is "
            f"{held[widest] / held.total():.0%} of validation, {trained[widest] / trained.total():.0%} of training"
        )
    return notes


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:6])) + (", …" if len(labels) > 6 else "")
    return f"{len(labels):,} label{'s'[: len(labels) > 1]} ({shown}) stand{'s'[: len(labels) == 1]}"


def _not_chance(first: list[int], second: list[int]) -> bool:
    from scipy.stats import chi2_contingency

    return bool(chi2_contingency([first, second]).pvalue < _SURE)
