"""The inputs of a plan, and the conversion of a recipe's amounts to sequences."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.ramp import Ramp


@dataclass(frozen=True)
class Given:
    """A recipe, the number of data-parallel processes, and the facts of data and model."""

    recipe: Recipe
    world_size: int
    facts: Facts

    @cached_property
    def ramp(self) -> Ramp | None:
        """The ramp of `batch.ramp`; None if the batch is constant."""
        return Ramp.parse(self.recipe.batch.ramp) if self.recipe.batch.ramp else None

    @property
    def tokens_per_row(self) -> float:
        """The mean number of input tokens in a row: that of the data if it is known, else `data.sequence_length`."""
        return self.facts.tokens_per_row or float(self.recipe.data.sequence_length)

    def sequences(self, amount: Amount, total: float | None = None) -> float:
        """Convert an amount to sequences; `total` is the number of sequences that 100% stands for. Raises LookupError
        if a fact that the conversion needs is unknown, and ValueError for steps."""
        return amount.sequences(total=total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)

    def amount_problems(self, field: str, amount: Amount, total: float | None = None) -> Iterator[str]:
        """The reason why `sequences` cannot convert the amount of a field; yields nothing if it can."""
        try:
            self.sequences(amount, total)
        except (LookupError, ValueError) as problem:
            epochs = ", which is unknown until the data is prepared: set train_rows=N"
            yield f"{field}: {problem.args[0]}{epochs if amount.unit == 'epochs' else ''}"


def batch_unit_problems(field: str, amount: Amount, example: str) -> Iterator[str]:
    """The problem with a batch whose unit is neither sequences nor tokens."""
    if amount.unit not in ("sequences", "tokens"):
        unit = "%" if amount.unit == "%" else f"in {amount.unit}"
        yield f"{field}: '{amount}' is {unit}, but a batch is a number of sequences or tokens: write {example}"


def refuse(problems: Iterable[str]) -> None:
    """Raise UserError with all problems, each once; do nothing if there are none."""
    if lines := list(dict.fromkeys(problems)):
        raise UserError(lines)
