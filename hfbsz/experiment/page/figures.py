"""The pictures of a comparison: what its arms reached over batch size, and their differences from the baseline."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from hfbsz.experiment.results import ArmResult, Experiment, Outcome
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Comparison
from hfbsz.report.page.figures import CARD, DASHES, INK, LOOK, style, svg, tick

COLD_TO_WARM = LinearSegmentedColormap.from_list("batches", ["#0072b2", "#009e73", "#e69f00", "#d55e00"])
MARKS = "os^Dvp"
Look = tuple[str, tuple[float, ...]]  # colour, dashes

# over batch size: (heading, of a trial or an outcome, axis, what to see in it)
OVER_BATCH = (
    (
        "Quality",
        "final_loss",
        "loss of the kept model (nats/target)",
        "Lower is better. Where the line turns upward, the batch costs quality at this budget.",
    ),
    (
        "Accuracy",
        "accuracy",
        "accuracy (share of rows)",
        "Higher is better. It does not see how sure the model is of its mistakes; the loss does.",
    ),
    (
        "Gap",
        "gap",
        "gap at the end (nats/target)",
        "Validation loss − training loss, both in evaluation mode: what was learned and does not carry over.",
    ),
    (
        "Time to the best evaluation",
        "seconds_to_best",
        "training time (s)",
        "Training time, evaluations excluded, until the lowest validation loss.",
    ),
    (
        "Speed",
        "tokens_per_second",
        "speed (tokens/s)",
        "Where it stays level, a larger batch buys no more speed from this hardware.",
    ),
)


@dataclass(frozen=True)
class Picture:
    heading: str
    svg: Markup
    caption: str


def family(arm: Arm) -> str:
    """What arms share that differ in the batch alone."""
    parts = (arm.variant, f"rule {arm.rule}", "rate tuned" * (arm.tuned or arm.searched), "growing batch" * arm.grows)
    return " · ".join(filter(None, parts))


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
            with canvas(name) as figure:
                axes = figure.add_subplot()
                _over_batch(axes, families(experiment.arms), name)
                axes.set_ylabel(label)
                if name in ("seconds_to_best", "tokens_per_second"):
                    axes.set_ylim(bottom=0)
                    axes.yaxis.set_major_formatter(tick)
                drawn = svg(figure, f"{label} over batch size (sequences)")
            caption += f" {in_runs(lost)} diverged: arms with such seeds show the others, and no mean." if lost else ""
            pictures.append(Picture(f"{heading} over batch size", drawn, caption))
    return pictures


def _over_batch(axes: Axes, groups: Mapping[str, Sequence[ArmResult]], name: str) -> None:
    for place, several in enumerate(groups.values()):
        colour, mark = style(place)[0], MARKS[place % len(MARKS)]
        aside = 2 ** (0.09 * (place - (len(groups) - 1) / 2))
        means = []
        for result in several:
            assert result.arm is not None
            every = values(result, name)
            found = [value for value in every if math.isfinite(value)]
            x = result.arm.batch * aside
            axes.plot([x / 1.04] * len(found), found, mark, color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
            if every and len(found) == len(every):  # a mean of survivors would flatter
                mean, sd = float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
                axes.errorbar(x, mean, sd or None, color=colour, capsize=3, linewidth=1.2)
                means.append((x, mean))
        if means:
            places = [x for x, _ in means]
            axes.plot(*zip(*means, strict=True), mark, color=colour, markersize=6)
            line = [mean for mean in means if places.count(mean[0]) == 1]  # several arms of one batch are no line
            axes.plot([x for x, _ in line], [y for _, y in line], color=colour)
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


def forest(comparisons: Sequence[Comparison], names: Mapping[Arm, str]) -> Markup | None:
    """Differences from the baseline with their 95 % intervals; None where no test has an interval."""
    drawn = [one for one in comparisons if math.isfinite(one.contrast.low)]
    if not drawn:
        return None
    kind = MEASURES[drawn[0].measure]
    with canvas("forest", height=0.9 + 0.42 * len(drawn)) as figure:
        axes = figure.add_subplot()
        for place, one in enumerate(drawn):
            found = one.contrast
            axes.plot([found.low, found.high], [place, place], color=style(0)[0], linewidth=2, solid_capstyle="butt")
            axes.plot(found.mean, place, "o", color=style(0)[0], markersize=6)
            axes.annotate(
                _clip(names[one.left]),
                (0, place - 0.22),
                xycoords=("axes fraction", "data"),
                bbox={"facecolor": CARD, "edgecolor": "none", "pad": 0.5},
                color=INK,
                fontsize=9,
            ).set_in_layout(False)
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
        axes.set_ylim(len(drawn) - 0.5, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        measure = f"ln(arm ÷ baseline) of {kind.words}" if kind.relative else f"arm − baseline ({kind.unit})"
        axes.set_xlabel(measure)
        return svg(figure, f"differences from the baseline with 95 % confidence intervals: {measure}")


@contextmanager
def canvas(name: str, height: float = 3.1) -> Iterator[Figure]:
    """A figure in the look of all pages, `height` inches high; the name makes its ids unlike those of others."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name, "text.parse_math": False}):
        yield Figure(figsize=(4.8, height), layout="constrained")


def _clip(words: str) -> str:
    return words if len(words) <= 68 else words[:67] + "…"


def in_runs(count: int) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} run{'s' * (count > 1)}"


def _size(result: ArmResult) -> tuple[int, float]:
    assert result.arm is not None
    return result.arm.batch, result.arm.learning_rate
