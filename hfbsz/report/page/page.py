"""One self-contained HTML page about a run, or about several laid over each other; it needs no network to be read.

`render` makes the page, `write` reads the folders, makes it and saves it. The words stand in `page.html.jinja`, the
pictures are made by `figures`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.plan.resolve import from_dict
from hfbsz.recipe.amounts import short
from hfbsz.records.evaluations import (
    LOSS,
    Kept,
    best_evaluation,
    held_weights,
    is_evaluation,
    kept_of,
    not_better,
    stopped_early,
)
from hfbsz.records.metrics import MEASURES, Metric, metric
from hfbsz.records.overfitting import overfitting_of
from hfbsz.records.run_data import SECONDS, STEPS, TOKENS, RunData, is_number, names, read_run
from hfbsz.report.page.figures import loss_range, pictures, style
from hfbsz.report.page.overfitting import loss_limits, panel
from hfbsz.system.files import refuse_others, write_text

_NOT_QUALITY = ("loss", "rows", "set_rows", "targets", "seconds")  # shown elsewhere, or not at all


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders and of this one, with the filters number, count, duration and memory; None: `–`."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters.update(number=_number, count=_count, duration=_duration, memory=_memory)
    return templates


def render(runs: Sequence[RunData]) -> str:
    """The page of one run or several, as HTML."""
    views = [_view(run, name, place) for place, (run, name) in enumerate(zip(runs, names(runs), strict=True))]
    watched = [(place, view["overfitting"]) for place, view in enumerate(views) if view["overfitting"]]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            runs=views,
            # whole sets first: a fixed part is easier or harder by chance
            ranking=sorted(views, key=lambda view: (math.isnan(view["loss"]), not view["full"], view["loss"])),
            data_hashes={(run.plan.get("facts") or {}).get("data_hash") for run in runs} - {None},
            tasks={(run.plan.get("recipe") or {}).get("task") for run in runs} - {None},
            pictures=pictures(runs),
            cut=loss_range(runs)[2],
            measures=_measures([view["evaluation"] for view in views]),
            panel=panel(watched) if watched else None,
            panel_cut=bool(watched) and loss_limits([found for _, found in watched])[2],
        )
    )


def write(folders: Sequence[Path], out: Path | None, tell: Callable[[str], None] = lambda note: None) -> Path:
    """Write the page of one or more run folders and give its path; raises UserError with all that cannot be read.

    `out` None: `report.html` in the run's folder, or, for several, in the working directory; another's file is not
    replaced there. `tell` hears of files of a folder that it is drawn without.
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
    if out or len(runs) > 1:
        refuse_others("out", target, b"hfbsz</title>")
    for note in (note for run in runs.values() for note in run.notes):
        tell(note)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, render(list(runs.values())))
    except OSError as problem:
        raise UserError(f"{target}: cannot write: {problem.strerror}") from None
    return target


def _view(run: RunData, name: str, place: int) -> dict[str, Any]:
    """What the page says of a run in words and numbers; None: not known."""
    plan = run.plan
    kept = kept_of(run)
    curve = [record for record in run.records if is_evaluation(record)]
    last = curve[-1] if curve else {}
    tokens, steps, seconds = (run.largest(axis) for axis in (TOKENS, STEPS, SECONDS))
    return {
        "name": name,
        "colour": style(place)[0],
        "dashes": " ".join(map(str, style(place)[1])),
        "state": run.status.get("state", "unknown"),
        "why": run.status.get("why"),
        "loss": kept.loss if kept else math.nan,
        "full": kept is not None and kept.whole,
        "evaluation": kept.values if kept else {},
        "kept": kept,
        "fixed_part": _fixed_part(kept, best_evaluation(run)) if kept else "",
        "not_better": not_better(run),
        "notes": run.notes,
        "of_best": held_weights(run) == "best",
        "last_evaluation": last,
        "overfitting": overfitting_of(run),
        "held": held_weights(run),
        "early": stopped_early(run),
        "save_best": ((plan.get("recipe") or {}).get("checkpoint") or {}).get("save") == "best",
        "patience": ((plan.get("recipe") or {}).get("eval") or {}).get("patience"),
        "tokens": tokens,
        "steps": steps,
        "planned_steps": plan.get("steps"),
        "seconds": seconds,
        "speed": tokens / seconds if tokens and seconds else None,
        "memory": run.largest("perf/peak_memory_bytes"),
        "batch": _range([phase["batch"] for phase in plan.get("phases", ())] or run.values("batch/global")),
        "rate": run.largest("train/learning_rate"),
        "split": _split(plan),
        "explanation": _explanation(plan),
        "recipe": run.recipe,
        "preview": _preview(run.preview),
    }


def _preview(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """What rows.json says, in the form that the page needs; None where there is none, or one of another version."""
    try:
        rows = [
            {
                "number": int(row["number"]),
                "parts": [(str(text), bool(learnt)) for text, learnt in row["parts"]],
                "tokens": int(row["tokens"]),
                "learnt": int(row["learnt"]),
                "label": row.get("label"),
            }
            for row in told["rows"]
        ]
        columns = {name: [str(column) for column in told.get(name, ())] for name in ("read", "unused")}
        return {"rows": rows, "of": int(told["of"]), **columns, "end": str(told.get("end", ""))} if rows else None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _fixed_part(kept: Kept, best: Mapping[str, Any] | None) -> str:
    """What is to be known of a loss on the fixed part beside one on all rows."""
    rows = f"{kept.fixed['rows']:,} rows, the same" if "rows" in kept.fixed else "the same rows"
    if best is None:
        return f"{rows} at every evaluation"
    if best[STEPS] == kept.step:
        return f"{rows} at every evaluation: this is the best"
    return f"{rows} at every evaluation: the best is {best[LOSS]:.4f} at step {best[STEPS]:,}"


def _measures(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """What the runs measured beside the loss: the table's measures, then further metrics that a recipe named."""
    measured = {name for evaluation in evaluations for name in evaluation if is_number(evaluation[name])}
    further = sorted(name for name in measured - MEASURES.keys() if "/" not in name)
    quality = [name for name in MEASURES if name in measured and name not in _NOT_QUALITY]
    return {name: metric(f"full/{name}") for name in [*quality, *further]}


def _split(plan: Mapping[str, Any]) -> str:
    """`8 × (1 → 8) × 2`, or what fills a micro-batch where that is tokens."""
    tokens = plan.get("recipe", {}).get("batch", {}).get("micro_tokens")
    if tokens is not None:
        return f"≤ {tokens:,} tokens × as many × {plan.get('world_size')}"
    accumulation = _range(plan.get("accumulation", ()))
    accumulation = f"({accumulation})" if "→" in accumulation else accumulation
    split = (plan.get("micro_batch"), accumulation, plan.get("world_size"))
    return " × ".join(map(str, split)) if all(split) else "–"


def _explanation(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    try:
        return explain(from_dict(plan))
    except Exception as problem:  # a folder of another version of hfbsz, or of somebody else
        return f"plan.json does not fit this version of hfbsz: {problem}"


def _range(values: Sequence[float]) -> str:
    """`8 → 64`: the first of some values and the largest."""
    ends = dict.fromkeys((values[0], max(values))) if values else {}
    return " → ".join(f"{value:,.0f}" for value in ends) or "–"


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
