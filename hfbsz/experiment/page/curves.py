"""The pictures of a comparison's runs: their curves of validation loss, and what was tried for the tuned arms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from hfbsz.experiment.page.figures import Look, Picture, canvas, families, in_runs, looks
from hfbsz.experiment.results import ArmResult, Experiment
from hfbsz.records.evaluations import LOSS
from hfbsz.records.run_data import STEPS, TOKENS, Array, RunData
from hfbsz.report.page.figures import CARD, INK, svg, tick


def curves(experiment: Experiment) -> list[Picture]:
    """Validation loss along the runs, over tokens and over optimizer steps: one panel a family."""
    found = {result.words: _curves(result, TOKENS) for result in experiment.arms if result.arm}
    groups = {name: [one for one in several if found[one.words]] for name, several in families(experiment.arms).items()}
    groups = {name: several for name, several in groups.items() if several}
    if not groups:
        return []
    lost = sum(_diverged(outcome.run) for result in experiment.arms for outcome in result.outcomes if outcome.run)
    said = "Heavy: the mean over seeds, as far as all of them have got; thin: each seed."
    said += " Pale grey: the other panels' means." if len(groups) > 1 else ""
    said += f" {in_runs(lost)} diverged: the curve ends there." if lost else ""
    about = {
        TOKENS: (
            "tokens seen",
            "The fair axis in data and arithmetic: the lower curve learned more from as many tokens.",
        ),
        STEPS: ("optimizer steps", "Steps are done one after another: a curve as low further left saves serial time."),
    }
    pictures = []
    for axis, (label, caption) in about.items():
        with canvas(axis, height=1.2 + 2 * len(groups)) as figure:
            cut = _panels(figure, groups, looks(experiment), axis)
            figure.supylabel("validation loss, fixed part (nats/target)", fontsize=10.5, color=INK)
            figure.axes[-1].set_xlabel(label)
            drawn = svg(figure, f"validation loss (nats/target) over {label}")
        high = " The axis is cut above the fall of the first third." if cut else ""
        pictures.append(Picture(f"Validation loss over {label}", drawn, f"{caption} {said}{high}"))
    return pictures


def _panels(figure: Figure, groups: Mapping[str, Sequence[ArmResult]], look: Mapping[str, Look], axis: str) -> bool:
    """Draw the panels; gives whether the loss axis cuts curves."""
    panels = figure.subplots(len(groups), sharex=True, sharey=True, squeeze=False)[:, 0].tolist()
    means, every, late = {}, [], []
    for axes, (name, several) in zip(panels, groups.items(), strict=True):
        axes.set_title(name, loc="left", fontsize=10.5, color=INK)
        for result in several:
            colour, dashes = look[result.words]
            seeds = _curves(result, axis)
            for x, y in seeds if len(seeds) > 1 else ():
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.4)
            x, y = means[result.words] = _mean(seeds)
            line = (0, dashes) if dashes else "-"
            axes.plot(x, y, color=colour, linestyle=line, linewidth=2, marker="." if len(x) == 1 else "", zorder=3)
            for x, y in seeds:
                every += y.tolist()
                late += y[x >= x[-1] / 3].tolist()
    for axes, several in zip(panels, groups.values(), strict=True):
        own = {result.words for result in several}
        for x, y in (mean for words, mean in means.items() if words not in own):
            axes.plot(x, y, color=INK, linewidth=1, alpha=0.13, zorder=1)
    margin = 0.05 * (max(late) - min(every)) or 0.1
    top = max(late) + margin
    panels[0].set_ylim(min(every) - margin, top)
    if axis == STEPS:
        panels[0].set_xscale("log")
        seen = [x[(y <= top) & (x > 0)] for x, y in means.values()]  # step 0 has no place on a log scale
        panels[0].set_xlim(left=0.7 * min((float(x.min()) for x in seen if len(x)), default=1.0))
        panels[0].xaxis.set_minor_formatter(NullFormatter())
    else:
        panels[0].set_xlim(left=0)
        panels[0].xaxis.set_major_locator(MaxNLocator(6))
    panels[0].xaxis.set_major_formatter(tick)
    return max(every) > top


def _curves(result: ArmResult, axis: str) -> list[tuple[Array, Array]]:
    """(x, loss) of each run that has one, on the fixed part of validation."""
    found = []
    for run in (outcome.run for outcome in result.outcomes if outcome.run is not None):
        x, y = run.series(LOSS, axis)
        if np.isfinite(y).any():
            found.append((x[np.isfinite(y)], y[np.isfinite(y)]))
    return found


def _mean(seeds: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The mean where all curves reach."""
    first, last = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
    grid = np.unique(np.concatenate([x for x, _ in seeds]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in seeds], axis=0)


def _diverged(run: RunData) -> bool:
    return not np.isfinite(run.series(LOSS, TOKENS)[1]).all()


def tuning(experiment: Experiment) -> list[Picture]:
    """Loss over the values tried for each tuned arm."""
    tuned = [result for result in experiment.arms if result.arm and any(_finite(one.loss) for one in result.tried)]
    if not tuned:
        return []
    look, lost = looks(experiment), 0
    field = experiment.tuned or "the tuned field"
    with canvas("tuning") as figure:
        axes = figure.add_subplot()
        for result in tuned:
            colour, dashes = look[result.words]
            lost += sum(one.loss is not None and not math.isfinite(one.loss) for one in result.tried)
            drawn = [one for one in result.tried if _finite(one.loss)]
            x, y = np.array([(one.value, one.loss) for one in drawn], dtype=float).T
            line = (0, dashes) if dashes else "-"
            axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=4)
            chosen = [place for place, one in enumerate(drawn) if one.chosen]
            ring: dict[str, Any] = {"color": colour, "markerfacecolor": CARD, "markeredgewidth": 2}
            axes.plot(x[chosen], y[chosen], "o", markersize=10, **ring)
            axes.plot(x[chosen], y[chosen], "o", color=colour, markersize=4)
        tried = sorted({one.value for result in tuned for one in result.tried})
        if tried[0] > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(tried) if len(tried) <= 6 else LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.set(xlabel=f"{field}, as the recipe has it (no unit)", ylabel="loss of the kept model (nats/target)")
        picture = svg(figure, "loss of the kept model (nats/target) over the values tried")
    caption = "On the tuning seed; the ring marks what was chosen. Beyond a choice at an end there may be a better one."
    caption += f" {in_runs(lost)} diverged and cannot be drawn." if lost else ""
    return [Picture(f"Tuning {field}", picture, caption)]


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
