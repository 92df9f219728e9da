"""Batch-size ramps: the syntax of `batch.ramp`, how the batch grows during a run."""

import math
from dataclasses import dataclass

from hfbsz.recipe.amounts import Amount


@dataclass(frozen=True)
class Ramp:
    """A parsed `batch.ramp`.

    `kind` is one of:
    - staged: `points` are (threshold, batch in sequences); the batch changes at each threshold;
    - linear, doubling: the batch grows over `span` of the run; `ends` are the first and last batch of a linear ramp, in
      sequences, if it sets them;
    - seesaw: the batch is multiplied by `cut` where the schedule would divide the learning rate by it;
    - noise: the batch doubles where it is at most `share` of the noise scale that the run measures;
    - critical: the batch doubles where it is at most the critical batch, linear between `points` of (clock, critical
      batch in sequences), which were measured before.
    """

    kind: str
    points: tuple[tuple[Amount, float], ...] = ()
    span: Amount | None = None
    ends: tuple[float, float] | None = None
    cut: float = 0
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Ramp":
        """Parse `0:16 200ktok:32`, `doubling:75%`, `linear:50%`, `linear:8,64,50%`, `seesaw:2`, `noise`, `noise:0.5`
        or `critical:0:24 400ktok:60`.

        Raises ValueError for anything else.
        """
        kind, _, rest = str(text).strip().partition(":")
        try:
            if kind == "doubling":
                return cls("doubling", span=Amount.parse(rest))
            if kind == "linear":
                *ends, span = rest.split(",")
                if len(ends) not in (0, 2):
                    raise ValueError("linear takes an amount, or first,last,amount")
                return cls("linear", span=Amount.parse(span), ends=(float(ends[0]), float(ends[1])) if ends else None)
            if kind == "seesaw":
                if float(rest) <= 1:
                    raise ValueError("the factor of seesaw must be above 1")
                return cls("seesaw", cut=float(rest))
            if kind == "noise":
                share = float(rest or 1)
                if not 0 < share < math.inf:
                    raise ValueError("the share of the noise scale must be above 0")
                return cls("noise", share=share)
            if kind == "critical":
                points = tuple(_point(word) for word in rest.split())
                if not points or points[0][0].value != 0 or any(batch <= 0 for _, batch in points):
                    raise ValueError("the first clock must be 0, and critical batches must be above 0")
                return cls("critical", points=points)
            points = tuple(_point(word) for word in str(text).split())
            if not points or points[0][0].value != 0:
                raise ValueError("the first threshold must be 0")
            return cls("staged", points=points)
        except (ValueError, TypeError) as problem:
            raise ValueError(
                f"{text!r} is not a ramp ({problem}); write '0:16 200ktok:32', 'doubling:75%', 'linear:50%', "
                "'linear:8,64,50%', 'seesaw:2', 'noise' or 'critical:0:24 400ktok:60'"
            ) from None


def _point(word: str) -> tuple[Amount, float]:
    threshold, colon, batch = word.partition(":")
    if not colon:
        raise ValueError(f"{word!r} has no ':'")
    if not float(batch).is_integer():
        raise ValueError(f"{batch!r} is not a whole number of sequences")
    return (Amount(0, "sequences") if threshold == "0" else Amount.parse(threshold)), float(batch)
