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
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    work = partial(_harness, options, [Path(path) for path in paths])
    return exit_code(work, "interrupted: runs that were not scored have no new records")


def _harness(options: Mapping[str, str], paths: list[Path]) -> None:
    if options.get("format", "text") not in ("text", "json"):
        raise UserError(f"format={options['format']}: neither text nor json")
    limit, batch_size = _number(options, "limit"), _number(options, "batch_size") or 8
    tasks = [task.strip() for task in options["tasks"].split(",")] if "tasks" in options else None
    if tasks is not None and not all(tasks):
        raise UserError(f"tasks={options['tasks']}: a name is empty: separate names by commas")
    if not paths:
        raise UserError("name at least one run: hfbsz harness RUN [RUN …]")
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder: name the folder of a run, or of a checkpoint in one")
    require(command_name("harness"), "lm_eval", "harness")
    from hfbsz.report.console import Console
    from hfbsz.run.scores import score_saved  # imports torch: only once the words are checked

    console = Console() if options.get("format") != "json" else None
    results: dict[str, list[Score]] = {}
    for path in paths:

        def show(what: str, done: int, total: int) -> None:
            if console is not None:
                console.work(what, done, total)

        results[str(path)] = score_saved(path, tasks, limit, batch_size, show)
        if console is not None:
            console.end_work()
            print(visible("\n".join(_lines(path, results[str(path)]))))
    if console is None:
        print(json.dumps({path: [asdict(one) for one in found] for path, found in results.items()}, indent=1))


def _number(options: Mapping[str, str], name: str) -> int | None:
    text = options.get(name)
    if text is not None and not (text.isascii() and text.isdigit() and int(text)):
        raise UserError(f"{name}={text}: not a whole number above 0")
    return None if text is None else int(text)


def _lines(path: Path, found: list[Any]) -> list[str]:
    rows = [
        f"  {one_line(score.task):<28} {score.heading:<22} {score.shown:<20} {score.examples or '–':>8} examples"
        for score in found
    ]
    return [f"{one_line(str(path))}, weights of step {found[0].step:,}" if found else one_line(str(path)), *rows]
