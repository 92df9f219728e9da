"""How much of a stream a run takes."""

from dataclasses import dataclass

from hfbsz.amounts import Amount
from hfbsz.errors import UserError
from hfbsz.plan import Facts
from hfbsz.recipe import Recipe, Schedule
from hfbsz.resolve import resolve


@dataclass(frozen=True)
class Needed:
    """Training rows of a run; where ragged rows are budgeted in tokens, as many as hold that many input tokens."""

    sequences: int
    tokens: int | None = None


def needed_by(recipe: Recipe, parameters: int | None = None) -> Needed | None:
    """What a recipe's budget takes of its stream, one batch of overshoot included; None where it streams nothing.

    The same on any number of processes. `parameters`: what a scaling law may ask for. Raises UserError for a budget in
    epochs, and for what the plan refuses.
    """
    data, duration = recipe.data, recipe.duration
    if not data.stream:
        return None
    if duration.unit == "epochs":
        raise UserError(
            f"duration: '{duration}' of a stream is not known before it is read to its end: write tokens, sequences "
            "or steps, or data.stream=false"
        )
    if not data.pack:  # steps of warmup weigh against rows whose mean length is not known yet
        recipe = recipe.model_copy(update={"schedule": Schedule(warmup=Amount(0, "%"), shape="constant")})
    plan = resolve(recipe, 1, Facts(tokens_per_row=float(data.sequence_length), parameters=parameters))
    sequences = plan.total + plan.largest_batch
    size = recipe.batch.size
    batch_in_tokens = isinstance(size, Amount) and size.unit == "tokens"
    in_tokens = duration.unit == "tokens" or (duration.unit == "steps" and batch_in_tokens)
    return Needed(sequences, sequences * data.sequence_length if in_tokens and not data.pack else None)
