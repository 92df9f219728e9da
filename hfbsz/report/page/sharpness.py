"""The page of the minima of several runs: landscapes, the rise under noise, and a table of all measures."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from hfbsz.recipe.amounts import sized
from hfbsz.report.page.page import environment
from hfbsz.report.page.style import page_axes, style, svg
from hfbsz.system.files import write_text

FILES = {"report.html": b"<title>Sharpness of ", "sharpness.json": b'"runs"'}  # name: a part of its beginning


@dataclass(frozen=True)
class Shown:
    """A run on the page."""

    name: str
    batch: str  # sequences: 64, or 8 → 64
    minimum: Mapping[str, Any]  # measures as plain data, with `gap`


def save(
    runs: Sequence[Shown],
    lines: Mapping[str, Sequence[tuple[float, float]]],
    correlations: Mapping[str, Any],
    note: str,
    folder: Path,
    numbers: str,
) -> Path:
    """Save the page and the numbers (JSON) to a folder that exists; returns the path of the page. `lines`: the loss
    between the first run and another, by name; `correlations`: with the gap and the batch, by measure; `note`: what is
    contested."""
    write_text(folder / "sharpness.json", numbers)
    page = folder / "report.html"
    text = (
        environment()
        .get_template("sharpness.html.jinja")
        .render(
            sized=sized,
            runs=runs,
            correlations=correlations,
            note=note,
            pictures=list(_pictures(runs, lines)),
            costs=list(_costs(runs)),
        )
    )
    write_text(page, text)
    return page


def _costs(runs: Sequence[Shown]) -> Iterator[tuple[str, float, int]]:
    """(measure, seconds, peak bytes) of each measure: the mean time and the highest peak of all runs."""
    for name in runs[0].minimum["costs"]:
        costs = [run.minimum["costs"][name] for run in runs]
        yield name, statistics.fmean(cost["seconds"] for cost in costs), max(cost["peak_bytes"] for cost in costs)


def _pictures(runs: Sequence[Shown], lines: Mapping[str, Any]) -> Iterator[tuple[str, Markup, str]]:
    """(heading, figure, caption) of each figure."""
    with page_axes("landscape") as (figure, axes):
        for index, run in enumerate(runs):
            _line(axes, index, run.minimum["landscape"], run.name)
        axes.set(xlabel="position (1: each row moved by its own norm)", ylabel="training loss (nats/target)")
        _legend(axes, len(runs))
        yield (
            "Along a random direction",
            svg(figure, "training loss along a filter-normalized random direction"),
            "Filter-normalized (Li et al. 2018), the same direction for every run. A narrow valley is sharp in one "
            "direction among millions.",
        )
    with page_axes("noise") as (figure, axes):
        for index, run in enumerate(runs):
            sizes = [100 * float(size) for size in run.minimum["noise"]]
            values = [one["value"] for one in run.minimum["noise"].values()]
            errors = [one["error"] for one in run.minimum["noise"].values()]
            color, dashes = style(index)
            shown = axes.errorbar(sizes, values, errors, color=color, marker="o", markersize=4, label=run.name)
            if dashes:
                shown[0].set_dashes(dashes)
        axes.set(
            xscale="log", xlabel="noise (% of the norm of each row, log scale)", ylabel="rise of the loss (nats/target)"
        )
        _legend(axes, len(runs))
        yield (
            "Under random noise",
            svg(figure, "rise of the training loss under random noise of the weights"),
            "Mean over four draws with its standard error.",
        )
    if lines:
        with page_axes("between") as (figure, axes):
            for index, (name, points) in enumerate(lines.items(), 1):
                _line(axes, index, points, name)
            axes.set(xlabel=f"position (0: {runs[0].name}, 1: the other)", ylabel="training loss (nats/target)")
            _legend(axes, len(lines))
            yield (
                f"Between {runs[0].name} and the others",
                svg(figure, "training loss on the line between two runs"),
                "On the straight line between the weights. A barrier means two minima, not one.",
            )


def _line(axes: Axes, index: int, points: Sequence[tuple[float, float]], label: str) -> None:
    color, dashes = style(index)
    axes.plot(*zip(*points, strict=True), color=color, linestyle=(0, dashes) if dashes else "-", label=label)


def _legend(axes: Axes, lines: int) -> None:
    """A legend above the curves."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.09 * lines * (high - low))
    axes.legend(frameon=False, fontsize=9, loc="upper left")
