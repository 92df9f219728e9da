"""How figures look: inline SVG whose text stays text, and whose ink and background take the colors of the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfbsz.recipe.amounts import short

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008, without the palest
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 2),
    (1.2, 1.5),
    (7, 2, 1.2, 2),
)  # for more runs than the palette has colors
DASHED = "- - -"  # in a label: the dashed line
INK, CARD = "#0a0b0c", "#fefdfc"  # placeholders that `svg` replaces by the page's colors, light or dark
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Segoe UI", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "lines.linewidth": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.12,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK),
}
SIZE = (4.8, 3.1)  # inches
# left, bottom, width, height: room for every label; a layout that measures them takes a third of the time of a page
PLACE = (0.18, 0.165, 0.765, 0.805)


def svg(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element with the width and colors of the page; `label` describes it to screen readers."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text[text.index("<svg") :], count=2)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # ids repeat across figures, and nothing refers to them
    text = text.replace(INK, "currentColor").replace(CARD, "var(--card)")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


@contextmanager
def page_axes(name: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the look of the pages, and its axes; `name`: for ids that are the same in every drawing."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name}):
        figure = Figure(figsize=SIZE)
        yield figure, figure.add_axes(PLACE)


def style(index: int) -> tuple[str, tuple[float, ...]]:
    """Color and dashes of the run with this index on the page."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def tick(value: float, _: object = None) -> str:
    """A tick label: `250`, `2.5k`, `1M`."""
    if 1000 <= abs(value) < 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}" if abs(value) < 1000 else short(value)
