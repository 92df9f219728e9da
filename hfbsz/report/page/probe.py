"""The page of a probe: throughput and memory over the micro-batch, and the price of accumulation."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from hfbsz.plan.plan import Plan
from hfbsz.records.probe import KNEE_SHARE, Probe, Trial, predicted_bytes
from hfbsz.report.page.page import environment
from hfbsz.report.page.style import DASHED, INK, LOOK, PALETTE, svg, tick
from hfbsz.system.files import write_text

FILES = {"report.html": b"<title>Probe of ", "probe.json": b'"tokens_per_row"'}  # name: a part of its beginning
_PLACE = (0.15, 0.165, 0.8, 0.8)
_GIB, _TICKS = 2**30, 8


def save(probe: Probe, plan: Plan, folder: Path) -> Path:
    """Save the page and the numbers to a folder that exists; returns the path of the page. Raises OSError."""
    page, numbers = (folder / name for name in FILES)
    write_text(numbers, json.dumps({**probe.to_dict(), "recipe": plan.recipe.to_dict()}, indent=1))
    write_text(page, render(probe, plan))
    return page


def render(probe: Probe, plan: Plan) -> str:
    """The HTML page of a probe, for the batches of a plan."""
    rows = plan.largest_batch // plan.world_size
    return (
        environment()
        .get_template("probe.html.jinja")
        .render(
            probe=probe,
            plan=plan,
            rows=rows,
            best=max(map(probe.tokens_per_second, probe.trials)),
            wall=int(probe.wall) if math.isfinite(probe.wall) else None,
            price=probe.accumulation_price(rows),
            possible=[trial for trial in probe.trials if trial.micro_batch <= rows],
            sync=_sync_rows(probe, rows),
            pictures=list(_pictures(probe, rows)),
            lowest=f"{KNEE_SHARE:.0%}",
        )
    )


def _sync_rows(probe: Probe, rows: int) -> list[tuple[int, float]]:
    """The share of a step that averaging gradients takes, by accumulation: 1, 2, 4, … up to that of the plan."""
    counts = [2**power for power in range(max(0, int(math.log2(max(1, rows / probe.knee)))) + 1)]
    return [(count, share) for count in counts if (share := probe.sync_share(count)) is not None]


def _pictures(probe: Probe, rows: int) -> Iterator[tuple[str, Markup, str]]:
    """(heading, figure, caption) of each figure."""
    sizes = [trial.micro_batch for trial in probe.trials]
    speeds = [probe.tokens_per_second(trial) for trial in probe.trials]
    with _curve("throughput", sizes, speeds, PALETTE[0], probe.knee) as (figure, axes):
        axes.axhline(KNEE_SHARE * max(speeds), color=INK, linewidth=0.9, linestyle=(0, (5, 2)), alpha=0.6)
        axes.yaxis.set_major_formatter(tick)
        axes.set_ylabel(f"tokens/s ({DASHED} {100 * KNEE_SHARE:g} % of the best)")
        yield (
            "Throughput",
            svg(figure, "throughput over the micro-batch"),
            "Forward and backward passes, without the optimizer. Left of the knee (vertical line) the hardware waits; "
            "right of it, a larger micro-batch only takes memory.",
        )
    line = _line(probe)
    with _axes("memory", [size for size, _ in line]) as (figure, axes):
        axes.plot(sizes, [trial.peak_bytes / _GIB for trial in probe.trials], "o", color=PALETTE[1], markersize=4)
        axes.plot([size for size, _ in line], [peak / _GIB for _, peak in line], color=PALETTE[1], alpha=0.6)
        axes.axhline(probe.limit_bytes / _GIB, color=INK, linewidth=0.9, linestyle=(0, (5, 2)), alpha=0.6)
        _mark(axes, "knee", probe.knee)
        if math.isfinite(probe.wall) and probe.wall >= 1:
            _mark(axes, "wall", int(probe.wall), right=False)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(tick)
        axes.set_ylabel(f"peak memory (GiB; {DASHED} limit)")
        yield (
            "Memory",
            svg(figure, "peak memory over the micro-batch"),
            "Of a process. Points are trials with weights, gradients and optimizer state, on the longest rows. The "
            "line is the memory model; where it meets the limit is the wall.",
        )
    possible = [trial for trial in probe.trials if trial.micro_batch <= rows]
    if len(possible) > 1:
        yield _price_picture(probe, possible, rows)


def _price_picture(probe: Probe, trials: Sequence[Trial], rows: int) -> tuple[str, Markup, str]:
    sizes = [trial.micro_batch for trial in trials]
    seconds = [probe.seconds_per_step(trial, rows) for trial in trials]
    with _curve("price", sizes, seconds, PALETTE[2], probe.knee) as (figure, axes):
        axes.set_ylabel(f"time of a step of {rows:,} sequences (s)")
        drawn = svg(figure, "time of a step over the micro-batch")
    return (
        "The price of accumulation",
        drawn,
        f"The same step of {rows:,} sequences a process, accumulated over micro-batches: small ones save memory "
        "and cost time. The optimizer's step is included.",
    )


def _line(probe: Probe) -> list[tuple[int, float]]:
    """The memory model from the first trial to the wall, at powers of two."""
    trials, last = probe.trials, probe.trials[-1].micro_batch
    end = max(2 * last, int(probe.wall)) if math.isfinite(probe.wall) else 2 * last
    beyond = [last << power for power in range(1, math.ceil(math.log2(end / last)) + 1)]
    return [
        *((trial.micro_batch, float(trial.peak_bytes)) for trial in trials),
        *((size, predicted_bytes(trials, size)) for size in beyond),
    ]


def _mark(axes: Axes, name: str, size: int, right: bool = True) -> None:
    """A vertical line with its name on its right or left."""
    axes.axvline(size, color=PALETTE[3], linewidth=1.4)
    axes.annotate(
        f"{name} {size:,}",
        (size, 0.45),
        xycoords=("data", "axes fraction"),
        xytext=(5 if right else -5, 0),
        textcoords="offset points",
        horizontalalignment="left" if right else "right",
        color=PALETTE[3],
        fontsize=9.5,
    )


@contextmanager
def _curve(
    name: str, sizes: Sequence[int], values: Sequence[float], color: str, knee: int
) -> Iterator[tuple[Figure, Axes]]:
    """A figure of values from 0 over the micro-batch, with the knee marked."""
    with _axes(name, sizes) as (figure, axes):
        axes.plot(sizes, values, "o-", color=color, markersize=4)
        _mark(axes, "knee", knee)
        axes.set_ylim(bottom=0)
        yield figure, axes


@contextmanager
def _axes(name: str, sizes: Sequence[int]) -> Iterator[tuple[Figure, Axes]]:
    """A figure with the micro-batch on a log₂ axis."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.8, 3.1))
        axes = figure.add_axes(_PLACE)
        axes.set_xscale("log", base=2)
        shown = list(sizes)[:: math.ceil(len(sizes) / _TICKS)]
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("micro-batch (sequences)")
        yield figure, axes
