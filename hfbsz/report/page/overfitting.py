"""The overfitting figure: loss on training and validation rows over tokens, with the gap between them shaded."""

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
from hfbsz.report.page.style import CARD, INK, LOOK, style, svg, tick

Monitored = tuple[int, Overfitting]  # index of the run on the page, which decides its style, and its evaluations


def panel(monitored: Sequence[Monitored]) -> Markup:
    """Inline SVG: both losses over tokens and epochs, with the gap shaded; below them the accuracy, if measured."""
    label = "loss on training rows and on validation rows over tokens seen"
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": "overfitting"}):
        has_accuracy = any(
            moment.accuracy is not None for _, overfitting in monitored for moment in overfitting.moments
        )
        figure = Figure(figsize=(4.8, 4.9 if has_accuracy else 3.6), layout="constrained")
        heights = [2.3, 1] if has_accuracy else [1]
        plots = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0].tolist()
        for index, overfitting in monitored:
            _losses(plots[0], index, overfitting)
            if has_accuracy:
                _accuracy(plots[1], index, overfitting)
        plots[0].set_ylabel(metric("eval/loss").label)
        plots[0].set_ylim(*loss_limits([overfitting for _, overfitting in monitored])[:2])
        if has_accuracy:
            plots[1].set_ylabel("accuracy\n(share of rows)")
            plots[1].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        _horizontal(plots[-1], monitored)
        for index, overfitting in monitored:
            _marks(plots, index, overfitting, labels=len(monitored) == 1)
        return svg(figure, label)


def loss_limits(runs: Sequence[Overfitting]) -> tuple[float, float, bool]:
    """(bottom, top) of the loss axis in nats/target, and whether curves exceed the top.

    The top is the highest loss after the first 5 % of the tokens, so that the first steps do not flatten the rest.
    """
    losses = [loss for run in runs for moment in run.moments for loss in (moment.train, moment.validation)]
    late = [
        loss
        for run in runs
        for moment in run.moments
        if moment.tokens > 0.05 * run.last.tokens or len(run.moments) < 3
        for loss in (moment.train, moment.validation)
    ]
    bottom, top = min(losses), max(late)
    margin = 0.06 * (top - bottom) or 0.1
    cut = max(losses) > top + 0.5 * (top - bottom)
    return max(0.0, bottom - margin), (top if cut else max(losses)) + margin, cut


def _losses(axes: Axes, index: int, overfitting: Overfitting) -> None:
    color, line = _line(index)
    tokens = np.array([moment.tokens for moment in overfitting.moments])
    train = np.array([moment.train for moment in overfitting.moments])
    validation = np.array([moment.validation for moment in overfitting.moments])
    axes.fill_between(tokens, train, validation, color=color, alpha=0.13, linewidth=0)
    axes.plot(tokens, train, marker="s", markersize=3.6, markerfacecolor=CARD, zorder=3, **line)
    axes.plot(tokens, validation, marker="o", markersize=4, zorder=3, **line)


def _accuracy(axes: Axes, index: int, overfitting: Overfitting) -> None:
    _, line = _line(index)
    measured = [(moment.tokens, moment.accuracy) for moment in overfitting.moments if moment.accuracy is not None]
    x, y = np.array(measured, dtype=float).reshape(-1, 2).T
    axes.plot(x, y, marker="o", markersize=4, zorder=3, **line)


def _line(index: int) -> tuple[str, dict[str, Any]]:
    color, dashes = style(index)
    return color, {"color": color, "linestyle": (0, dashes) if dashes else "-"}


def _horizontal(axes: Axes, monitored: Sequence[Monitored]) -> None:
    """The axis of tokens, and below it one of epochs if an epoch has the same number of tokens in all runs."""
    longest = max(overfitting.last.tokens for _, overfitting in monitored) or 1
    axes.set_xlim(0, 1.02 * longest)
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(tick)
    epoch_tokens = [
        overfitting.last.tokens / overfitting.last.epoch for _, overfitting in monitored if overfitting.last.epoch
    ]
    if epoch_tokens and len(epoch_tokens) == len(monitored) and max(epoch_tokens) < 1.02 * min(epoch_tokens):
        epochs = axes.twiny()
        epochs.set_xlim(0, 1.02 * longest / float(np.mean(epoch_tokens)))
        epochs.xaxis.set_ticks_position("bottom")
        epochs.xaxis.set_label_position("bottom")
        epochs.spines["bottom"].set_visible(True)
        epochs.spines["bottom"].set_position(("outward", 38))
        epochs.set_xlabel("epochs")
        epochs.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        epochs.xaxis.set_major_formatter(tick)
        epochs.grid(visible=False)


def _marks(plots: Sequence[Axes], index: int, overfitting: Overfitting, labels: bool) -> None:
    """Vertical lines at the best evaluation and at the onset of overfitting; `labels`: with text above the plot."""
    onset = overfitting.onset if overfitting.onset is not None and overfitting.onset != overfitting.best else None
    color = INK if labels else style(index)[0]
    onset_label = " = onset of overfitting" if overfitting.onset == overfitting.best else ""
    lines = [
        (
            overfitting.best,
            f"best evaluation{onset_label}" if overfitting.better else "lowest loss: before training",
            "-",
        )
    ]
    lines += [(onset, "onset of overfitting", ":")] if onset is not None else []
    for row, (moment, text, dashes) in enumerate(lines):
        height = 1.02 + 0.16 * row  # of the label, in heights of the plot
        for axes in plots:
            top = height if labels and axes is plots[0] else 1
            look: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": 1.1, "alpha": 0.75, "zorder": 2}
            axes.axvline(moment.tokens, ymax=top, clip_on=top <= 1, **look)
        if labels:
            _label(plots[0], moment, text, height)


def _label(axes: Axes, moment: Moment, text: str, height: float) -> None:
    position = moment.tokens / axes.get_xlim()[1]  # 0 to 1 across the plot
    side = "left" if position < 0.3 else "right" if position > 0.7 else "center"
    epoch = "" if moment.epoch is None else f", epoch {moment.epoch:.2f}"
    for line, up in ((f"step {moment.step:,}{epoch}", 0), (text, 12)):  # two texts: SVG does not align the lines of one
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
