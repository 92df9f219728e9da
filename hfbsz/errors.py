"""The one way in which hfbsz says that something given to it is wrong."""

import os
import sys
import time
from collections.abc import Iterable

from hfbsz.display import one_line

FAILED, MISUSED, INTERRUPTED = 1, 2, 130  # exit codes; 0: finished
_alone = False  # this process is no rank, whatever the environment says


class UserError(Exception):
    """Input that cannot be used: every line says what is wrong, where, and what would be right."""

    def __init__(self, lines: str | Iterable[str]) -> None:
        self.lines: tuple[str, ...] = tuple(map(one_line, (lines,) if isinstance(lines, str) else lines))
        super().__init__("\n".join(self.lines))


class LaunchError(UserError):
    """An environment that says wrongly which process this is: told whichever rank it names."""


class TrainingError(UserError):
    """A run that cannot go on: a window without targets, or non-finite gradients step after step."""


class Diverged(TrainingError):
    """A run whose weights, gradients or last evaluation are not finite: there is no model to save."""


class RankError(UserError):
    """What one rank alone has met: it says so itself and leaves, and its leaving ends the others."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def complain(lines: Iterable[str], code: int = MISUSED, everywhere: bool = False) -> int:
    """Say what is wrong, on rank 0 alone or on this rank, whichever it is, and return the exit code."""
    if rank() == 0 or everywhere:
        where = f"rank {rank()}: " if everywhere and number_of("WORLD_SIZE", 1) > 1 else ""
        print("\n".join(f"error: {where}{one_line(line)}" for line in lines), file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # the launcher ends all ranks once one has left: rank 0 speaks first
    return code


def rank() -> int:
    """This process's rank, known before torch is."""
    return 0 if _alone else number_of("RANK", 0)


def one_process() -> None:
    """Say that this script is one process: a stray RANK does not silence it."""
    global _alone
    _alone = True


def number_of(name: str, default: int) -> int:
    """A whole number of the environment; `default` where there is none that can be read (`launch` refuses that)."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def described(problem: BaseException) -> str:
    """What ended a run, in a line: the lines of a UserError, else the type of the exception and what it says."""
    if isinstance(problem, UserError):
        return "; ".join(problem.lines)
    name, said = type(problem).__name__, one_line(" ".join(str(problem).split()))
    if isinstance(problem, SystemExit):
        return f"SystemExit: a library ended the process with exit code {said or 0}"
    if isinstance(problem, KeyboardInterrupt):
        return said or "interrupted"
    if said:
        return f"{name}: {said}"
    place = problem.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({place.tb_frame.f_code.co_filename}, line {place.tb_lineno})" if place is not None else ""
    return f"{name}{where}"
