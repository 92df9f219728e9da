"""Errors, exit codes, and how they are printed."""

import os
import sys
import time
from collections.abc import Callable, Iterable

from hfbsz.display import one_line

FAILED, MISUSED, INTERRUPTED = 1, 2, 130  # exit codes; 0: finished
_single_process = False  # ignore RANK in the environment


class UserError(Exception):
    """Invalid input. Each of its `lines` says what is wrong, where, and what would be right.

    The lines are made safe for display (`one_line`).
    """

    def __init__(self, lines: str | Iterable[str]) -> None:
        self.lines: tuple[str, ...] = tuple(map(one_line, (lines,) if isinstance(lines, str) else lines))
        super().__init__("\n".join(self.lines))


class LaunchError(UserError):
    """Invalid launcher variables in the environment: reported by every process, since RANK cannot be trusted."""


class TrainingError(UserError):
    """A run that cannot continue: a step without targets, or non-finite gradients for several steps in a row."""


class Diverged(TrainingError):
    """A run whose weights, gradients or final evaluation are not finite: there is no model to save."""


class RankError(UserError):
    """An error of a single rank: this rank prints it and exits, and the launcher then ends the others."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word; an empty string if none is close."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def complain(lines: Iterable[str], code: int = MISUSED, everywhere: bool = False) -> int:
    """Print error lines to stderr and return the exit code `code`.

    Only rank 0 prints, unless `everywhere` is true: then this rank does, with its number.
    """
    if rank() == 0 or everywhere:
        prefix = f"rank {rank()}: " if everywhere and number_of("WORLD_SIZE", 1) > 1 else ""
        print("\n".join(f"error: {prefix}{one_line(line)}" for line in lines), file=sys.stderr, flush=True)
    else:
        time.sleep(2)  # the launcher ends all ranks once one has exited: let rank 0 print first
    return code


def exit_code(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run the work of a command, and return its exit code (None: 0). A UserError, a file that cannot be read or
    written, and an interruption are printed as one line each; `interrupted` says what an interruption leaves."""
    try:
        return work() or 0
    except UserError as problem:
        return complain(problem.lines)
    except OSError as problem:
        return complain([describe_file_error(problem)])
    except KeyboardInterrupt:
        return complain([interrupted], INTERRUPTED)


def describe_file_error(problem: OSError) -> str:
    """One line for a file that could not be read or written: its path, if it is known, and why."""
    reason = problem.strerror or str(problem) or type(problem).__name__
    return reason if problem.filename is None else f"{problem.filename}: {reason}"


def rank() -> int:
    """The rank of this process, from the environment; works before torch is imported."""
    return 0 if _single_process else number_of("RANK", 0)


def ignore_rank() -> None:
    """Declare that this is a single process, so that a stray RANK in the environment is ignored."""
    global _single_process
    _single_process = True


def number_of(name: str, default: int) -> int:
    """A whole number from the environment; `default` if it is unset or invalid (`check_launch` reports that)."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def describe_error(problem: BaseException) -> str:
    """One line for the exception that ended a run: the lines of a UserError, or else its type and message.

    An exception without a message is described by the file and line where it was raised.
    """
    if isinstance(problem, UserError):
        return "; ".join(problem.lines)
    name, message = type(problem).__name__, one_line(" ".join(str(problem).split()))
    if isinstance(problem, SystemExit):
        return f"SystemExit: a library ended the process with exit code {message or 0}"
    if isinstance(problem, KeyboardInterrupt):
        return message or "interrupted"
    if message:
        return f"{name}: {message}"
    frame = problem.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    location = f" ({frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno})" if frame is not None else ""
    return f"{name}{location}"
