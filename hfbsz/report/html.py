"""One self-contained HTML page about a run, or about several laid over each other; needs no network to be read.

`read_run` reads a run's folder, `render` makes the page, `write` does both and saves it.
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008, what shows on both grounds
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))
DENSE = 150  # points of a curve beyond which their means are drawn
INK, CARD = "#0a0b0c", "#fefdfc"  # stand for the page's own colours, light or dark
_LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hfbsz",
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
_LOSS_CAPTIONS = {
    TOKENS: "Tokens are what a run is paid for in data and compute, so curves of different batch sizes compare "
    "fairly here: the lower one learned more from the same tokens.",
    STEPS: "Optimizer steps follow one after another: a curve that ends further left reached its loss in fewer "
    "of them, the serial time that a larger batch can save.",
    SECONDS: "Training time, evaluation excluded, is what this hardware makes of it: the lower curve at a given time "
    "is ahead here.",
}

Array = np.ndarray[Any, np.dtype[np.float64]]
Curve = tuple[Array, Array]


@dataclass(frozen=True)
class RunData:
    """What a run's folder says; what is missing from it is empty."""

    name: str
    folder: Path
    records: tuple[Mapping[str, Any], ...]
    plan: Mapping[str, Any]
    status: Mapping[str, Any]
    recipe: str  # YAML text

    def series(self, metric: str, axis: str, full: bool | None = None) -> Curve:
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


@dataclass(frozen=True)
class Summary:
    """What the page says of a run in words and numbers; None: not known."""

    name: str
    colour: str
    dashes: tuple[float, ...]
    state: str
    why: str
    evaluation: Mapping[str, Any]  # the last one
    full: bool  # it took the whole validation set, not its fixed part
    tokens: float | None
    steps: float | None
    planned_steps: int | None
    seconds: float | None
    speed: float | None  # tokens/s
    memory: float | None  # B
    batch: str
    rate: float | None
    split: str
    explanation: str
    recipe: str

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Sorts by validation loss: whole sets first, for a fixed part is easier or harder by chance."""
        loss = self.evaluation.get("eval/loss", math.nan)
        return math.isnan(loss), not self.full, loss


@dataclass(frozen=True)
class Picture:
    title: str
    caption: str
    svg: Markup


def read_run(folder: Path) -> RunData:
    """Read the folder of a run; raises UserError where it is none."""
    path = folder / "records.jsonl"
    if not path.is_file():
        raise UserError(f"{folder}: no records.jsonl: not the folder of a run")
    recipe = folder / "recipe.yaml"
    return RunData(
        name=folder.resolve().name,
        folder=folder.resolve(),
        records=_records(path.read_text(encoding="utf-8", errors="replace")),
        plan=_mapping((folder / "plan.json").read_text() if (folder / "plan.json").is_file() else ""),
        status=_mapping((folder / "status.json").read_text() if (folder / "status.json").is_file() else ""),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )


def render(runs: Sequence[RunData]) -> str:
    """The page of one run or several, as HTML."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(number=_number, count=_count, duration=_duration, memory=_memory)
    summaries = [_summary(run, name, place) for place, (run, name) in enumerate(zip(runs, _names(runs), strict=True))]
    with matplotlib.rc_context(_LOOK):
        pictures = list(_pictures(runs))
    return environment.get_template("page.html.jinja").render(
        runs=summaries,
        ranking=sorted(summaries, key=lambda run: run.rank),
        most_steps=max((run.steps or 0 for run in summaries), default=0),
        cautions=_cautions(runs, summaries),
        pictures=pictures,
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
    for record in map(_mapping, text.splitlines()):
        step = record.get(STEPS)
        if record.get("event") == "step" and _is_number(step):
            if step <= last:
                records = [earlier for earlier in records if earlier.get(STEPS, -1) < step]
            last = step
        if record:
            records.append(record)
    return tuple(records)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(runs: Sequence[RunData]) -> list[str]:
    """As much of the end of each folder's path as tells the runs apart."""
    names = [run.name for run in runs]
    deepest = max((len(run.folder.parts) for run in runs), default=0)
    for depth in range(2, deepest + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(run.folder.parts[-depth:]) for run in runs]
    return names


def _summary(run: RunData, name: str, place: int) -> Summary:
    plan = run.plan
    evaluations = [record for record in run.records if _is_number(record.get("eval/loss"))]
    last = max(evaluations, key=lambda record: (record.get(STEPS, 0), record.get("eval/full", 0)), default={})
    tokens, steps, seconds = (max(run.values(axis), default=None) for axis in (TOKENS, STEPS, SECONDS))
    batches = [phase["batch"] for phase in plan.get("phases", ())] or run.values("batch/global")
    splits = [plan.get("micro_batch"), _range(plan.get("accumulation", ())), plan.get("world_size")]
    colour, dashes = _style(place)
    return Summary(
        name, colour, dashes,
        state=str(run.status.get("state", "unknown")),
        why=str(run.status.get("why") or ""),
        evaluation=last,
        full=bool(last.get("eval/full")),
        tokens=tokens,
        steps=steps,
        planned_steps=plan.get("steps"),
        seconds=seconds,
        speed=tokens / seconds if tokens and seconds else None,
        memory=max(run.values("perf/peak_memory_bytes"), default=None),
        batch=_range(batches),
        rate=max(run.values("train/learning_rate"), default=None),
        split=" × ".join(map(str, splits)) if all(splits) else "–",
        explanation=_explanation(plan),
        recipe=run.recipe,
    )  # fmt: skip


def _explanation(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    try:
        return explain(from_dict(plan))
    except (UserError, LookupError, TypeError, ValueError) as problem:  # a folder of another version of hfbsz
        return f"plan.json does not fit this version of hfbsz: {problem}"


def _cautions(runs: Sequence[RunData], summaries: Sequence[Summary]) -> list[str]:
    """What stands against comparing the final losses of these runs."""
    cautions = []
    seen = [run.tokens for run in summaries if run.tokens]
    if len(seen) > 1 and max(seen) > 1.05 * min(seen):
        cautions.append(
            f"The runs saw from {short(min(seen))} to {short(max(seen))} tokens: compare them in the picture over "
            "tokens, where the curves stand above the same number."
        )
    if len({(run.plan.get("facts") or {}).get("data_hash") for run in runs}) > 1:
        cautions.append("The runs used different data: their losses are not of the same text.")
    if len({run.full for run in summaries if run.evaluation}) > 1:
        cautions.append("Losses marked “part” are of the fixed part of the validation set, the others of all of it.")
    return cautions
