"""The figure of what a step spends its time on: a stacked bar for each run."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hfbsz.records.metrics import PARTS_OF_A_STEP
from hfbsz.records.run_data import STEPS, RunData, is_number
from hfbsz.report.page.style import INK, PALETTE, SIZE, style, svg

OTHER = "other"  # the remainder of a step
_SHADES = dict(zip((*PARTS_OF_A_STEP, OTHER), (*(PALETTE[index] for index in (4, 5, 0, 3, 2)), INK), strict=True))
_PLACE = (0.06, 0.4, 0.9, 0.56)
_WIDE = 0.09  # share of the longest bar, from which a part has its share written into it
_BAR = 0.62


def parts_of(run: RunData) -> dict[str, float]:
    """Mean seconds of a step by part, over the steps of a run's records; empty if none were recorded."""
    needed = ("perf/forward_seconds", "perf/step_seconds", STEPS)
    rows = [record for record in run.records if all(map(is_number, map(record.get, needed)))]
    if not rows:
        return {}
    steps = np.diff([0, *(record[STEPS] for record in rows)])  # that each record is the mean of
    steps = np.where(steps > 0, steps, 1)

    def mean(name: str) -> float:
        return float(np.average([record.get(name, 0.0) for record in rows], weights=steps))

    parts = {part: mean(f"perf/{part}_seconds") for part in PARTS_OF_A_STEP}
    return {**parts, OTHER: max(0.0, mean("perf/step_seconds") - sum(parts.values()))}


def step_parts(runs: Sequence[RunData]) -> Markup:
    """The figure as SVG; runs from top to bottom in the order of the page's legend."""
    bars = [(index, parts) for index, run in enumerate(runs) if (parts := parts_of(run))]
    longest = max(sum(parts.values()) for _, parts in bars)
    unit, scale = ("s", 1.0) if longest >= 1 else ("ms", 1000.0)
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes(_PLACE)
    for place, (index, parts) in enumerate(bars):
        _bar(axes, place, parts, scale, longest)
        color, dashes = style(index)
        if len(runs) > 1:
            line = Line2D([-0.045, -0.01], [place, place], transform=axes.get_yaxis_transform(), clip_on=False)
            line.set(color=color, linewidth=3, linestyle=(0, dashes) if dashes else "-")
            axes.add_line(line)
    axes.set(xlim=(0, scale * longest * 1.02), ylim=(len(bars) - 0.5, -0.5), xlabel=f"time of a step ({unit})")
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    handles = [Patch(color=shade, alpha=_alpha(part), linewidth=0) for part, shade in _SHADES.items()]
    figure.legend(
        handles, [_heading(part) for part in _SHADES], loc="lower center", ncols=3, frameon=False, fontsize=9.5,
        labelcolor=INK, handlelength=1.1,
    )  # fmt: skip
    return svg(figure, "time of a step by part")


def _bar(axes: Axes, place: int, parts: dict[str, float], scale: float, longest: float) -> None:
    left, total = 0.0, sum(parts.values())
    for part, seconds in parts.items():
        axes.barh(place, scale * seconds, _BAR, left=scale * left, color=_SHADES[part], alpha=_alpha(part), linewidth=0)
        if seconds >= _WIDE * longest:
            middle = scale * (left + seconds / 2)
            axes.text(
                middle, place, f"{100 * seconds / total:.0f} %", ha="center", va="center", fontsize=9.5, color=INK
            )
        left += seconds


def _alpha(part: str) -> float:
    return 0.15 if part == OTHER else 0.6


def _heading(part: str) -> str:
    return OTHER if part == OTHER else PARTS_OF_A_STEP[part].heading
