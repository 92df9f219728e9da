"""The pictures of a comparison: what its arms reached over batch size, and the curves of their runs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from hfbsz.experiment.results import LOSS, ArmResult, Experiment, Outcome
from hfbsz.measure.trials import MEASURES, Arm, Comparison
from hfbsz.report.figures import CARD, DASHES, INK, LOOK, style, svg, tick
from hfbsz.report.runs import STEPS, TOKENS, Array, RunData

COLD_TO_WARM = LinearSegmentedColormap.from_list("batches", ["#0072b2", "#009e73", "#e69f00", "#d55e00"])
MARKS = "os^Dvp"
Look = tuple[str, tuple[float, ...]]  # colour, dashes

# over batch size: (heading, of a trial or an outcome, axis, what to see in it)
OVER_BATCH = (
    ("Quality", "final_loss", "loss of the kept model (nats/target)", "Lower is better. Where the line turns upward, the batch costs quality at this budget."),
    ("Accuracy", "accuracy", "accuracy (share of rows)", "Higher is better. It does not see how sure the model is of its mistakes; the loss does."),
    ("Gap", "gap", "gap at the end (nats/target)", "Validation loss − training loss, both in evaluation mode: what was learned and does not carry over."),
    ("Time to the best evaluation", "seconds_to_best", "training time (s)", "Training time, evaluations excluded, until the lowest validation loss."),
    ("Speed", "tokens_per_second", "speed (tokens/s)", "Where it stays level, a larger batch buys no more speed from this hardware."),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    heading: str
    svg: Markup
    caption: str


def family(arm: Arm) -> str:
    """What arms share that differ in the batch alone."""
    return f"rule {arm.rule}" + (", rate tuned" if arm.tuned else "") + (", growing batch" if arm.grows else "")


def families(results: Iterable[ArmResult]) -> dict[str, list[ArmResult]]:
    """Arms by family, each in ascending order of batch and rate."""
    found: dict[str, list[ArmResult]] = {}
    for result in results:
        if result.arm is not None:
            found.setdefault(family(result.arm), []).append(result)
    return {name: sorted(several, key=_size) for name, several in found.items()}


def looks(experiment: Experiment) -> dict[str, Look]:
    """Colour and dashes of every arm's curves, by its words: the colour is the batch, from cold to warm."""
    groups = families(experiment.arms)
    batches = sorted({result.arm.batch for several in groups.values() for result in several if result.arm})
    colours = {batch: to_hex(COLD_TO_WARM(place / max(1, len(batches) - 1))) for place, batch in enumerate(batches)}
    found: dict[str, Look] = {}
    for several in groups.values():
        same = [[one for one in several if one.arm and one.arm.batch == batch] for batch in batches]
        if max(map(len, same)) > len(DASHES):
            found |= {result.words: style(place) for place, result in enumerate(several)}
            continue
        for batch, arms in zip(batches, same, strict=True):
            found |= {result.words: (colours[batch], DASHES[place]) for place, result in enumerate(arms)}
    return found


def values(result: ArmResult, name: str) -> list[float]:
    """What was measured of the arm's runs: a field of `Outcome`, or else of `Trial`."""
    holders: Sequence[object] = result.outcomes if name in Outcome.__dataclass_fields__ else result.trials
    return [value for holder in holders if (value := getattr(holder, name)) is not None]


def over_batch(experiment: Experiment) -> list[Picture]:
    """One picture for each number that any arm measured."""
    pictures = []
    for heading, name, label, caption in OVER_BATCH:
        measured = [value for result in experiment.arms if result.arm for value in values(result, name)]
        if any(map(math.isfinite, measured)):
            lost = sum(not math.isfinite(value) for value in measured)
            with _canvas(name) as figure:
                axes = figure.add_subplot()
                _over_batch(axes, families(experiment.arms), name)
                axes.set_ylabel(label)
                if name in ("seconds_to_best", "tokens_per_second"):
                    axes.set_ylim(bottom=0)
                    axes.yaxis.set_major_formatter(tick)
                drawn = svg(figure, f"{label} over batch size (sequences)")
            caption += f" {lost} diverged and cannot be drawn." if lost else ""
            pictures.append(Picture(f"{heading} over batch size", drawn, caption))
    return pictures


def _over_batch(axes: Axes, groups: Mapping[str, Sequence[ArmResult]], name: str) -> None:
    for place, several in enumerate(groups.values()):
        colour, mark = style(place)[0], MARKS[place % len(MARKS)]
        aside = 2 ** (0.09 * (place - (len(groups) - 1) / 2))
        means = []
        for result in several:
            assert result.arm is not None
            found = [value for value in values(result, name) if math.isfinite(value)]
            if not found:
                continue
            x = result.arm.batch * aside
            axes.plot([x] * len(found), found, mark, color=colour, markersize=3.5, alpha=0.5, markeredgewidth=0)
            sd = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
            axes.errorbar(x, float(np.mean(found)), sd or None, color=colour, capsize=3, linewidth=1.2)
            means.append((x, float(np.mean(found))))
        unique = len({x for x, _ in means}) == len(means)
        line = "-" if unique else ""  # several arms of one batch are no line
        axes.plot(*zip(*means, strict=True) if means else ([], []), line, marker=mark, color=colour, markersize=6)
    _batches(axes, [result.arm.batch for several in groups.values() for result in several if result.arm])


def _batches(axes: Axes, batches: Sequence[int]) -> None:
    """A horizontal axis of doublings."""
    shown = sorted(set(batches))
    axes.set_xscale("log", base=2)
    axes.set_xlim(shown[0] / 1.5, shown[-1] * 1.5)
    axes.xaxis.set_major_locator(FixedLocator(shown) if len(shown) <= 8 else LogLocator(base=2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(tick)
    axes.set_xlabel("batch size (sequences per optimizer step)")


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
    said += f" {lost} diverged: their curves end there." if lost else ""
    about = {
        TOKENS: ("tokens seen", "Tokens are what a run pays in data and arithmetic: the lower curve has learned more from the same tokens."),
        STEPS: ("optimizer steps", "Steps are done one after another: a curve as low further left saves serial time."),
    }  # fmt: skip
    pictures = []
    for axis, (label, caption) in about.items():
        with _canvas(axis, height=1.2 + 2 * len(groups)) as figure:
            cut = _panels(figure, groups, looks(experiment), axis)
            figure.supylabel("validation loss (nats/target)", fontsize=10.5, color=INK)
            figure.axes[-1].set_xlabel(label)
            drawn = svg(figure, f"validation loss (nats/target) over {label}")
        high = " The axis is cut above the fall of the first tenth." if cut else ""
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
                late += y[x > 0.1 * x[-1]].tolist()
    for axes, several in zip(panels, groups.values(), strict=True):
        own = {result.words for result in several}
        for x, y in (mean for words, mean in means.items() if words not in own):
            axes.plot(x, y, color=INK, linewidth=1, alpha=0.13, zorder=1)
    margin = 0.05 * (max(late) - min(every)) or 0.1
    panels[0].set_ylim(min(every) - margin, max(late) + margin)
    if axis == STEPS:
        panels[0].set_xscale("log")
        panels[0].xaxis.set_minor_formatter(NullFormatter())
    else:
        panels[0].set_xlim(left=0)
        panels[0].xaxis.set_major_locator(MaxNLocator(6))
    panels[0].xaxis.set_major_formatter(tick)
    return max(every) > max(late) + margin


def _curves(result: ArmResult, axis: str) -> list[tuple[Array, Array]]:
    """(x, loss) of each run that has one: on the fixed part, or, where only wholes were evaluated, on these."""
    found = []
    for run in (outcome.run for outcome in result.outcomes if outcome.run is not None):
        x, y = run.series(LOSS, axis, full=False)
        x, y = (x, y) if len(x) else run.series(LOSS, axis)
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
    with _canvas("tuning") as figure:
        axes = figure.add_subplot()
        for result in tuned:
            colour, dashes = look[result.words]
            lost += sum(one.loss is not None and not math.isfinite(one.loss) for one in result.tried)
            drawn = [(one.value, one.loss, one.chosen) for one in result.tried if _finite(one.loss)]
            x, y, _ = zip(*drawn, strict=True)
            line = (0, dashes) if dashes else "-"
            axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=4)
            for value, loss, _ in (one for one in drawn if one[2]):
                axes.plot(value, loss, "o", color=colour, markersize=10, markerfacecolor=CARD, markeredgewidth=2)
                axes.plot(value, loss, "o", color=colour, markersize=4)
        tried = sorted({one.value for result in tuned for one in result.tried})
        if tried[0] > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(tried) if len(tried) <= 6 else LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.set(xlabel=f"{field}, as the recipe has it (no unit)", ylabel="best validation loss (nats/target)")
        picture = svg(figure, "best validation loss (nats/target) over the values tried")
    caption = "On the tuning seed; the ring marks what was chosen. A choice at an end of its line may have a better one beyond."
    caption += f" {lost} diverged and cannot be drawn." if lost else ""
    return [Picture(f"Tuning {field}", picture, caption)]


def forest(comparisons: Sequence[Comparison], names: Mapping[Arm, str]) -> Markup | None:
    """Differences from the baseline with their 95 % intervals; None where no test has an interval."""
    drawn = [one for one in comparisons if math.isfinite(one.contrast.low)]
    if not drawn:
        return None
    kind = MEASURES[drawn[0].measure]
    with _canvas("forest", height=0.9 + 0.42 * len(drawn)) as figure:
        axes = figure.add_subplot()
        for place, one in enumerate(drawn):
            found = one.contrast
            axes.plot([found.low, found.high], [place, place], color=style(0)[0], linewidth=2, solid_capstyle="butt")
            axes.plot(found.mean, place, "o", color=style(0)[0], markersize=6)
            axes.annotate(names[one.left], (0, place - 0.22), xycoords=("axes fraction", "data"), color=INK, fontsize=9)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_ylim(len(drawn) - 0.5, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        measure = f"ln(arm ÷ baseline) of {kind.words}" if kind.relative else f"arm − baseline ({kind.unit})"
        axes.set_xlabel(measure)
        return svg(figure, f"differences from the baseline with 95 % confidence intervals: {measure}")


@contextmanager
def _canvas(name: str, height: float = 3.1) -> Iterator[Figure]:
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name, "text.parse_math": False}):
        yield Figure(figsize=(4.8, height), layout="constrained")


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _size(result: ArmResult) -> tuple[int, float]:
    assert result.arm is not None
    return result.arm.batch, result.arm.learning_rate
