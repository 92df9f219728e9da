"""What a plan is worked out from, and how a recipe's amounts become sequences."""

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
        return Ramp.parse(self.recipe.batch.ramp) if self.recipe.batch.ramp else None

    @property
    def tokens_per_row(self) -> float:
        """Mean input tokens of a row."""
        return self.facts.tokens_per_row or float(self.recipe.data.sequence_length)

    def sequences(self, amount: Amount, total: float | None = None) -> float:
        """An amount in sequences; `total` (sequences) is what a % is of. Raises LookupError for an unknown fact, and
        ValueError for steps."""
        return amount.sequences(total=total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)

    def amount_problems(self, field: str, amount: Amount, total: float | None = None) -> Iterator[str]:
        """Why `sequences` cannot convert the amount of a field."""
        try:
            self.sequences(amount, total)
        except (LookupError, ValueError) as problem:
            epochs = ", which is not known before the data is prepared: give train_rows=N"
            yield f"{field}: {problem.args[0]}{epochs if amount.unit == 'epochs' else ''}"


def batch_unit_problems(field: str, amount: Amount, example: str) -> Iterator[str]:
    """Why an amount is not a batch: only sequences and tokens are."""
    if amount.unit not in ("sequences", "tokens"):
        yield f"{field}: '{amount}' is not a batch: write sequences or tokens, such as {example}"


def refuse(problems: Iterable[str]) -> None:
    """Raise UserError with every problem, if there is one."""
    if lines := list(dict.fromkeys(problems)):
        raise UserError(lines)
