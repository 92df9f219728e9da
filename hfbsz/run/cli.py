"""The command line of the training scripts: parses the arguments, runs the job, and reports errors in one line each.

Exit codes: 0 finished, 1 failed, 2 invalid input, 130 stopped by a signal after a step, with a checkpoint.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from hfbsz.display import one_line, visible
from hfbsz.errors import (
    INTERRUPTED,
    MISUSED,
    LaunchError,
    UserError,
    complain,
    describe_error,
    ignore_rank,
    number_of,
    rank,
)
from hfbsz.plan.resolve import check
from hfbsz.recipe.load import LoadedRecipe, load
from hfbsz.recipe.presets import list_recipes
from hfbsz.recipe.schema import help_text
from hfbsz.system.command_name import command_name
from hfbsz.system.launcher import check_launch
from hfbsz.system.signals import Interrupt
from hfbsz.system.streams import leave, make_lasting


def _die_with_the_launcher() -> None:
    """Have Linux send SIGTERM when the launcher dies: accelerate's launcher does not end its single child."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def entry(job: str) -> None:
    """Run the script `job` with the arguments of this process, and exit with its exit code."""
    make_lasting()
    leave(_run_job(job, sys.argv[1:]))


def _run_job(job: str, words: Sequence[str]) -> int:
    interrupt = Interrupt()
    _die_with_the_launcher()
    try:
        check_launch(os.environ)
        loaded = read_words(command_name(job), words)
        if loaded is None:
            return 0 if asks_for_help(words) else MISUSED
        check(loaded.recipe, number_of("WORLD_SIZE", 1))
        from hfbsz.run.session import run  # imports torch: only once the recipe is valid

        return run(loaded, job, interrupt)
    except LaunchError as problem:
        ignore_rank()
        return complain(problem.lines)
    except UserError as problem:
        return complain(problem.lines)
    except KeyboardInterrupt as problem:
        return complain([describe_error(problem)], INTERRUPTED)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether --help or -h is among the arguments."""
    return bool({"--help", "-h"} & set(words))


def read_words(command: str, words: Sequence[str]) -> LoadedRecipe | None:
    """Load the recipe that the arguments describe. If they ask for help or name no recipe, print the usage and return
    None. Raises UserError for invalid arguments."""
    help_requested = asks_for_help(words)
    loaded = load([word for word in words if word not in ("--help", "-h")])
    if not help_requested and any(word.lstrip("-").startswith("recipe=") for word in words):
        return loaded
    if rank() == 0:
        print(f"usage: {command} recipe=NAME [model=PRESET] [data=PRESET] [key.path=value …]\n\nrecipes:")
        print("\n".join(f"  {one_line(name):<24} {one_line(line)}" for name, line in list_recipes()))
        print(f"\nfields:\n{visible(help_text(loaded))}" if help_requested else "\n--help lists every field")
    return None
