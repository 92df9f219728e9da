"""The curves of the page."""

import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from hfbsz.records.metrics import metric as entry_of
from hfbsz.records.noise import DUAL_SCALE, ERROR, NORM_SCALE, SCALE
from hfbsz.records.run_data import SECONDS, STEPS, TOKENS, Array, RunData, is_number
from hfbsz.records.sharpness import CRITICAL_RATE
from hfbsz.report.page.step_parts import parts_of, step_parts
from hfbsz.report.page.style import CARD, DASHED, LOOK, PLACE, SIZE, style, svg, tick

DENSE = 150  # most points of a curve; longer ones are averaged
_LOSSES = ("train/loss", "eval/loss")
_CURVES = {
    "speed": "perf/tokens_per_second",
    "batch": "batch/global",
    "rate": "train/learning_rate",
    "accumulation": "batch/accumulation",
}


def pictures(runs: Sequence[RunData]) -> dict[str, Markup]:
    """Inline SVG by name, such as `tokens` or `eval/<set>`; figures without data are left out."""
    loss = entry_of("eval/loss").label
    specs = {
        "tokens": (TOKENS, _LOSSES, loss),
        "steps": (STEPS, _LOSSES, loss),
        "time": (SECONDS, _LOSSES, loss),
        **{picture: (TOKENS, (metric,), entry_of(metric).label) for picture, metric in _CURVES.items()},
    }
    sets = {metric for run in runs for record in run.records for metric in record if re.match("eval/.+/loss$", metric)}
    specs |= {metric.removesuffix("/loss"): (TOKENS, (metric,), loss) for metric in sorted(sets)}
    pictures = {}
    for name, (axis, metrics, label) in specs.items():
        if any(run.values(metric) for run in runs for metric in metrics):
            with matplotlib.rc_context({**LOOK, "svg.hashsalt": name}):
                pictures[name] = _picture(runs, axis, metrics, label)
    if any(run.values(SCALE) or run.values(NORM_SCALE) for run in runs):
        with matplotlib.rc_context({**LOOK, "svg.hashsalt": "noise"}):
            pictures["noise"] = _noise_picture(runs)
    if any(run.values(CRITICAL_RATE) for run in runs):
        with matplotlib.rc_context({**LOOK, "svg.hashsalt": "sharpness"}):
            pictures["sharpness"] = _critical_rates(runs)
    if any(map(parts_of, runs)):
        with matplotlib.rc_context({**LOOK, "svg.hashsalt": "parts"}):
            pictures["parts"] = step_parts(runs)
    return pictures


def _noise_picture(runs: Sequence[RunData]) -> Markup:
    """Noise scale, with its standard error, and batch over tokens; where a run has only that of the norms, this one."""
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes(PLACE)
    drawn: list[float] = []
    for index, run in enumerate(runs):
        color, _ = style(index)
        name = SCALE if run.values(SCALE) else NORM_SCALE
        x, y = run.series(name, TOKENS)
        axes.plot(x, y, color=color, linestyle=(0, (1.2, 1.5)) if name == NORM_SCALE else "-", zorder=3)
        if name == SCALE and len(errors := run.series(ERROR, TOKENS)[0]):
            known = np.isin(x, errors)
            error = run.series(ERROR, TOKENS)[1]
            low = np.maximum(y[known] - error, y[known] / 16)
            axes.fill_between(x[known], low, y[known] + error, color=color, alpha=0.15, linewidth=0)
        x, batch = run.series("batch/global", TOKENS)
        axes.plot(np.r_[0, x], np.r_[batch[:1], batch], drawstyle="steps-pre", color=color, linestyle=(0, (5, 2)))
        drawn += [value for value in (*y, *batch) if value > 0]
        x, dual = run.series(DUAL_SCALE, TOKENS)
        axes.plot(x, dual, color=color, linestyle="-", linewidth=0.8, alpha=0.8)
        drawn += [value for value in dual if value > 0]
    powers_of_two(axes, drawn)
    axes.set(xlabel=_axis(runs, TOKENS)[0], ylabel=f"sequences ({DASHED} batch)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(tick)
    return svg(figure, "noise scale and batch over tokens seen")


def _critical_rates(runs: Sequence[RunData]) -> Markup:
    """The learning rate at which a step would raise the loss, and that of the steps, over tokens."""
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes(PLACE)
    for index, run in enumerate(runs):
        color, _ = style(index)
        x, y = run.series(CRITICAL_RATE, TOKENS)
        axes.plot(x, y, color=color, marker="o", markersize=4, zorder=3)
        x, rate = run.series("train/learning_rate", TOKENS)
        axes.plot(x[rate > 0], rate[rate > 0], color=color, linestyle=(0, (5, 2)))
    axes.set(xlabel=_axis(runs, TOKENS)[0], ylabel=f"critical learning rate ({DASHED} learning rate)", yscale="log")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(tick)
    return svg(figure, "learning rate and critical learning rate over tokens seen")


def powers_of_two(axes: Axes, values: Sequence[float]) -> None:
    """A log₂ axis that shows all values."""
    axes.set_yscale("log", base=2)
    axes.set_ylim(2 ** (math.floor(math.log2(min(values))) - 0.3), 2 ** (math.ceil(math.log2(max(values))) + 0.3))
    axes.yaxis.set_major_locator(LogLocator(base=2))
    axes.yaxis.set_major_formatter(tick)


def _picture(runs: Sequence[RunData], axis: str, metrics: Sequence[str], label: str) -> Markup:
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes(PLACE)
    xlabel, scale = _axis(runs, axis)
    for index, run in enumerate(runs):
        for metric in metrics:
            _draw(axes, run, index, axis, scale, metric)
    axes.set(xlabel=xlabel, ylabel=label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == STEPS))
    axes.xaxis.set_major_formatter(tick)
    if metrics == _LOSSES:
        axes.set_ylim(*loss_range(runs)[:2])
    elif entry_of(metrics[0]).logarithmic:
        powers_of_two(axes, [value for run in runs for value in run.values(metrics[0]) if value > 0] or [1.0])
    elif not metrics[0].startswith("eval/"):
        axes.set_ylim(bottom=0)
    if metrics[0] == "perf/tokens_per_second":
        axes.yaxis.set_major_formatter(tick)
    elif metrics[0] == "train/learning_rate":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # no factor above the axis, outside the figure
    return svg(figure, f"{label} over {xlabel}")


def _axis(runs: Sequence[RunData], axis: str) -> tuple[str, float]:
    """The label of a horizontal axis, and the divisor that converts its values to the unit of the label."""
    if axis != SECONDS:
        return ("tokens seen", 1) if axis == TOKENS else ("optimizer steps", 1)
    longest = max((run.largest(SECONDS) or 0 for run in runs), default=0)
    name, scale = ("h", 3600) if longest > 3 * 3600 else ("min", 60) if longest > 180 else ("s", 1)
    return f"training time ({name})", scale


def _draw(axes: Axes, run: RunData, index: int, axis: str, scale: float, metric: str) -> None:
    """Draw one metric of one run: evaluations with markers, settings as step functions, noisy metrics averaged."""
    color, dashes = style(index)
    line: dict[str, Any] = {"color": color, "linestyle": (0, dashes) if dashes else "-"}
    if metric.startswith("eval/"):
        x, y = run.series(metric, axis)
        axes.plot(x / scale, y, marker="o", markersize=4, zorder=3, **line)
        x, y = saved_model_points(run, metric, axis)
        axes.plot(x / scale, y, "D", markersize=6, color=color, markerfacecolor=CARD, zorder=4)
        return
    x, y = run.series(metric, axis)
    if not len(x):
        return
    if metric.startswith("batch/") or metric == "train/learning_rate":
        drawn = np.unique(np.linspace(0, len(x) - 1, min(len(x), 4 * DENSE)).astype(int))
        x, y = np.r_[0, x[drawn]], np.r_[y[drawn[:1]], y[drawn]]  # the first value holds from the start of the run
        axes.plot(x / scale, y, drawstyle="steps-pre", **line)
        return
    x, y = means(x, y)
    mark = "." if len(x) == 1 else ""
    axes.plot(x / scale, y, marker=mark, alpha=0.45 if metric == "train/loss" else 1, **line)


def saved_model_points(run: RunData, metric: str, axis: str) -> tuple[Array, Array]:
    """(x, y) of the `full/…` counterpart of an `eval/…` metric; x: where on the axis the saved weights were trained."""
    positions = {record.get(STEPS): record.get(axis) for record in run.records if record.get("event") == "eval"}
    name = metric.replace("eval/", "full/", 1)
    points = [
        (x, record[name])
        for record in run.records
        if is_number(x := positions.get(record.get("model/step"), record.get(axis))) and is_number(record.get(name))
    ]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, np.where(np.isfinite(y), y, np.nan)


def means(x: Array, y: Array) -> tuple[Array, Array]:
    """A curve of at most DENSE points: means over consecutive points if it has more."""
    parts = np.array_split(np.arange(len(x)), min(len(x), DENSE)) if len(x) else []
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def loss_range(runs: Sequence[RunData]) -> tuple[float | None, float | None, float | None]:
    """(bottom, top) of the loss axes in nats/target, and the top again if curves exceed it, else None.

    The high losses of the first steps would flatten the rest: the axis ends at the 95 % quantile of the training loss
    after the first 5 % of a run, or at the highest validation loss after it.
    """
    losses, tops = [], []
    for run in runs:
        curves = [(metric, means(*run.series(metric, TOKENS))) for metric in _LOSSES]
        for metric, (x, y) in [*curves, ("full/loss", saved_model_points(run, "eval/loss", TOKENS))]:
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            late = y[x > 0.05 * (run.largest(TOKENS) or 0)] if metric in _LOSSES else y
            losses += y.tolist()
            tops += [np.quantile(late, 0.95 if metric == "train/loss" else 1)] if late.size else []
    if not tops:
        return None, None, None
    bottom, top = min(losses), float(max(tops))
    margin = 0.05 * (top - bottom) or 0.1
    return bottom - margin, top + margin, top + margin if max(losses) > top + margin else None
