"""Upload records of runs that are missing on Weights & Biases: of offline runs, or after failed uploads.

    hfbsz sync RUN [RUN …]

RUN: the folder of a run that has ended. Records that W&B already has are not uploaded again.
"""

import sys
from pathlib import Path

from hfbsz.errors import INTERRUPTED, UserError, complain


def main(words: list[str]) -> int:
    """Upload the missing records; returns the exit code."""
    if "--help" in words or not words:
        print(__doc__.strip(), file=sys.stdout if "--help" in words else sys.stderr)
        return 0 if "--help" in words else 2
    from hfbsz.report.console import Console
    from hfbsz.report.wandb.sync import sync

    console = Console()
    try:
        sync([Path(word) for word in words], console.work, console.line)
    except UserError as problem:
        return complain(problem.lines)
    except KeyboardInterrupt:
        return complain(["interrupted: the same command resumes from there"], INTERRUPTED)
    finally:
        console.end_work()
    return 0
