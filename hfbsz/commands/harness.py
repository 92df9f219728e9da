"""Score runs on tasks of lm-evaluation-harness (pip install 'hfbsz[harness]').

    hfbsz harness RUN [RUN …] [tasks=NAME,…] [limit=N] [batch_size=8] [format=text|json]

RUN: the folder of a run with a saved model, or of a checkpoint in one. The scores are added to the records of the run,
and its page is drawn again; `hfbsz sync RUN` sends them to W&B. Scores that are there already are not added again.

tasks: names of tasks, or paths of YAML task files, which may run code on this machine (default: those of the run's
recipe, else python_next_line, which needs no network: the next line of the standard library's source among four, from
sections that no run over it trains on). limit: examples of each task, the first ones (default: all). batch_size:
sequences of a forward pass.
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.commands.options import run_folders, wants_json, whole_number
from hfbsz.display import one_line, visible
from hfbsz.errors import MISUSED, UserError, exit_code
from hfbsz.recipe.words import split_options
from hfbsz.run.cli import asks_for_help
from hfbsz.system.command_name import command_name
from hfbsz.system.extras import require

if TYPE_CHECKING:
    from hfbsz.records.harness import Score

_OPTIONS = ("tasks", "limit", "batch_size", "format")


def main(words: list[str]) -> int:
    """Score the runs and print the scores; returns the exit code."""
    if asks_for_help(words) or not words:
        print(__doc__.strip())
        return 0 if words else MISUSED
    options, paths = split_options(words, _OPTIONS)
    return exit_code(partial(_harness, options, paths), "interrupted: runs that were not scored have no new records")


def _harness(options: Mapping[str, str], words: list[str]) -> None:
    is_text = not wants_json(options)
    limit, batch_size = whole_number(options, "limit"), whole_number(options, "batch_size") or 8
    tasks = [task.strip() for task in options["tasks"].split(",")] if "tasks" in options else None
    if tasks is not None and not all(tasks):
        raise UserError(f"tasks={options['tasks']}: a name is empty: separate names by commas")
    paths = run_folders("harness", words)
    require(command_name("harness"), "lm_eval", "harness")
    from hfbsz.report.console import Console
    from hfbsz.run.scores import score_saved  # imports torch: only once the words are checked

    results: dict[str, list[Score]] = {}
    with Console() if is_text else nullcontext() as console:
        show = console.work if console is not None else lambda *_: None
        for path in paths:
            results[str(path)] = score_saved(path, tasks, limit, batch_size, show)
            if console is not None:
                console.end_work()
                print(visible("\n".join(_lines(path, results[str(path)]))))
    if not is_text:
        print(json.dumps({path: [asdict(one) for one in found] for path, found in results.items()}, indent=1))


def _lines(path: Path, found: list[Any]) -> list[str]:
    rows = [
        f"  {one_line(score.task):<28} {score.heading:<22} {score.shown:<20} {score.examples or '–':>8} examples"
        for score in found
    ]
    return [f"{one_line(str(path))}, weights of step {found[0].step:,}" if found else one_line(str(path)), *rows]
