"""The table of runs as text, JSON or CSV."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfbsz.display import one_line
from hfbsz.recipe.amounts import counted, duration, short, shown_batches
from hfbsz.records.run_filter import as_text
from hfbsz.records.run_table import COLUMNS, ROW_STATES, Row

SHOWN = ("name", "state", "recipe", "batch", "rate", "tokens", "steps", "loss", "time", "speed", "noise", "age")
_COLORS = {
    "finished": "green",
    "running": "cyan",
    "preempted": "yellow",
    "stale": "yellow",
    "failed": "red",
    "diverged": "red",
}
_UNITS = {"sequences": "seq", "tokens": "", "steps": "", "s": "", "nats/target": "nats"}  # as short as a column
_FIXED_PART = "*"  # beside a loss
_WIDE = 100_000  # characters: without a terminal, nothing is cut
_NUMBERS: Mapping[str, Callable[[Any], str]] = {
    "done": "{:.0%}".format,
    "rate": "{:.3g}".format,
    "tokens": short,
    "steps": "{:,}".format,
    "loss": "{:.4f}".format,
    "time": duration,
    "speed": short,
    "noise": short,
    "noise_error": short,
    "age": duration,
    "updated": "{:.0f}".format,
}


def print_table(rows: Sequence[Row], names: Sequence[str], total: int, file: TextIO | None = None) -> None:
    """Print rows as text, at most as wide as the terminal; `total`: number of runs before they were filtered."""
    console = Console(file=file, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in names:
        is_text = COLUMNS[name].is_text if name in COLUMNS else True
        table.add_column(
            Text(_heading(name)), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(row, name) for name in names))
    console.print(table)
    for line in _below(rows, names, total):
        console.print(Text(line, "dim"), soft_wrap=True)


def without_repeated(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The columns that say something: without those that are unknown for all rows, and without the recipe if every
    name begins with it."""
    told = all(row.values["name"].startswith(row.values["recipe"] or "") for row in rows)
    known = [name for name in names if any(row.value(name) is not None for row in rows)]
    return [name for name in known if not (name == "recipe" and told)]


def as_json(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The rows as a JSON list of objects with these keys; null: unknown, or not finite."""
    return json.dumps([{name: row.value(name) for name in names} for row in rows], indent=1)


def as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The rows as CSV with a header; an empty cell: unknown."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [row.value(name) for name in names]
        writer.writerow("" if value is None else one_line(as_text(value)) for value in values)
    return lines.getvalue()


def columns_help() -> Iterator[str]:
    """A line for each column: its name, unit and definition."""
    for name, column in COLUMNS.items():
        unit = f" ({column.unit})" if column.unit else ""
        yield f"  {name:<12} {column.definition}{unit}"


def _heading(name: str) -> str:
    """The name of a column, which filters and orders take, with its unit on a second line."""
    unit = COLUMNS[name].unit if name in COLUMNS else ""
    return f"{name}\n{_UNITS.get(unit, unit)}"


def _cell(row: Row, name: str) -> Text:
    value = row.value(name)
    if value is None:
        return Text("–")
    if name == "batch":
        return Text(shown_batches([row.values["first_batch"], value]))
    if name == "state":
        done = row.values["done"]
        share = f" {done:.0%}" if done is not None and value != "finished" else ""
        return Text(f"{value}{share}", _COLORS.get(value, ""))
    text = _NUMBERS[name](value) if name in _NUMBERS else as_text(value)
    mark = _FIXED_PART if name == "loss" and row.values["loss_part"] == "eval" else ""
    return Text(one_line(text) + mark)


def _below(rows: Sequence[Row], names: Sequence[str], total: int) -> Iterator[str]:
    """What stands below the table: the number of runs by state, and what a mark means."""
    states = Counter(row.values["state"] for row in rows)
    counts = ", ".join(f"{states[state]} {state}" for state in ROW_STATES if states[state])
    yield f"{counted(len(rows), 'run')}{f' of {total:,}' if len(rows) < total else ''}: {counts}"
    if "loss" in names and any(row.values["loss_part"] == "eval" for row in rows):
        yield f"{_FIXED_PART} on the fixed part of validation only; the others are measured at the end of the run"
