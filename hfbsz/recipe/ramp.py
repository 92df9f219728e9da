"""Batch-size ramps: the syntax of `batch.ramp`, how the batch grows during a run."""

from dataclasses import dataclass

from hfbsz.recipe.amounts import Amount


@dataclass(frozen=True)
class Ramp:
    """A parsed `batch.ramp`.

    `kind` is one of:
    - staged: `points` are (threshold, batch in sequences); the batch changes at each threshold;
    - linear, doubling: the batch grows over `span` of the run; `ends` are the first and last batch of a linear ramp, in
      sequences, if it sets them;
    - seesaw: the batch is multiplied by `cut` where the schedule would divide the learning rate by it.
    """

    kind: str
    points: tuple[tuple[Amount, float], ...] = ()
    span: Amount | None = None
    ends: tuple[float, float] | None = None
    cut: float = 0

    @classmethod
    def parse(cls, text: str) -> "Ramp":
        """Parse `0:16 200ktok:32`, `doubling:75%`, `linear:50%`, `linear:8,64,50%` or `seesaw:2`.

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
            points = tuple(_point(word) for word in str(text).split())
            if not points or points[0][0].value != 0:
                raise ValueError("the first threshold must be 0")
            return cls("staged", points=points)
        except (ValueError, TypeError) as problem:
            raise ValueError(
                f"{text!r} is not a ramp ({problem}); write '0:16 200ktok:32', 'doubling:75%', 'linear:50%', "
                "'linear:8,64,50%' or 'seesaw:2'"
            ) from None


def _point(word: str) -> tuple[Amount, float]:
    threshold, colon, batch = word.partition(":")
    if not colon:
        raise ValueError(f"{word!r} has no ':'")
    if not float(batch).is_integer():
        raise ValueError(f"{batch!r} is not a whole number of sequences")
    return (Amount(0, "sequences") if threshold == "0" else Amount.parse(threshold)), float(batch)
