"""Upload records of runs that are missing on Weights & Biases: of offline runs, or after failed uploads.

    hfbsz sync RUN [RUN …] [to=wandb|trackio|tensorboard]

RUN: the folder of a run that has ended. Records that are there already are not sent again. to: where to (default: W&B);
Trackio's local database and the TensorBoard events in the run's folder are written without a network.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hfbsz.errors import UserError, exit_code
from hfbsz.recipe.words import split_options


def main(words: list[str]) -> int:
    """Upload the missing records; returns the exit code."""
    if "--help" in words or not words:
        print(__doc__.strip(), file=sys.stdout if "--help" in words else sys.stderr)
        return 0 if "--help" in words else 2
    options, paths = split_options(words, ("to",))
    work = partial(_send, [Path(path) for path in paths], options.get("to", "wandb"))
    return exit_code(work, "interrupted: the same command resumes from there")


def _send(folders: Sequence[Path], target: str) -> None:
    from hfbsz.report.console import Console
    from hfbsz.report.trackers.open import NAMES, send
    from hfbsz.report.wandb.sync import sync

    if target not in ("wandb", *NAMES):
        raise UserError(f"to={target}: must be wandb, {' or '.join(NAMES)}")
    if not folders:
        raise UserError("name at least one run: hfbsz sync RUN [RUN …]")
    with Console() as console:
        if target == "wandb":
            sync(folders, console.work, console.line)
        else:
            for folder in folders:
                console.line(f"{folder}: {NAMES[target]} holds all {send(folder, target):,} rows")
