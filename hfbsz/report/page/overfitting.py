"""The picture of overfitting: losses of training and validation rows, the gap between them, and where it opens."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hfbsz.records.metrics import metric
from hfbsz.records.overfitting import Moment, Overfitting
from hfbsz.report.page.figures import CARD, INK, LOOK, style, svg, tick

Watched = tuple[int, Overfitting]  # a run's place among the runs of the page, which decides its style


def panel(watched: Sequence[Watched]) -> Markup:
    """Inline SVG: both losses over tokens and epochs with the gap shaded, and accuracy beneath where it is measured."""
    label = "losses of training and validation rows over tokens seen"
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": "overfitting"}):
        accurate = any(moment.accuracy is not None for _, found in watched for moment in found.moments)
        figure = Figure(figsize=(4.8, 4.9 if accurate else 3.6), layout="constrained")
        heights = [2.3, 1] if accurate else [1]
        plots = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0].tolist()
        for place, found in watched:
            _losses(plots[0], place, found)
            if accurate:
                _accuracy(plots[1], place, found)
        plots[0].set_ylabel(metric("eval/loss").label)
        plots[0].set_ylim(*loss_limits([found for _, found in watched])[:2])
        if accurate:
            plots[1].set_ylabel("accuracy\n(share of rows)")
            plots[1].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        _horizontal(plots[-1], watched)
        for place, found in watched:
            _marks(plots, place, found, words=len(watched) == 1)
        return svg(figure, label)


def loss_limits(found: Sequence[Overfitting]) -> tuple[float, float, bool]:
    """(bottom, top) of the loss axis, and whether curves pass the top: the fall of a run's first 5 % is not shown."""
    every = [loss for run in found for moment in run.moments for loss in (moment.train, moment.validation)]
    late = [
        loss
        for run in found
        for moment in run.moments
        if moment.tokens > 0.05 * run.last.tokens or len(run.moments) < 3
        for loss in (moment.train, moment.validation)
    ]
    bottom, top = min(every), max(late)
    margin = 0.06 * (top - bottom) or 0.1
    cut = max(every) > top + 0.5 * (top - bottom)
    return max(0.0, bottom - margin), (top if cut else max(every)) + margin, cut


def _losses(axes: Axes, place: int, found: Overfitting) -> None:
    colour, line = _line(place)
    tokens = np.array([moment.tokens for moment in found.moments])
    train = np.array([moment.train for moment in found.moments])
    validation = np.array([moment.validation for moment in found.moments])
    axes.fill_between(tokens, train, validation, color=colour, alpha=0.13, linewidth=0)
    axes.plot(tokens, train, marker="s", markersize=3.6, markerfacecolor=CARD, zorder=3, **line)
    axes.plot(tokens, validation, marker="o", markersize=4, zorder=3, **line)


def _accuracy(axes: Axes, place: int, found: Overfitting) -> None:
    _, line = _line(place)
    measured = [(moment.tokens, moment.accuracy) for moment in found.moments if moment.accuracy is not None]
    x, y = np.array(measured, dtype=float).reshape(-1, 2).T
    axes.plot(x, y, marker="o", markersize=4, zorder=3, **line)


def _line(place: int) -> tuple[str, dict[str, Any]]:
    colour, dashes = style(place)
    return colour, {"color": colour, "linestyle": (0, dashes) if dashes else "-"}


def _horizontal(axes: Axes, watched: Sequence[Watched]) -> None:
    """Tokens, and beneath them epochs, where all runs have the same number of tokens in one."""
    longest = max(found.last.tokens for _, found in watched) or 1
    axes.set_xlim(0, 1.02 * longest)
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(tick)
    sizes = [found.last.tokens / found.last.epoch for _, found in watched if found.last.epoch]
    if sizes and len(sizes) == len(watched) and max(sizes) < 1.02 * min(sizes):
        epochs = axes.twiny()
        epochs.set_xlim(0, 1.02 * longest / float(np.mean(sizes)))
        epochs.xaxis.set_ticks_position("bottom")
        epochs.xaxis.set_label_position("bottom")
        epochs.spines["bottom"].set_visible(True)
        epochs.spines["bottom"].set_position(("outward", 38))
        epochs.set_xlabel("epochs")
        epochs.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        epochs.xaxis.set_major_formatter(tick)
        epochs.grid(visible=False)


def _marks(plots: Sequence[Axes], place: int, found: Overfitting, words: bool) -> None:
    """Vertical lines at the best evaluation and at the onset of overfitting; in words above the plot if wanted."""
    onset = found.onset if found.onset is not None and found.onset != found.best else None
    colour = INK if words else style(place)[0]
    begun = " = onset of overfitting" if found.onset == found.best else ""
    lines = [(found.best, f"best evaluation{begun}" if found.better else "lowest before training", "-")]
    lines += [(onset, "onset of overfitting", ":")] if onset is not None else []
    for row, (moment, text, dashes) in enumerate(lines):
        height = 1.02 + 0.16 * row  # of the words, in heights of the plot
        for axes in plots:
            top = height if words and axes is plots[0] else 1
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.1, "alpha": 0.75, "zorder": 2}
            axes.axvline(moment.tokens, ymax=top, clip_on=top <= 1, **look)
        if words:
            _label(plots[0], moment, text, height)


def _label(axes: Axes, moment: Moment, text: str, height: float) -> None:
    where = moment.tokens / axes.get_xlim()[1]
    side = "left" if where < 0.3 else "right" if where > 0.7 else "center"
    epoch = "" if moment.epoch is None else f", epoch {moment.epoch:.2f}"
    for line, up in ((f"step {moment.step:,}{epoch}", 0), (text, 12)):  # by itself, a line keeps its alignment in SVG
        axes.annotate(
            line,
            (moment.tokens, height),
            xycoords=("data", "axes fraction"),
            xytext=(0, up),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=9.5,
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1},  # the line to a label above passes behind it
            color=INK,
            zorder=5,
        )
