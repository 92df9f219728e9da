"""The picture of a run in its card: loss, batch and noise scale over tokens."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hfbsz.records.metrics import metric
from hfbsz.records.noise import ERROR, NORM_SCALE, SCALE
from hfbsz.records.run_data import TOKENS, RunData
from hfbsz.report.page.figures import loss_range, means, powers_of_two
from hfbsz.report.page.style import DASHED, LOOK, PALETTE, tick


def draw(run: RunData, path: Path) -> None:
    """Write a PNG picture: the losses, below them batch and noise scale, over tokens. Raises OSError."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        losses, batches = figure.subplots(2, sharex=True, height_ratios=[1.6, 1])
        _draw_losses(losses, run)
        _draw_batches(batches, run)
        batches.set_xlabel("tokens seen")
        batches.set_xlim(left=0)
        batches.xaxis.set_major_locator(MaxNLocator(6))
        batches.xaxis.set_major_formatter(tick)
        figure.savefig(path, format="png", dpi=160, facecolor="white")


def _draw_losses(axes: Axes, run: RunData) -> None:
    axes.plot(*means(*run.series("train/loss", TOKENS)), color=PALETTE[0], alpha=0.45, label="training")
    axes.plot(*run.series("eval/loss", TOKENS), color=PALETTE[0], marker="o", markersize=4, label="validation")
    axes.set_ylim(*loss_range([run])[:2])
    axes.set_ylabel(metric("eval/loss").label)
    axes.legend(frameon=False)


def _draw_batches(axes: Axes, run: RunData) -> None:
    x, batch = run.series("batch/global", TOKENS)
    if len(x):
        x, y = np.r_[0, x], np.r_[batch[:1], batch]  # the first value holds from the start of the run
        axes.plot(x, y, drawstyle="steps-pre", color=PALETTE[1], linestyle=(0, (5, 2)), label="batch")
    drawn = [value for value in batch if value > 0]
    name = SCALE if run.values(SCALE) else NORM_SCALE
    at, scale = run.series(name, TOKENS)
    positive = scale > 0
    if positive.any():
        axes.plot(at[positive], scale[positive], color=PALETTE[2], marker=".", label=metric(name).heading)
        drawn += scale[positive].tolist()
        errors_at, errors = run.series(ERROR, TOKENS)
        if name == SCALE and len(errors_at):
            known = positive & np.isin(at, errors_at)
            error = errors[np.isin(errors_at, at[known])]
            low = np.maximum(scale[known] - error, scale[known] / 16)
            axes.fill_between(at[known], low, scale[known] + error, color=PALETTE[2], alpha=0.15, linewidth=0)
    if drawn:
        powers_of_two(axes, drawn)
    axes.set_ylabel(f"sequences ({DASHED} batch)")
    if axes.lines:
        axes.legend(frameon=False)
