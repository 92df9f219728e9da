"""The critical batch: the batch above which a larger batch hardly reduces the steps to a target loss.

    hfbsz critical table=FILE.csv [first=256] [picture=FILE]
    hfbsz critical method=branch checkpoint=RUN/checkpoint-N [multiples=1,2,4,8] [length=100ktok] [seed=0,1,2]
                   [tolerance=0.01] [option of compare …] [key.path=value …]
    hfbsz critical method=sweep recipe=NAME target=4.2 batch.size=2seq,4seq,8seq,16seq [rates=5] [seed=0,1,2]
                   [first=…] [picture=FILE] [option of compare …] [key.path=value …]

table: a CSV file with the columns batch (sequences) and steps (optimizer steps to the target loss, with the learning
rate tuned at each batch); rows with the same batch are its seeds. first: the batch up to which scaling is taken to be
perfect, in sequences (default: the smallest in the table). picture: a PNG or SVG file to save a figure of the fit to.

method=branch trains from a checkpoint at multiples of its batch on the same number of tokens, with the rate at each by
the rule of the recipe; the critical batch there is the largest one that costs no loss. The branches are runs of a
comparison, with its page; the same command resumes them. length: of each branch (default: a fifth of what the
checkpoint has trained on, and at least 20 steps of the largest batch). tolerance: nats/target (default: from the spread
over the seeds, or 0.01).

method=sweep trains at each batch until the validation loss is at most target (nats/target), at a constant rate after a
warmup, with averaged weights; the steps at the best of several rates are fitted as those of a table, which is saved to
comparisons/NAME/steps.csv. rates: how many values of optim.lr are tried first at each batch, a factor of two apart
around the recipe's; further ones follow while the best is at an end. duration: the most that a run trains.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hfbsz.display import command, one_line
from hfbsz.errors import FAILED, INTERRUPTED, MISUSED, UserError, complain, did_you_mean, exit_code
from hfbsz.recipe.amounts import Amount, short
from hfbsz.recipe.words import split_options
from hfbsz.system.command_name import command_name

if TYPE_CHECKING:
    from hfbsz.measure.critical_batch import CriticalBatch

_OPTIONS = ("table", "first", "picture")
_SWEEP_OPTIONS = ("method", "target", "rates", "first", "picture")
_BRANCH_OPTIONS = ("method", "checkpoint", "multiples", "length", "seed", "tolerance")
_COLUMNS = ("batch", "steps")


def main(words: list[str]) -> int:
    """Fit a table of steps and print the critical batch; returns the exit code."""
    if "--help" in words or "-h" in words or not words:
        print(__doc__.strip())
        return 0 if words else MISUSED
    method = next((word.partition("=")[2] for word in words if word.lstrip("-").startswith("method=")), None)
    methods = {None: _table, "branch": _branch, "sweep": _sweep}
    if method not in methods:
        near = did_you_mean(method or "", ("branch", "sweep"))
        return complain([f"method={method}: no such method{near}: write branch or sweep, or table=FILE.csv"])
    return exit_code(partial(methods[method], words))


def _table(words: list[str]) -> int:
    """Fit a table of steps; returns the exit code."""
    options = _options(words)
    table, picture = Path(options["table"]), _picture(options)
    batches, steps = read_table(table)
    return _show_fit(batches, steps, _first(options), table.name, picture)


def _first(options: Mapping[str, str]) -> float | None:
    """The batch up to which scaling is taken to be perfect, in sequences; None: the smallest."""
    return _positive("first", options["first"]) if "first" in options else None


def _show_fit(
    batches: Sequence[float], steps: Sequence[float], first: float | None, name: str, picture: Path | None
) -> int:
    """Print the fit of steps over batches (sequences), and draw it; returns the exit code."""
    from hfbsz.measure.critical_batch import fit  # imports scipy: only once the words are checked

    result = fit(batches, steps)
    first = first or min(batches)
    print("\n".join(lines_of(result, first, name)))
    if picture is not None:
        from hfbsz.experiment.page.critical_batch import draw

        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(result, first, picture)
        print(f"picture      {one_line(str(picture))}")
    return 0


def _picture(options: Mapping[str, str]) -> Path | None:
    """The file to save a figure to. Raises UserError for another suffix, and for a file that hfbsz did not write."""
    if "picture" not in options:
        return None
    picture = Path(options["picture"])
    if picture.suffix not in (".png", ".svg"):
        raise UserError(f"picture={picture}: the name of a picture ends in .png or .svg")
    from hfbsz.experiment.request import refuse_overwriting

    refuse_overwriting({"picture": str(picture)})
    return picture


def _sweep(words: list[str]) -> int:
    """Run a sweep, save its table and page, and print the fit; returns the exit code."""
    options, others = split_options(words, _SWEEP_OPTIONS)
    if not options.get("target"):
        raise UserError("target=LOSS is missing: the validation loss in nats/target to which steps are counted")
    target, picture = _positive("target", options["target"]), _picture(options)
    first = _first(options)
    from hfbsz.commands.compare import stop_on_signals
    from hfbsz.experiment.page.sweep import save
    from hfbsz.experiment.sweep import RATES, SweepRunner, request_of
    from hfbsz.experiment.sweep_results import lines_of as sweep_lines
    from hfbsz.report.console import Console

    console = Console()
    request = request_of(others, target, options.get("rates", str(RATES)), command_of(words))
    runner = SweepRunner(request, target, console, lambda current: save(current, request.folder), first)
    stop_on_signals(runner.launcher, console)
    console.line(f"progress: {request.folder / 'report.html'}")
    try:
        sweep = runner.run()
        path = save(sweep, request.folder)
        console.line("\n".join([*map(one_line, sweep_lines(sweep)), f"page         {path}"]))
        if sweep.state != "finished":
            return INTERRUPTED
        batches, steps = map(list, zip(*sweep.table(), strict=True))
        code = _show_fit(batches, steps, first, sweep.name, picture)
        return FAILED if sweep.failures else code
    except UserError as problem:  # of the results, not of the words
        return complain(problem.lines, FAILED)


def command_of(words: Sequence[str]) -> str:
    """The command of these words, as a person types it."""
    return f"{command_name('critical')} {command(*words)}"


def _branch(words: list[str]) -> int:
    """Run the branches of a checkpoint, and print the bracket of the critical batch; returns the exit code."""
    options, others = split_options(words, _BRANCH_OPTIONS)
    if not options.get("checkpoint"):
        raise UserError("checkpoint=RUN/checkpoint-N is missing: the checkpoint to branch from")
    if form := next((word for word in others if word.lstrip("-").startswith("format=")), None):
        raise UserError(f"{form}: not an option of method=branch: comparisons/NAME/results.json has the results")
    from hfbsz.experiment import branch  # imports torch: only once the words are checked

    point = branch.point_of(Path(options["checkpoint"]))
    length = _sequences(options["length"], point.plan.tokens_per_row) if "length" in options else None
    given_multiples = options["multiples"].split(",") if "multiples" in options else branch.MULTIPLES
    multiples = [_positive("multiples", str(multiple)) for multiple in given_multiples]
    seeds = options.get("seed", str(point.plan.recipe.seed))
    given = _positive("tolerance", options["tolerance"]) if "tolerance" in options else None
    from hfbsz.commands.compare import compare

    code, experiment = compare([*branch.words_of(point, multiples, length, seeds), *others])
    if experiment is None or not experiment.finished:
        return code
    from hfbsz.measure.branching import bracket, tolerance_of

    branches = branch.branches_of(experiment)
    tolerance = tolerance_of(branches) if given is None else given
    print("\n".join(branch.lines_of(point, branches, bracket(branches, tolerance))))
    return code


def _sequences(length: str, tokens_per_row: float) -> int:
    """The length of a branch in sequences. Raises UserError for text that is not an amount of sequences or tokens."""
    try:
        return round(Amount.parse(length).sequences(tokens_per_row=tokens_per_row))
    except (LookupError, ValueError) as problem:
        raise UserError(f"length={length}: {problem.args[0]}") from None


def read_table(path: Path) -> tuple[list[float], list[float]]:
    """The batches (sequences) and the steps of a CSV file with the columns batch and steps; other columns are ignored.

    Raises UserError for a file that cannot be read, a missing column, and a value that is not a positive number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                columns = ", ".join(rows.fieldnames or ()) or "none"
                raise UserError(
                    f"{path}: there is no column {' and no column '.join(missing)}; the columns are {columns}"
                )
            pairs = [
                tuple(_positive(f"{path}, line {rows.line_num}: {name}", row[name]) for name in _COLUMNS)
                for row in rows
            ]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{path}: not a CSV file in UTF-8: {problem}") from None
    except OSError as problem:
        raise UserError(f"table={path}: {problem.strerror}") from None
    batches, steps = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
    return batches, steps


def lines_of(result: "CriticalBatch", first: float, name: str) -> list[str]:
    """The fit as lines of text: both definitions of the critical batch with their intervals, and the fit at each batch.

    `first`: the batch up to which scaling is taken to be perfect, in sequences; `name`: the name of the table.
    """
    from hfbsz.experiment.page.critical_batch import sequences, shown

    lines = [
        f"critical batch of {one_line(name)}",
        f"fit          S = a + b ÷ B: a = {short(result.least_steps)} steps, b = {short(result.least_sequences)} "
        f"sequences; residual {100 * result.residual_std:.2g} % over {len(result.batches)} points",
        f"balance      {shown(result.balance)}: b ÷ a, needs twice the minimum steps and twice the minimum sequences "
        "(McCandlish et al. 2018)",
        f"overhead     {shown(result.overhead(first))}: needs 20 % more steps than perfect scaling from "
        f"{sequences(first)} (Zhang et al. 2024)",
    ]
    if not result.is_bounded:
        lines.append("note         the data do not bound the critical batch from above: measure larger batches")
    lines += ["", f"{'batch':>12} {'steps':>10} {'fit':>10} {'95 %':>19} {'d log S ÷ d log B':>18}"]
    for batch in sorted(set(result.batches)):
        steps = [step for at, step in zip(result.batches, result.steps, strict=True) if at == batch]
        band = result.band_at(batch)
        interval = f"{band.low:,.0f} to {band.high:,.0f}"
        mean = sum(steps) / len(steps)
        lines.append(
            f"{batch:>8,.0f} seq {mean:>10,.0f} {band.value:>10,.0f} {interval:>19} {result.slope_at(batch):>18.2f}"
        )
    return lines


def _options(words: list[str]) -> dict[str, str]:
    """The options by name. Raises UserError for an unknown one, and if `table` is missing."""
    options = {}
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not equals or name not in _OPTIONS:
            near = did_you_mean(name, _OPTIONS)
            raise UserError(
                f"{word!r}: no such option{near}; the options are {', '.join(f'{one}=…' for one in _OPTIONS)}"
            )
        options[name] = value
    if not options.get("table"):
        raise UserError("table=FILE.csv is missing: a CSV file with the columns batch and steps")
    return options


def _positive(where: str, text: str | None) -> float:
    """A positive number from text, such as `1,024` or `256seq`. Raises UserError, which begins with `where`."""
    try:
        value = float((text or "").replace(",", "").removesuffix("seq"))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: {text!r} is not a positive number")
    return value
