"""What happened to the batch in a run, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from hfbsz.recipe.amounts import short
from hfbsz.records.noise import noise_of
from hfbsz.records.run_data import TOKENS, RunData, is_number

_BATCH = "batch/global"
_CHANGES_SHOWN = 6


def batch_story(run: RunData) -> str:
    """Sentences about the batches of a run and the noise scale that it measured; empty if no step was recorded."""
    changes = _changes(run.records)
    if not changes:
        return ""
    first, *later = changes
    if later:
        shown = [f"{batch:,} after {short(tokens)} tokens" for tokens, batch in later]
        if len(shown) > _CHANGES_SHOWN:
            shown = [*shown[: _CHANGES_SHOWN - 2], "…", shown[-1]]
        story = f"The batch began at {first[1]:,} sequences and became {', '.join(shown)}."
    else:
        story = f"The batch was {first[1]:,} sequences in every step."
    noise = noise_of(run.records)
    return story if noise is None else f"{story} The noise scale at the end was {noise.shown}: {noise.verdict}."


def _changes(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """(tokens seen before it, batch in sequences) of the first batch and of every change that is recorded."""
    changes: list[tuple[float, int]] = []
    before = 0.0
    for record in records:
        batch, tokens = record.get(_BATCH), record.get(TOKENS)
        if not is_number(batch) or not is_number(tokens):
            continue
        if not changes or changes[-1][1] != int(batch):
            changes.append((before, int(batch)))
        before = tokens
    return changes
