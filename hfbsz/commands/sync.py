"""Send Weights & Biases what it lacks of runs: of those that were offline, or whose rows did not all arrive.

    hfbsz sync RUN [RUN …]

RUN: the folder of a run that has ended. What W&B has already is not sent again.
"""

import sys
from pathlib import Path

from hfbsz.errors import INTERRUPTED, UserError, complain


def main(words: list[str]) -> int:
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
        return complain(["interrupted: the same command goes on from there"], INTERRUPTED)
    finally:
        console.end_work()
    return 0
