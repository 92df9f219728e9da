"""How much of its data a run takes: a stream, and a large corpus, are prepared only that far."""

import math
from dataclasses import dataclass

from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import MUCH_MORE, SMALL_CORPUS, Recipe, Schedule

BYTES_PER_TOKEN = 4  # of text, about
_RESERVE = 16 * 2**20  # bytes of text that are prepared of a larger corpus at least
_MANY = 20_000  # rows of a task whose preparation takes long


@dataclass(frozen=True)
class Needed:
    """Training rows of a run; where ragged rows are budgeted in tokens, as many as hold that many input tokens."""

    sequences: int
    tokens: int | None = None


def needed_by(recipe: Recipe, parameters: int | None = None) -> Needed | None:
    """What a recipe's budget takes of its data, one batch of overshoot included; None where all of it is needed.

    The same on any number of processes. `parameters`: what a scaling law may ask for. Raises UserError for a stream
    with a budget in epochs, and for what the plan refuses of a stream.
    """
    data, duration = recipe.data, recipe.duration
    if data.stream is False or (duration.unit == "epochs" and not data.stream):
        return None
    if duration.unit == "epochs":
        raise UserError(
            f"duration: '{duration}' of a stream is not known before it is read to its end: write tokens, sequences "
            "or steps, or data.stream=false"
        )
    if not data.pack:  # steps of warmup weigh against rows whose mean length is not known yet
        recipe = recipe.model_copy(update={"schedule": Schedule(warmup=Amount(0, "%"), shape="constant")})
    try:
        plan = resolve(recipe, 1, Facts(tokens_per_row=float(data.sequence_length), parameters=parameters))
    except UserError:
        if data.stream:
            raise
        return None  # a number of the plan follows from the rows, or the plan is refused once they are known
    sequences = plan.total + plan.largest_batch
    size = recipe.batch.size
    batch_in_tokens = isinstance(size, Amount) and size.unit == "tokens"
    in_tokens = duration.unit == "tokens" or (duration.unit == "steps" and batch_in_tokens)
    return Needed(sequences, sequences * data.sequence_length if in_tokens and not data.pack else None)


def enough_of(needed: Needed | None, text_bytes: int, length: int, streamed: bool | None) -> Needed | None:
    """How far a corpus of `text_bytes` is prepared for rows of `length` tokens; None: to its end.

    A stream that is asked for: as far as it is needed. Without being asked, a corpus that holds many times as much: a
    power of two of rows, so that runs of like budgets have the same rows.
    """
    if needed is None or streamed:
        return needed
    per_row = BYTES_PER_TOKEN * length
    if text_bytes <= max(SMALL_CORPUS, MUCH_MORE * needed.sequences * per_row):
        return None
    rows = max(needed.sequences, math.ceil(_RESERVE / per_row))
    rows = 2 ** math.ceil(math.log2(rows))
    return Needed(rows, None if needed.tokens is None else rows * length)


def surplus(needed: Needed | None, rows: int) -> list[str]:
    """What is to be told of training rows of a fine-tuning task, of which the run takes few."""
    if needed is None or rows <= max(_MANY, MUCH_MORE * needed.sequences):
        return []
    return [
        f"all {rows:,} training rows were prepared, of which the run takes {needed.sequences:,} at most, for labels, "
        f"groups and duplicates are those of all: data.rows={needed.sequences} keeps no more"
    ]
