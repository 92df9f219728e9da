"""Amounts with a unit: `1.2M tokens`, `512 sequences`, `300 steps`, `2 epochs`, `1%`, or short `1.2Mtok`, `512seq`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = {
    "tokens": ("tokens", "token", "tok"),
    "sequences": ("sequences", "sequence", "seq"),
    "steps": ("steps", "step"),
    "epochs": ("epochs", "epoch"),
    "%": ("%",),
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names}
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kKMBGT]?)"
PATTERN = rf"\s*{_NUMBER}\s*([A-Za-z%]+)\s*"
_TIMES = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}  # seconds


@dataclass(frozen=True)
class Amount:
    """An amount of training with its unit: tokens, sequences, steps, epochs, or % (of the run or of a data set)."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object) -> "Amount":
        """Parse an amount; raises ValueError for a number without a unit, a negative or an infinite one."""
        if isinstance(text, Amount):
            return text
        match = re.fullmatch(PATTERN, str(text))
        if match is None or match[3] not in _UNIT_OF:
            raise ValueError(
                f"{text!r} is not an amount; write a number and a unit, "
                "such as '1.2M tokens', '64 sequences', '300 steps', '2 epochs' or '5%'"
            )
        value = float(match[1]) * _FACTORS[match[2]]
        if not math.isfinite(value):
            raise ValueError(f"{text!r} is too large for an amount")
        if value < 0:
            raise ValueError(f"{text!r} is negative; an amount is 0 or more")
        return cls(value, _UNIT_OF[match[3]])

    def sequences(
        self, *, total: float | None = None, rows: int | None = None, tokens_per_row: float | None = None
    ) -> float:
        """Convert the amount to sequences.

        `total` is the number of sequences that 100% stands for, `rows` the number of sequences in an epoch, and
        `tokens_per_row` the (mean) number of tokens in a sequence. Raises LookupError if the one that is needed is
        None, and ValueError for steps, which have no fixed number of sequences.
        """
        if self.unit == "sequences":
            return self.value
        if self.unit == "steps":
            raise ValueError(f"'{self}' counts steps, whose size changes with the batch: use tokens, sequences or %")
        name, size = {
            "tokens": ("the tokens of a row", 1 / tokens_per_row if tokens_per_row else None),
            "epochs": ("the number of rows", rows),
            "%": ("the length of the run", None if total is None else total / 100),
        }[self.unit]
        if size is None:
            raise LookupError(f"'{self}' needs {name}")
        return self.value * size

    def __str__(self) -> str:
        return f"{self.value:.12g}%" if self.unit == "%" else f"{self.value:.12g} {self.unit}"


def parse_number(text: str) -> float:
    """A number that may have a factor, such as `64`, `1e-3` or `1.2M`; raises ValueError for any other text."""
    match = re.fullmatch(rf"\s*{_NUMBER}\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a number, such as 64, 1e-3 or 1.2M")
    return float(match[1]) * _FACTORS[match[2]]


def parse_seconds(text: str) -> float:
    """A time such as `40min`, `2h` or `3d` in seconds; raises ValueError for any other text, and below 0."""
    match = re.fullmatch(rf"\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*({'|'.join(_TIMES)})\s*", text)
    if match is None or not math.isfinite(seconds := float(match[1]) * _TIMES[match[2]]):
        raise ValueError(f"{text!r} is not a time: write 40min, 2h or 3d")
    return seconds


def duration(seconds: float) -> str:
    """A time as people read it: 41 s, 12.5 min, 3.2 h, 14 d."""
    unit, size = unit_of(seconds)
    value = seconds / size
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def unit_of(seconds: float) -> tuple[str, float]:
    """The largest unit of which a time has at least two, and its seconds."""
    return next(((unit, size) for unit, size in _TIMES.items() if seconds >= 2 * size), ("s", 1.0))


def counted(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless it is 1: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def short(value: float) -> str:
    """A count with three significant digits and a suffix: 950, 9,500, 12.4k, 1.2M, 3.07B."""
    for factor, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= factor * (10 if factor == 10**3 else 1):
            return f"{value / factor:.3g}{suffix}"
    return f"{value:,.0f}"


def sized(value: float) -> str:
    """A number of three digits for people: `79.5`, `3,520`, `unbounded`."""
    return "unbounded" if math.isinf(value) else f"{float(f'{value:.3g}'):,g}"


def shown_batches(batches: Sequence[int]) -> str:
    """The batches of a run: `64`, or `8 → 64`."""
    first, last = batches[0], max(batches)
    return f"{first:,}" if first == last else f"{first:,} → {last:,}"
