"""How much of the data a run needs. Streams and large corpora are prepared only that far."""

import math
from dataclasses import dataclass

from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import MUCH_MORE, SMALL_CORPUS, Recipe, Schedule

BYTES_PER_TOKEN = 4  # of text, approximately
_RESERVE = 16 * 2**20  # bytes of text: the minimum that is prepared of a large corpus
_MANY = 20_000  # rows of a fine-tuning task above which preparation is slow


@dataclass(frozen=True)
class Needed:
    """Training data that a run needs."""

    sequences: int  # training rows at least
    tokens: int | None = None  # input tokens at least, for ragged rows with a budget in tokens


def needed_by(recipe: Recipe, parameters: int | None = None) -> Needed | None:
    """The training data that a recipe's budget needs, including one batch of overshoot; None if it needs all data.

    The result does not depend on the number of processes. `parameters` is the model's size, which a scaling law may
    need. Raises UserError for a stream with a budget in epochs, and for a stream whose plan is invalid.
    """
    data, duration = recipe.data, recipe.duration
    if data.stream is False or (duration.unit == "epochs" and not data.stream):
        return None
    if duration.unit == "epochs":
        raise UserError(
            f"duration: '{duration}' of a stream is not known before it is read to its end: use tokens, sequences "
            "or steps, or data.stream=false"
        )
    if not data.pack:  # warmup in steps needs the mean length of rows, which is not known yet
        recipe = recipe.model_copy(update={"schedule": Schedule(warmup=Amount(0, "%"), shape="constant")})
    try:
        plan = resolve(recipe, 1, Facts(tokens_per_row=float(data.sequence_length), parameters=parameters))
    except UserError:
        if data.stream:
            raise
        return None  # the plan depends on the rows, or is refused once they are known
    sequences = plan.total + plan.largest_batch
    size = recipe.batch.size
    batch_in_tokens = isinstance(size, Amount) and size.unit == "tokens"
    in_tokens = duration.unit == "tokens" or (duration.unit == "steps" and batch_in_tokens)
    return Needed(sequences, sequences * data.sequence_length if in_tokens and not data.pack else None)


def enough_of(needed: Needed | None, text_bytes: int, length: int, streamed: bool | None) -> Needed | None:
    """How much of a corpus of `text_bytes` is prepared for rows of `length` tokens; None: all of it.

    `streamed` (data.stream): as much as is needed. Otherwise only a corpus that is many times larger than needed is
    limited, to a power of two of rows, so that runs with similar budgets have the same rows.
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
    """A note if a fine-tuning task has many more training rows than the run needs, else nothing."""
    if needed is None or rows <= max(_MANY, MUCH_MORE * needed.sequences):
        return []
    return [
        f"all {rows:,} training rows were prepared, because labels, groups and duplicates depend on all of them; the "
        f"run needs at most {needed.sequences:,}: data.rows={needed.sequences} keeps only these"
    ]
