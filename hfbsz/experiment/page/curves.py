"""Figures of a comparison's runs: curves of validation loss, and the values tried for tuned arms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from hfbsz.experiment.page.figures import LineStyle, Picture, canvas, count_runs, families, line_styles
from hfbsz.experiment.results import ArmResult, Experiment
from hfbsz.records.evaluations import LOSS
from hfbsz.records.run_data import STEPS, TOKENS, Array, RunData
from hfbsz.report.page.style import CARD, INK, svg, tick


def curves(experiment: Experiment) -> list[Picture]:
    """Validation loss over tokens and over optimizer steps: one figure each, with one panel per family."""
    series = {result.words: _curves(result, TOKENS) for result in experiment.arms if result.arm}
    groups = {
        name: [result for result in results if series[result.words]]
        for name, results in families(experiment.arms).items()
    }
    groups = {name: results for name, results in groups.items() if results}
    if not groups:
        return []
    lost = sum(_diverged(outcome.run) for result in experiment.arms for outcome in result.outcomes if outcome.run)
    key = "Thick: mean over seeds, over the range that all seeds cover; thin: each seed."
    key += " Gray: means of the other panels." if len(groups) > 1 else ""
    key += f" {count_runs(lost)} diverged: the curve ends there." if lost else ""
    captions = {
        TOKENS: (
            "tokens seen",
            "Equal tokens are equal data and about equal compute: a lower curve learned more from the same tokens.",
        ),
        STEPS: ("optimizer steps", "Steps are sequential: reaching the same loss in fewer steps saves serial time."),
    }
    pictures = []
    for axis, (label, caption) in captions.items():
        with canvas(axis, height=1.2 + 2 * len(groups)) as figure:
            clipped = _draw_panels(figure, groups, line_styles(experiment), axis)
            figure.supylabel("validation loss, fixed part (nats/target)", fontsize=10.5, color=INK)
            figure.axes[-1].set_xlabel(label)
            drawn = svg(figure, f"validation loss (nats/target) over {label}")
        clip_note = " The loss axis is clipped: part of the first third of training is above it." if clipped else ""
        pictures.append(Picture(f"Validation loss over {label}", drawn, f"{caption} {key}{clip_note}"))
    return pictures


def _draw_panels(
    figure: Figure, groups: Mapping[str, Sequence[ArmResult]], styles: Mapping[str, LineStyle], axis: str
) -> bool:
    """Draw one panel per family; returns whether the loss axis clips curves."""
    panels = figure.subplots(len(groups), sharex=True, sharey=True, squeeze=False)[:, 0].tolist()
    means, every, late = {}, [], []
    for axes, (name, results) in zip(panels, groups.items(), strict=True):
        axes.set_title(name, loc="left", fontsize=10.5, color=INK)
        for result in results:
            color, dashes = styles[result.words]
            seeds = _curves(result, axis)
            for x, y in seeds if len(seeds) > 1 else ():
                axes.plot(x, y, color=color, linewidth=0.7, alpha=0.4)
            x, y = means[result.words] = _mean(seeds)
            line = (0, dashes) if dashes else "-"
            axes.plot(x, y, color=color, linestyle=line, linewidth=2, marker="." if len(x) == 1 else "", zorder=3)
            for x, y in seeds:
                every += y.tolist()
                late += y[x >= x[-1] / 3].tolist()
    for axes, results in zip(panels, groups.values(), strict=True):
        in_panel = {result.words for result in results}
        for x, y in (mean for words, mean in means.items() if words not in in_panel):
            axes.plot(x, y, color=INK, linewidth=1, alpha=0.13, zorder=1)
    margin = 0.05 * (max(late) - min(every)) or 0.1
    top = max(late) + margin
    panels[0].set_ylim(min(every) - margin, top)
    if axis == STEPS and any((x > 0).any() for x, _ in means.values()):
        panels[0].set_xscale("log")
        visible = [x[(y <= top) & (x > 0)] for x, y in means.values()]  # a log scale has no step 0
        left = 0.7 * min((float(x.min()) for x in visible if len(x)), default=1.0)
        panels[0].set_xlim(left=left)
        ratio = panels[0].get_xlim()[1] / left
        subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio < 5 else (1.0, 2.0, 5.0) if ratio < 200 else (1.0,)
        panels[0].xaxis.set_major_locator(LogLocator(subs=subs))  # labels also where no power of ten is in sight
        panels[0].xaxis.set_minor_formatter(NullFormatter())
    else:
        panels[0].set_xlim(left=0)
        panels[0].xaxis.set_major_locator(MaxNLocator(6))
    panels[0].xaxis.set_major_formatter(tick)
    return max(every) > top


def _curves(result: ArmResult, axis: str) -> list[tuple[Array, Array]]:
    """(x, finite loss) of each run with evaluations, on the fixed part of validation."""
    series = []
    for run in (outcome.run for outcome in result.outcomes if outcome.run is not None):
        x, y = run.series(LOSS, axis)
        if np.isfinite(y).any():
            series.append((x[np.isfinite(y)], y[np.isfinite(y)]))
    return series


def _mean(seeds: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The mean curve over the range that all curves cover."""
    first, last = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
    grid = np.unique(np.concatenate([x for x, _ in seeds]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in seeds], axis=0)


def _diverged(run: RunData) -> bool:
    return not np.isfinite(run.series(LOSS, TOKENS)[1]).all()


def tuning(experiment: Experiment) -> list[Picture]:
    """A figure of the loss over the values tried for each tuned arm; empty if nothing was tuned."""
    tuned = [result for result in experiment.arms if result.arm and any(_finite(tried.loss) for tried in result.tried)]
    if not tuned:
        return []
    styles, lost = line_styles(experiment), 0
    field = experiment.tuned or "the tuned field"
    with canvas("tuning") as figure:
        axes = figure.add_subplot()
        for result in tuned:
            color, dashes = styles[result.words]
            lost += sum(tried.loss is not None and not math.isfinite(tried.loss) for tried in result.tried)
            drawn = [tried for tried in result.tried if _finite(tried.loss)]
            x, y = np.array([(tried.value, tried.loss) for tried in drawn], dtype=float).T
            line = (0, dashes) if dashes else "-"
            axes.plot(x, y, color=color, linestyle=line, marker="o", markersize=4)
            chosen = [index for index, tried in enumerate(drawn) if tried.chosen]
            ring: dict[str, Any] = {"color": color, "markerfacecolor": CARD, "markeredgewidth": 2}
            axes.plot(x[chosen], y[chosen], "o", markersize=10, **ring)
            axes.plot(x[chosen], y[chosen], "o", color=color, markersize=4)
        ticks = sorted({tried.value for result in tuned for tried in result.tried})
        if ticks[0] > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(ticks) if len(ticks) <= 6 else LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.set(xlabel=f"{field}, as set in the recipe (no unit)", ylabel="loss of the saved model (nats/target)")
        picture = svg(figure, "loss of the saved model (nats/target) over the values tried")
    caption = "On the tuning seed; a ring marks the selected value. If it is at the end of the range, there may be a "
    caption += "better value outside."
    caption += f" {count_runs(lost)} diverged (not drawn)." if lost else ""
    return [Picture(f"Tuning {field}", picture, caption)]


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
