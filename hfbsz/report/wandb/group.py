"""Logs the results of a group of runs to a separate W&B run of that group: tables, plots and pages.

The caller gives a fixed id, so that results sent again go to the same run.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.report.wandb.identity import Identity
from hfbsz.report.wandb.reporter import Mode, WandbReporter

if TYPE_CHECKING:
    import wandb

Cell = str | float | bool | None
Table = tuple[Sequence[str], Sequence[Sequence[Cell]]]  # columns, rows
REMEDY = "the same command sends it again"


@dataclass(frozen=True)
class Plot:
    """A plot of two columns of a table; rows without a finite number in either column are skipped."""

    table: str
    x: str
    y: str
    title: str
    stroke: str | None = None  # a column: one line for each of its values; None: a scatter plot


def send(
    folder: Path,
    mode: Mode,
    identity: Identity,
    config: Mapping[str, Any],
    summary: Mapping[str, Cell],
    tables: Mapping[str, Table],
    media: Mapping[str, Path | str],
    warn: Callable[[str], None],
    plots: Mapping[str, Plot] | None = None,
) -> None:
    """Log tables, media (the path of a PNG, or the text of an HTML page) and plots of the tables to one W&B run.

    Modes, time limits and fault handling are those of `WandbReporter`: nothing is raised, `warn` is called at most
    once, and it takes at most 50 s. Numbers that are not finite are sent as None. Once a new local copy in
    `folder`/wandb is complete, older copies of the same run are removed, since `wandb sync` would merge them.
    """
    warnings: list[str] = []
    created: list[str] = []

    def work(run: "wandb.Run") -> None:
        created.append(Path(run.dir).parent.name)
        _log(run, summary, tables, media, plots or {})

    reporter = WandbReporter(
        folder=folder, mode=mode, identity=identity, config=config, warn=warnings.append, remedy=REMEDY
    )
    reporter.use(work)
    if reporter.finish():
        for copy in (folder / "wandb").glob(f"*run-*-{identity.id}"):
            if copy.name not in created:
                shutil.rmtree(copy, ignore_errors=True)
    if warnings:
        warn(f"{identity.name}: {'; '.join(warnings)}")


def _log(
    run: "wandb.Run",
    summary: Mapping[str, Cell],
    tables: Mapping[str, Table],
    media: Mapping[str, Path | str],
    plots: Mapping[str, Plot],
) -> None:
    """Log everything in one row, so that `wandb sync` of any copy replaces that row."""
    import wandb

    row: dict[str, Any] = {name: _table(table) for name, table in tables.items()}
    for name, item in media.items():
        if isinstance(item, Path):
            row[name] = wandb.Image(str(item))
        else:
            row[name] = wandb.Html(item, inject=False, data_is_not_path=True)
    charts = {name: _plot(plot, tables[plot.table]) for name, plot in plots.items() if plot.table in tables}
    run.log(row | {name: chart for name, chart in charts.items() if chart is not None})
    run.summary.update({name: _json_cell(value) for name, value in summary.items()})


def _table(table: Table) -> "wandb.Table":
    import wandb

    columns, rows = table
    return wandb.Table(columns=list(columns), data=[[_json_cell(cell) for cell in row] for row in rows])


def _plot(plot: Plot, table: Table) -> Any | None:
    """A W&B chart; None if no row has both numbers."""
    import wandb

    columns, rows = table
    plotted = [name for name in (plot.x, plot.y, plot.stroke) if name is not None]
    indices = [list(columns).index(name) for name in plotted]
    points = [[_json_cell(row[index]) for index in indices] for row in rows]
    points = [point for point in points if point[0] is not None and point[1] is not None]
    if not points:
        return None
    data = wandb.Table(columns=[*plotted], data=points)
    if plot.stroke is None:
        return wandb.plot.scatter(data, plot.x, plot.y, title=plot.title)
    return wandb.plot.line(data, plot.x, plot.y, stroke=plot.stroke, title=plot.title)


def _json_cell(value: Cell) -> Cell:
    """The value with NaN and infinity replaced by None, since JSON has neither."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None  # float() converts numpy floats
    return value
