"""Sends W&B what a group of runs came to: a run of its own with tables, plots and pages, in the same group.

Its id is the caller's and fixed, so that what is sent again goes to the same run.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.report.wandb.reporter import Identity, Mode, WandbReporter

if TYPE_CHECKING:
    import wandb

Cell = str | float | bool | None
Table = tuple[Sequence[str], Sequence[Sequence[Cell]]]  # columns, rows
REMEDY = "the same command sends it again"


@dataclass(frozen=True)
class Plot:
    """Two columns of a table over each other; rows that lack a number in one of them are left out."""

    table: str
    x: str
    y: str
    title: str
    stroke: str | None = None  # the column whose every value has a line of its own; None: dots


def send(
    folder: Path,
    mode: Mode,
    identity: Identity,
    config: Mapping[str, Any],
    summary: Mapping[str, Cell],
    tables: Mapping[str, Table],
    pictures: Mapping[str, Path | str],
    warn: Callable[[str], None],
    plots: Mapping[str, Plot] | None = None,
) -> None:
    """Log tables, pictures (a PNG's path, or the text of an HTML page) and plots of the tables to one run of W&B.

    Modes, bounds of time and faults are those of `WandbReporter`: nothing is raised, at most one warning is told, and
    it takes 50 s at the worst. A number that is not finite is sent as nothing. Copies in `folder`/wandb of what the run
    was sent before are removed, once there is a whole new one: `wandb sync` would lay them over each other.
    """
    told: list[str] = []
    made: list[str] = []

    def work(run: "wandb.Run") -> None:
        made.append(Path(run.dir).parent.name)
        _log(run, summary, tables, pictures, plots or {})

    reporter = WandbReporter(
        folder=folder, mode=mode, identity=identity, config=config, warn=told.append, remedy=REMEDY
    )
    reporter.use(work)
    if reporter.finish():
        for copy in (folder / "wandb").glob(f"*run-*-{identity.id}"):
            if copy.name not in made:
                shutil.rmtree(copy, ignore_errors=True)
    if told:
        warn(f"{identity.name}: {'; '.join(told)}")


def _log(
    run: "wandb.Run",
    summary: Mapping[str, Cell],
    tables: Mapping[str, Table],
    pictures: Mapping[str, Path | str],
    plots: Mapping[str, Plot],
) -> None:
    """In one row: `wandb sync`, of whichever copy, then replaces it by its like."""
    import wandb

    row: dict[str, Any] = {name: _table(table) for name, table in tables.items()}
    for name, picture in pictures.items():
        if isinstance(picture, Path):
            row[name] = wandb.Image(str(picture))
        else:
            row[name] = wandb.Html(picture, inject=False, data_is_not_path=True)
    drawn = {name: _plot(plot, tables[plot.table]) for name, plot in plots.items() if plot.table in tables}
    run.log(row | {name: chart for name, chart in drawn.items() if chart is not None})
    run.summary.update({name: _plain(value) for name, value in summary.items()})


def _table(table: Table) -> "wandb.Table":
    import wandb

    columns, rows = table
    return wandb.Table(columns=list(columns), data=[[_plain(cell) for cell in row] for row in rows])


def _plot(plot: Plot, table: Table) -> Any | None:
    """None where there is nothing to draw."""
    import wandb

    columns, rows = table
    wanted = [name for name in (plot.x, plot.y, plot.stroke) if name is not None]
    places = [list(columns).index(name) for name in wanted]
    points = [[_plain(row[place]) for place in places] for row in rows]
    points = [point for point in points if point[0] is not None and point[1] is not None]
    if not points:
        return None
    data = wandb.Table(columns=[*wanted], data=points)
    if plot.stroke is None:
        return wandb.plot.scatter(data, plot.x, plot.y, title=plot.title)
    return wandb.plot.line(data, plot.x, plot.y, stroke=plot.stroke, title=plot.title)


def _plain(value: Cell) -> Cell:
    """As JSON has it, which knows neither NaN nor ∞."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None  # numpy's too
    return value
