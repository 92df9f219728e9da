"""The page and the tables of a sweep: steps to the target loss over batches and rates, and the fit."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hfbsz.display import with_minus
from hfbsz.errors import UserError
from hfbsz.experiment.page.critical_batch import plot, sequences, shown
from hfbsz.experiment.page.figures import Picture, canvas
from hfbsz.experiment.sweep_results import SELECTION_NOTE, Point, Sweep, rate_exponent
from hfbsz.measure.critical_batch import CriticalBatch, fit
from hfbsz.recipe.amounts import counted
from hfbsz.records.folder import SWEEP_FILE
from hfbsz.report.page.page import environment
from hfbsz.report.page.style import CARD, style, svg
from hfbsz.system.files import write_text


def save(sweep: Sweep, folder: Path) -> Path:
    """Save the page of a sweep and its tables to a folder; returns the path of the page.

    `steps.csv` has the runs at the chosen rates (columns batch, steps, as `hfbsz critical table=` reads), without
    batches that have a problem; `rates.csv` has all rates that were tried (batch in sequences, optim.lr, rate at that
    batch, steps; inf: the target was not reached); `sweep.json` what was swept: the target and the first recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "steps.csv", _csv(("batch", "steps"), sweep.usable))
    tried = [
        (point.batch, value, one.rate, "" if one.steps is None else one.steps)
        for point in sweep.points
        for value, one in point.tried.items()
    ]
    write_text(folder / "rates.csv", _csv(("batch", "optim.lr", "rate", "steps"), tried))
    write_text(folder / SWEEP_FILE, json.dumps({"target": sweep.target, "recipe": sweep.recipe}, indent=1))
    write_text(folder / "report.html", render(sweep))
    return folder / "report.html"


def _csv(heads: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue()


def render(sweep: Sweep) -> str:
    """The HTML page for the current state of a sweep."""
    problems: tuple[str, ...] = ()
    result = None
    if sweep.state == "finished":
        try:
            result = fit(*map(list, zip(*sweep.table(), strict=True)))
        except UserError as problem:
            problems = tuple(problem.lines)
    started = [point for point in sweep.points if point.batch is not None]
    first = sweep.perfect_until
    pictures = [_fit_picture(result, first)] if result is not None else []
    pictures += [_rates_picture(started)] if any(_finite(point) for point in started) else []
    return (
        environment(Path(__file__).parent)
        .get_template("sweep.html.jinja")
        .render(
            sweep=sweep,
            result=result,
            first=sequences(first),
            balance="" if result is None else shown(result.balance),
            overhead="" if result is None else shown(result.overhead(first)),
            problems=problems,
            exponent=rate_exponent(sweep.points),
            pictures=pictures,
            inf=math.inf,
            signed=_signed,
            note=SELECTION_NOTE,
        )
    )


def _fit_picture(result: CriticalBatch, first: float) -> Picture:
    with canvas("critical", height=3.4) as figure:
        plot(figure.add_subplot(), result, first)
        drawn = svg(figure, "optimizer steps to the target loss over the batch in sequences, with the fit")
    caption = (
        "Left of the critical batch, doubling the batch nearly halves the steps; right of it, it hardly saves any. "
        f"The slope d log S ÷ d log B is {_signed(result.slope_at(min(result.batches)))} at the smallest batch and "
        f"{_signed(result.slope_at(max(result.batches)))} at the largest (−1: perfect scaling, 0: no steps are saved)."
    )
    return Picture("Steps to the target loss", drawn, caption)


def _signed(value: float) -> str:
    return with_minus(f"{value:.2f}")


def _rates_picture(points: list[Point]) -> Picture:
    with canvas("rates", height=3.4) as figure:
        axes = figure.add_subplot()
        for index, point in enumerate(points):
            color, dashes = style(index)
            drawn = _finite(point)
            rates, steps = [rate for rate, _ in drawn], [one for _, one in drawn]
            label = f"{point.batch:,}"
            line = (0, dashes) if dashes else "-"
            axes.plot(rates, steps, color=color, linestyle=line, marker="o", markersize=4, label=label)
            if point.best is not None and point.best.rate and point.best.steps is not None:
                ring: dict[str, Any] = {"color": color, "markersize": 10, "markerfacecolor": CARD, "markeredgewidth": 2}
                axes.plot([point.best.rate], [point.best.steps], "o", **ring)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, text in ((axes.xaxis, "{:g}"), (axes.yaxis, "{:,.0f}")):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text.format(value)))
            axis.set_minor_locator(NullLocator())
        axes.tick_params("x", labelsize=8.5)
        axes.set(xlabel="peak learning rate (log scale)", ylabel="optimizer steps to the target loss (log scale)")
        axes.legend(
            title="batch (sequences)",
            loc="upper left",
            bbox_to_anchor=(1, 1),
            fontsize=8.5,
            title_fontsize=8.5,
            frameon=False,
        )
        picture = svg(figure, "optimizer steps to the target loss over the learning rate, for each batch")
    lost = sum(run.steps == math.inf for point in points for run in point.tried.values())
    caption = "On the first seed; a ring marks the chosen rate."
    caption += f" {counted(lost, 'run')} did not reach the target (not drawn)." if lost else ""
    return Picture("The learning rate at each batch", picture, caption)


def _finite(point: Point) -> list[tuple[float, float]]:
    """(rate, steps) of the runs on the first seed that reached the target."""
    runs = point.tried.values()
    return [(run.rate, run.steps) for run in runs if run.rate and run.steps is not None and math.isfinite(run.steps)]
