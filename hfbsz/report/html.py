"""One self-contained HTML page about a run, or about several laid over each other; it needs no network to be read.

`read_run` reads a run's folder, `render` makes the page, `write` does both and saves it. The words stand in
`page.html.jinja`, the numbers and the pictures are made here.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from hfbsz.amounts import short
from hfbsz.errors import UserError
from hfbsz.plan import explain, from_dict
from hfbsz.record import unit

TOKENS, STEPS, SECONDS = "train/num_input_tokens_seen", "train/global_step", "train/seconds"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008, without the palest
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.2, 1.5), (7, 2, 1.2, 2))  # for runs beyond the palette
DENSE = 150  # points of a curve; of more, means over stretches are drawn
INK, CARD = "#0a0b0c", "#fefdfc"  # stand for the page's own colours, which are light or dark
_LOOK: dict[Any, Any] = {
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
_LOSSES = ("train/loss", "eval/loss")

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class RunData:
    """What a run's folder says; what is missing from it is empty."""

    folder: Path
    records: tuple[Mapping[str, Any], ...]
    plan: Mapping[str, Any]
    status: Mapping[str, Any]
    recipe: str  # YAML text

    def series(self, metric: str, axis: str, full: bool | None = None) -> tuple[Array, Array]:
        """A metric over an axis; `full`: only evaluations of the whole set, or only of its fixed part."""
        found = [
            (record[axis], record[metric])
            for record in self.records
            if _is_number(record.get(axis)) and _is_number(record.get(metric))
            if full is None or bool(record.get("eval/full")) == full
        ]
        x, y = np.array(found, dtype=float).reshape(-1, 2).T
        return x, np.where(np.isfinite(y), y, np.nan)

    def values(self, metric: str) -> list[float]:
        """The finite values of a metric, in order."""
        values = [record.get(metric) for record in self.records]
        return [value for value in values if _is_number(value) and math.isfinite(value)]

    def largest(self, metric: str) -> float | None:
        return max(self.values(metric), default=None)


def read_run(folder: Path) -> RunData:
    """Read the folder of a run; raises UserError where it is none."""
    if not (folder / "records.jsonl").is_file():
        raise UserError(f"{folder}: no records.jsonl: not the folder of a run")
    records, plan, status, recipe = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / name for name in ("records.jsonl", "plan.json", "status.json", "recipe.yaml"))
    )
    return RunData(folder.resolve(), _records(records), _mapping(plan), _mapping(status), recipe)


def render(runs: Sequence[RunData]) -> str:
    """The page of one run or several, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=_number, count=_count, duration=_duration, memory=_memory)
    views = [_view(run, name, place) for place, (run, name) in enumerate(zip(runs, _names(runs), strict=True))]
    return environment.get_template("page.html.jinja").render(
        runs=views,
        # whole sets first: a fixed part is easier or harder by chance
        ranking=sorted(views, key=lambda view: (math.isnan(view["loss"]), not view["full"], view["loss"])),
        data_hashes={(run.plan.get("facts") or {}).get("data_hash") for run in runs} - {None},
        pictures=_pictures(runs),
        cut=_loss_range(runs)[2],
    )


def write(folders: Sequence[Path], out: Path | None) -> Path:
    """Write the page of one or more run folders and give its path; raises UserError with all that cannot be read.

    `out` None: `report.html` in the run's folder, or, for several, in the working directory.
    """
    runs: dict[Path, RunData] = {}
    errors: list[str] = []
    for folder in folders:
        try:
            runs.setdefault(folder.resolve(), read_run(folder))
        except UserError as problem:
            errors += problem.lines
    if errors:
        raise UserError(errors)
    target = out or (folders[0] if len(runs) == 1 else Path()) / "report.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(list(runs.values())), encoding="utf-8", errors="replace")
    except OSError as problem:
        raise UserError(f"{target}: cannot write: {problem.strerror}") from None
    return target


def _records(text: str) -> tuple[Mapping[str, Any], ...]:
    """The lines that can be read: a crash cuts one, and what a resumed run did again replaces what it did before."""
    records: list[Mapping[str, Any]] = []
    last = -math.inf
    for record in filter(None, map(_mapping, text.splitlines())):
        step = record.get(STEPS)
        if record.get("event") == "step" and _is_number(step):
            if step <= last:
                records = [earlier for earlier in records if earlier.get(STEPS, -1) < step]
            last = step
        records.append(record)
    return tuple(records)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(runs: Sequence[RunData]) -> list[str]:
    """As much of the end of each folder's path as tells the runs apart."""
    depth = 1
    while True:
        names = ["/".join(run.folder.parts[-depth:]) for run in runs]
        if len(set(names)) == len(names) or depth > max(len(run.folder.parts) for run in runs):
            return names
        depth += 1


def _view(run: RunData, name: str, place: int) -> dict[str, Any]:
    """What the page says of a run in words and numbers; None: not known."""
    plan = run.plan
    evaluations = [record for record in run.records if _is_number(record.get("eval/loss"))]
    last = max(evaluations, key=lambda record: (record.get(STEPS, 0), record.get("eval/full", 0)), default={})
    tokens, steps, seconds = (run.largest(axis) for axis in (TOKENS, STEPS, SECONDS))
    accumulation = _range(plan.get("accumulation", ()))
    accumulation = f"({accumulation})" if "→" in accumulation else accumulation
    split = (plan.get("micro_batch"), accumulation, plan.get("world_size"))
    return {
        "name": name,
        "colour": _style(place)[0],
        "dashes": " ".join(map(str, _style(place)[1])),
        "state": run.status.get("state", "unknown"),
        "why": run.status.get("why"),
        "loss": last.get("eval/loss", math.nan),
        "full": bool(last.get("eval/full")),
        "evaluation": last,
        "tokens": tokens,
        "steps": steps,
        "planned_steps": plan.get("steps"),
        "seconds": seconds,
        "speed": tokens / seconds if tokens and seconds else None,
        "memory": run.largest("perf/peak_memory_bytes"),
        "batch": _range([phase["batch"] for phase in plan.get("phases", ())] or run.values("batch/global")),
        "rate": run.largest("train/learning_rate"),
        "split": " × ".join(map(str, split)) if all(split) else "–",
        "explanation": _explanation(plan),
        "recipe": run.recipe,
    }


def _explanation(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    try:
        return explain(from_dict(plan))
    except (UserError, LookupError, TypeError, ValueError) as problem:  # a folder of another version of hfbsz
        return f"plan.json does not fit this version of hfbsz: {problem}"


def _pictures(runs: Sequence[RunData]) -> dict[str, Markup]:
    """Inline SVG by name; what no run has measured is left out."""
    loss = f"loss ({unit('eval/loss')})"
    wanted = {
        "tokens": (TOKENS, _LOSSES, loss),
        "steps": (STEPS, _LOSSES, loss),
        "time": (SECONDS, _LOSSES, loss),
        "speed": (TOKENS, ("perf/tokens_per_second",), f"speed ({unit('perf/tokens_per_second')})"),
        "batch": (TOKENS, ("batch/global",), f"global batch ({unit('batch/global')})"),
        "rate": (TOKENS, ("train/learning_rate",), "learning rate (no unit)"),
        "accumulation": (TOKENS, ("batch/accumulation",), f"accumulation ({unit('batch/accumulation')} per step)"),
    }
    sets = {metric for run in runs for record in run.records for metric in record if re.match("eval/.+/loss", metric)}
    wanted |= {metric.removesuffix("/loss"): (TOKENS, (metric,), loss) for metric in sorted(sets)}
    pictures = {}
    for name, (axis, metrics, label) in wanted.items():
        if any(run.values(metric) for run in runs for metric in metrics):
            with matplotlib.rc_context({**_LOOK, "svg.hashsalt": name}):
                pictures[name] = _picture(runs, axis, metrics, label)
    return pictures


def _picture(runs: Sequence[RunData], axis: str, metrics: Sequence[str], label: str) -> Markup:
    figure = Figure(figsize=(4.8, 3.1), layout="constrained")
    axes = figure.add_subplot()
    xlabel, scale = _axis(runs, axis)
    for place, run in enumerate(runs):
        for metric in metrics:
            _draw(axes, run, place, axis, scale, metric)
    axes.set(xlabel=xlabel, ylabel=label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis == STEPS))
    axes.xaxis.set_major_formatter(_tick)
    if metrics == _LOSSES:
        axes.set_ylim(*_loss_range(runs)[:2])
    elif metrics[0] in ("batch/global", "batch/accumulation"):
        values = [value for run in runs for value in run.values(metrics[0])]
        axes.set_yscale("log", base=2)
        axes.set_ylim(2 ** (math.floor(math.log2(min(values))) - 0.3), 2 ** (math.ceil(math.log2(max(values))) + 0.3))
        axes.yaxis.set_major_locator(LogLocator(base=2))
        axes.yaxis.set_major_formatter(_tick)
    elif not metrics[0].startswith("eval/"):
        axes.set_ylim(bottom=0)
    if metrics[0] == "perf/tokens_per_second":
        axes.yaxis.set_major_formatter(_tick)
    return _svg(figure, f"{label} over {xlabel}")


def _axis(runs: Sequence[RunData], axis: str) -> tuple[str, float]:
    """The label of a horizontal axis and what its values are divided by."""
    if axis != SECONDS:
        return ("tokens seen", 1) if axis == TOKENS else ("optimizer steps", 1)
    longest = max((run.largest(SECONDS) or 0 for run in runs), default=0)
    name, scale = ("h", 3600) if longest > 3 * 3600 else ("min", 60) if longest > 180 else ("s", 1)
    return f"training time ({name})", scale


def _draw(axes: Axes, run: RunData, place: int, axis: str, scale: float, metric: str) -> None:
    """One run's curve: evaluations as marks, what is set for a step as steps, what fluctuates as means."""
    colour, dashes = _style(place)
    line: dict[str, Any] = {"color": colour, "linestyle": (0, dashes) if dashes else "-"}
    if metric.startswith("eval/"):
        for full, mark in ((False, "o"), (True, "D")):
            x, y = run.series(metric, axis, full)
            face = CARD if full else colour
            axes.plot(x / scale, y, marker=mark, markersize=6 if full else 4, markerfacecolor=face, zorder=3, **line)
        return
    x, y = run.series(metric, axis)
    if not len(x):
        return
    if metric.startswith("batch/") or metric == "train/learning_rate":
        kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), 4 * DENSE)).astype(int))
        x, y = np.r_[0, x[kept]], np.r_[y[kept[:1]], y[kept]]  # from the start: a step's number holds until its end
        axes.plot(x / scale, y, drawstyle="steps-pre", **line)
        return
    x, y = _means(x, y)
    mark = "." if len(x) == 1 else ""
    axes.plot(x / scale, y, marker=mark, alpha=0.45 if metric == "train/loss" else 1, **line)


def _means(x: Array, y: Array) -> tuple[Array, Array]:
    """A dense curve as its means over equal numbers of points."""
    parts = np.array_split(np.arange(len(x)), min(len(x), DENSE)) if len(x) else []
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _loss_range(runs: Sequence[RunData]) -> tuple[float | None, float | None, float | None]:
    """(bottom, top) of the loss axes, and top where curves pass it.

    The fall of the first steps would flatten all that follows: the axis ends at the 95 % quantile of the training loss
    after the first 5 % of a run, or at the highest validation loss there.
    """
    every, tops = [], []
    for run in runs:
        for metric in _LOSSES:
            x, y = _means(*run.series(metric, TOKENS))
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            late = y[x > 0.05 * (run.largest(TOKENS) or 0)]
            every += y.tolist()
            tops += [np.quantile(late, 0.95 if metric == "train/loss" else 1)] if late.size else []
    if not tops:
        return None, None, None
    bottom, top = min(every), float(max(tops))
    margin = 0.05 * (top - bottom) or 0.1
    return bottom - margin, top + margin, top + margin if max(every) > top + margin else None


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element that takes its width, and ink and ground, from the page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text[text.index("<svg") :], count=2)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # the same in every figure, and nothing refers to them
    text = text.replace(INK, "currentColor").replace(CARD, "var(--card)")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _style(place: int) -> tuple[str, tuple[float, ...]]:
    return PALETTE[place % len(PALETTE)], DASHES[place // len(PALETTE) % len(DASHES)]


def _range(values: Sequence[float]) -> str:
    """`8 → 64`: the first of some values and the largest."""
    ends = dict.fromkeys((values[0], max(values))) if values else {}
    return " → ".join(f"{value:,.0f}" for value in ends) or "–"


def _tick(value: float, _: object = None) -> str:
    if 1000 <= abs(value) < 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}" if abs(value) < 1000 else short(value)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def _count(value: float | None) -> str:
    return "–" if value is None else short(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60:02d} s" if whole < 3600 else f"{hours} h {minutes % 60:02d} min"


def _memory(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
