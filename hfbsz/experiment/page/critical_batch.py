"""The figure of the critical batch: steps to a target loss over the batch, the fit, and both definitions."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from hfbsz.measure.critical_batch import CriticalBatch, Interval

_COLOR, _GRAY = "#0072b2", "#666666"


def draw(result: CriticalBatch, first: float, path: Path) -> None:
    """Draw a fit and save it to `path`, as PNG or SVG by its suffix; `first`: that of `plot`."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    plot(figure.add_subplot(), result, first)
    figure.savefig(path, dpi=160, facecolor="white")


def shown(interval: Interval) -> str:
    """A batch with its 95 % confidence interval: `10.6 sequences (95 %: 9.8 to 11.4)`."""
    return f"{_number(interval.value)} sequences (95 %: {_number(interval.low)} to {_number(interval.high)})"


def sequences(batch: float) -> str:
    """A number of sequences in words: `1 sequence`, `2.5 sequences`."""
    return f"{batch:,.{0 if float(batch).is_integer() else 1}f} sequence" + "s" * (batch != 1)


def _number(value: float) -> str:
    return "unbounded" if math.isinf(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def plot(axes: Axes, result: CriticalBatch, first: float) -> None:
    """Draw the steps, the fit with its band, perfect scaling from the batch `first` (sequences), and both
    definitions of the critical batch."""
    low, high = min(result.batches), max(result.batches)
    batches = np.geomspace(low / 1.4, high * 1.4, 200)
    bands = [result.band_at(float(batch)) for batch in batches]
    axes.fill_between(
        batches, [band.low for band in bands], [band.high for band in bands], color=_COLOR, alpha=0.15, linewidth=0
    )
    axes.plot(batches, [band.value for band in bands], color=_COLOR, label="S = a + b ÷ B, 95 % band")
    axes.plot(
        batches,
        result.steps_at(first) * first / batches,
        color=_GRAY,
        linestyle=(0, (5, 2)),
        label=f"perfect scaling from {sequences(first)}",
    )
    axes.plot(result.batches, result.steps, "o", color=_COLOR, markersize=5, alpha=0.8, label="measured")
    for (name, interval), dashes in zip(
        (
            ("balance b ÷ a (McCandlish et al. 2018)", result.balance),
            ("20 % overhead (Zhang et al. 2024)", result.overhead(first)),
        ),
        ((1, 2), (6, 2, 1, 2)),
        strict=True,
    ):
        if batches[0] <= interval.value <= batches[-1]:
            end = interval.high if math.isfinite(interval.high) else batches[-1]
            axes.axvspan(max(interval.low, batches[0]), min(end, batches[-1]), color="#d55e00", alpha=0.07, linewidth=0)
            label = f"{name}: {_number(interval.value)}"
            axes.axvline(interval.value, color="#d55e00", linestyle=(0, dashes), linewidth=1.4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    axes.set_xlim(batches[0], batches[-1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("batch (sequences, log scale)")
    axes.set_ylabel("optimizer steps to the target loss (log scale)")
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, framealpha=0, edgecolor="none")
