"""Compare batch sizes: train all combinations of lists of values, and report the results.

    hfbsz compare recipe=small_batch batch.size=4seq,16seq,64seq scaling.rule=none,sqrt seed=0,1,2
    hfbsz compare NAME [key.path=a,b …]        NAME: a file of recipes/comparisons

Every combination is an ordinary run of `hfbsz pretrain` or `hfbsz finetune`, depending on its task. Finished runs are
not repeated, and an interrupted comparison resumes where it stopped. Its report, comparisons/NAME/report.html, shows
progress and results; results.json beside it has them for scripts (docs/compare.schema.json describes it).
"""

import signal
import sys
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from hfbsz.display import one_line
from hfbsz.errors import FAILED, INTERRUPTED, MISUSED, UserError, complain
from hfbsz.experiment.request import OPTIONS, Request, parse, refuse_overwriting
from hfbsz.system.files import write_text

if TYPE_CHECKING:
    from hfbsz.experiment.launch import Launcher
    from hfbsz.experiment.results import Experiment
    from hfbsz.report.console import Console


def main(words: list[str]) -> int:
    """Run a comparison; returns the exit code: 1 if a run failed or diverged, 130 if interrupted."""
    if not words or "--help" in words:
        print(f"{__doc__}\noptions:")
        print("\n".join(f"  {name + '=':<10} {what}" for name, what in OPTIONS.items()))
        return 0 if words else MISUSED
    return compare(words)[0]


def compare(words: list[str]) -> tuple[int, "Experiment | None"]:
    """Run a comparison; returns the exit code, and the results if there are any."""
    try:
        request = parse(words)
        from hfbsz.experiment.compare import ComparisonRunner  # imports matplotlib: only after the words are checked
        from hfbsz.report.console import Console

        console = Console(sys.stderr if request.format == "json" else None)
        runner = ComparisonRunner(request, console)
    except UserError as problem:
        return complain(problem.lines), None
    stop_on_signals(runner.launcher, console)
    try:
        experiment = runner.run()
    except UserError as problem:
        return complain(problem.lines, FAILED), None
    except OSError as problem:
        place = problem.filename or request.folder
        return complain([f"{place}: {problem.strerror}: the same command resumes"], FAILED), None
    if request.format == "text":
        from hfbsz.experiment.page.terminal import lines_of

        console.line("\n".join(map(one_line, lines_of(experiment))))
    try:
        text = _write(request, experiment)
    except UserError as problem:
        return complain(problem.lines, FAILED), experiment
    except OSError as problem:
        what = problem.filename or "out=, picture="
        return complain([f"{what}: cannot be written: {problem.strerror}"], FAILED), experiment
    if request.format == "json":
        print(text, end="", flush=True)
    if not experiment.finished:
        return INTERRUPTED, experiment
    diverged = [outcome for result in experiment.arms for outcome in result.diverged]  # not those of tuning: expected
    failed = diverged or any(outcome.state == "failed" for outcome in experiment.outcomes)
    return FAILED if failed else 0, experiment


def stop_on_signals(launcher: "Launcher", console: "Console") -> None:
    """On SIGINT, SIGTERM and SIGHUP, start no further run and let the active ones save a checkpoint."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.line(f"{signal.Signals(number).name}: active runs end with a checkpoint; the same command resumes them")
        launcher.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)


def _write(request: Request, experiment: "Experiment") -> str:
    """Write the results, and the requested copy of them (`out`) and picture; returns the results as JSON. Raises
    UserError if hfbsz did not write an existing file there."""
    from hfbsz.experiment.page.results_file import results_of
    from hfbsz.experiment.results import rows

    refuse_overwriting({name: str(path) for name in ("out", "picture") if (path := getattr(request, name))})
    for path in filter(None, (request.out, request.picture)):
        path.parent.mkdir(parents=True, exist_ok=True)
    table = rows(experiment)
    if request.picture is not None and any(row["runs"] for row in table):
        from hfbsz.experiment.page.picture import draw

        draw(table, request.picture)
        experiment = replace(experiment, picture=request.picture)
    text = results_of(experiment).text()
    for path in filter(None, (experiment.results, request.out)):
        write_text(path, text)
    return text
