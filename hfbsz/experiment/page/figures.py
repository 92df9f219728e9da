"""Figures of a comparison: measures by batch size, and differences from the baseline."""

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
from hfbsz.report.page.style import CARD, DASHES, INK, LOOK, style, svg, tick

COLD_TO_WARM = LinearSegmentedColormap.from_list("batches", ["#0072b2", "#009e73", "#e69f00", "#d55e00"])
MARKERS = "os^Dvp"
LineStyle = tuple[str, tuple[float, ...]]  # color, dashes

# (heading, field of Trial or Outcome, axis label, how to read it)
BY_BATCH = (
    (
        "Loss",
        "final_loss",
        "loss of the saved model (nats/target)",
        "Lower is better. Where the line rises, the larger batch has a higher loss at this budget.",
    ),
    (
        "Accuracy",
        "accuracy",
        "accuracy (share of rows)",
        "Higher is better. Unlike the loss, accuracy ignores how confident the model is in its errors.",
    ),
    (
        "Gap",
        "gap",
        "final gap (nats/target)",
        "Validation loss − training loss, both in evaluation mode: the part that does not generalize.",
    ),
    (
        "Time to the best evaluation",
        "seconds_to_best",
        "training time (s)",
        "Training time until the lowest validation loss, without evaluations.",
    ),
    (
        "Largest eigenvalue",
        "eigenvalue",
        "largest eigenvalue of the Hessian (no unit)",
        "At the end of a run. It changes with a rescaling of the weights that changes no output.",
    ),
    (
        "Adaptive SAM",
        "adaptive_sam",
        "adaptive SAM (nats/target)",
        "At the end of a run: the rise of the training loss in the worst case of a ball that scales with the weights.",
    ),
    (
        "Critical sharpness",
        "critical_sharpness",
        "critical sharpness (1/learning rate)",
        "At the last measurement of a run: 2 ÷ the learning rate at which the step would have raised the loss.",
    ),
    (
        "Speed",
        "tokens_per_second",
        "speed (tokens/s)",
        "Where the line is flat, a larger batch gives no more throughput on this hardware.",
    ),
)


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    heading: str
    svg: Markup
    caption: str


def family(arm: Arm) -> str:
    """The name of the arm's family: the properties that arms share if they differ in the batch alone."""
    parts = (arm.variant, f"rule {arm.rule}", "rate tuned" * (arm.tuned or arm.searched), "growing batch" * arm.grows)
    return " · ".join(filter(None, parts))


def families(results: Iterable[ArmResult]) -> dict[str, list[ArmResult]]:
    """Arms by family, in ascending order of batch and rate; arms without a plan are skipped."""
    groups: dict[str, list[ArmResult]] = {}
    for result in results:
        if result.arm is not None:
            groups.setdefault(family(result.arm), []).append(result)
    return {name: sorted(results, key=_batch_and_rate) for name, results in groups.items()}


def line_styles(experiment: Experiment) -> dict[str, LineStyle]:
    """Color and dashes of every arm's curves, by the arm's words: colors encode the batch, from cold to warm."""
    groups = families(experiment.arms)
    batches = sorted({result.arm.batch for results in groups.values() for result in results if result.arm})
    colors = {batch: to_hex(COLD_TO_WARM(index / max(1, len(batches) - 1))) for index, batch in enumerate(batches)}
    styles: dict[str, LineStyle] = {}
    for results in groups.values():
        same_batch = [[result for result in results if result.arm and result.arm.batch == batch] for batch in batches]
        if max(map(len, same_batch)) > len(DASHES):
            styles |= {result.words: style(index) for index, result in enumerate(results)}
            continue
        for batch, arms in zip(batches, same_batch, strict=True):
            styles |= {result.words: (colors[batch], DASHES[index]) for index, result in enumerate(arms)}
    return styles


def values(result: ArmResult, name: str) -> list[float]:
    """The measured values of an arm's runs; `name`: a field or property of `Outcome`, or else of `Trial`."""
    of_outcome = name in Outcome.__dataclass_fields__ or hasattr(Outcome, name)
    records: Sequence[object] = result.outcomes if of_outcome else result.trials
    return [value for record in records if (value := getattr(record, name)) is not None]


def by_batch(experiment: Experiment) -> list[Picture]:
    """One figure for each measure in BY_BATCH that any arm has."""
    pictures = []
    for heading, name, label, caption in BY_BATCH:
        measured = [value for result in experiment.arms if result.arm for value in values(result, name)]
        if any(map(math.isfinite, measured)):
            lost = sum(not math.isfinite(value) for value in measured)
            with canvas(name) as figure:
                axes = figure.add_subplot()
                _draw_by_batch(axes, families(experiment.arms), name)
                axes.set_ylabel(label)
                if name in ("seconds_to_best", "tokens_per_second"):
                    axes.set_ylim(bottom=0)
                    axes.yaxis.set_major_formatter(tick)
                drawn = svg(figure, f"{label} by batch size (sequences)")
            caption += f" {count_runs(lost)} diverged: arms with diverged seeds have no mean." if lost else ""
            pictures.append(Picture(f"{heading} by batch size", drawn, caption))
    return pictures


def _draw_by_batch(axes: Axes, groups: Mapping[str, Sequence[ArmResult]], name: str) -> None:
    for index, results in enumerate(groups.values()):
        color, marker = style(index)[0], MARKERS[index % len(MARKERS)]
        offset = 2 ** (0.09 * (index - (len(groups) - 1) / 2))  # families side by side
        means = []
        for result in results:
            assert result.arm is not None
            measured = values(result, name)
            finite = [value for value in measured if math.isfinite(value)]
            x = result.arm.batch * offset
            axes.plot([x / 1.04] * len(finite), finite, marker, color=color, markersize=4, alpha=0.6, markeredgewidth=0)
            if measured and len(finite) == len(measured):  # a mean without the diverged seeds would be biased
                mean, sd = float(np.mean(finite)), float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0
                axes.errorbar(x, mean, sd or None, color=color, capsize=3, linewidth=1.2)
                means.append((x, mean))
        if means:
            positions = [x for x, _ in means]
            axes.plot(*zip(*means, strict=True), marker, color=color, markersize=6)
            line = [mean for mean in means if positions.count(mean[0]) == 1]  # no line through arms of the same batch
            axes.plot([x for x, _ in line], [y for _, y in line], color=color)
    _set_batch_axis(axes, [result.arm.batch for results in groups.values() for result in results if result.arm])


def _set_batch_axis(axes: Axes, batches: Sequence[int]) -> None:
    """A horizontal log2 axis with ticks at the batches, or at powers of two if there are many."""
    shown = sorted(set(batches))
    axes.set_xscale("log", base=2)
    axes.set_xlim(shown[0] / 1.5, shown[-1] * 1.5)
    axes.xaxis.set_major_locator(FixedLocator(shown) if len(shown) <= 8 else LogLocator(base=2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(tick)
    axes.set_xlabel("batch size (sequences per optimizer step)")


def forest(comparisons: Sequence[Comparison], names: Mapping[Arm, str]) -> Markup | None:
    """Forest plot of the differences from the baseline with 95 % confidence intervals; None if there is no interval."""
    drawn = [pair for pair in comparisons if math.isfinite(pair.contrast.low)]
    if not drawn:
        return None
    kind = MEASURES[drawn[0].measure]
    with canvas("forest", height=0.9 + 0.42 * len(drawn)) as figure:
        axes = figure.add_subplot()
        for y, pair in enumerate(drawn):
            test = pair.contrast
            axes.plot([test.low, test.high], [y, y], color=style(0)[0], linewidth=2, solid_capstyle="butt")
            axes.plot(test.mean, y, "o", color=style(0)[0], markersize=6)
            axes.annotate(
                _clip(names[pair.left]),
                (0, y - 0.22),
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
    """A figure in the style of all pages, `height` inches high; the name makes the ids in its SVG unique."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name, "text.parse_math": False}):
        yield Figure(figsize=(4.8, height), layout="constrained")


def _clip(words: str) -> str:
    return words if len(words) <= 68 else words[:67] + "…"


def count_runs(count: int) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} run{'s' * (count > 1)}"


def _batch_and_rate(result: ArmResult) -> tuple[int, float]:
    assert result.arm is not None
    return result.arm.batch, result.arm.learning_rate
