"""A figure of a comparison: validation loss against optimizer steps, one dot per seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe & Ito 2008
_MARKERS, _INSIDE = "os^D", 7  # of the arms beyond the colors; the most arms whose legend is inside the axes


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write an SVG or PNG figure of `results.rows`; rows without a finished run are skipped."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shown = [row for row in rows if row["runs"]]
    names = [str(row["choices"]).replace("recipe=", "").split() for row in shown]
    common = [word for word in names[0] if len(names) > 1 and all(word in others for others in names)] if names else []
    for number, (row, words) in enumerate(zip(shown, names, strict=True)):
        color, name = _COLORS[number % len(_COLORS)], " ".join(word for word in words if word not in common)
        marker = _MARKERS[number // len(_COLORS) % len(_MARKERS)]
        same_steps = sum(other["steps"] == row["steps"] for other in shown[:number])
        x = row["steps"] * 1.05**same_steps  # arms of equal steps side by side
        axes.plot(
            [x] * row["runs"], row["losses"], marker, color=color, alpha=0.45, markersize=5.5, linewidth=0, label=name
        )
        axes.plot([x], [row["loss"]], "_", color=color, markersize=18, markeredgewidth=2)
    axes.set_xscale("log")
    ticks: list[int] = []
    for steps in sorted({row["steps"] for row in shown}):
        if not ticks or steps > 1.15 * ticks[-1]:  # skip labels that would overlap
            ticks.append(steps)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("optimizer steps for the same tokens (log scale)")
    axes.set_ylabel("validation loss (nats/target)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(shown) > _INSIDE else {}
    title = "\n".join(["bar: mean, marks: seeds", *([" ".join(common)] if common else [])])
    axes.legend(frameon=False, title=title, alignment="left", **outside)
    figure.savefig(path, dpi=160, facecolor="white")
