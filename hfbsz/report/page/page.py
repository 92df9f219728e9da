"""The HTML page of one run, or of several compared: one self-contained file that needs no network.

`render` returns the page, `write` reads the run folders and saves it. The text is in `page.html.jinja`, the figures are
drawn by `figures` and `overfitting`.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from hfbsz.display import with_minus
from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.plan.resolve import from_dict
from hfbsz.recipe.amounts import short
from hfbsz.records.evaluations import (
    LOSS,
    FinalResult,
    best_evaluation,
    final_result,
    is_evaluation,
    not_better,
    saved_weights,
    stopped_early,
)
from hfbsz.records.harness import scores
from hfbsz.records.metrics import MEASURES, Metric, metric
from hfbsz.records.noise import noise_of
from hfbsz.records.overfitting import overfitting_of
from hfbsz.records.run_data import SECONDS, STEPS, TOKENS, RunData, is_number, read_run, short_names
from hfbsz.records.sharpness import sharpness_of
from hfbsz.report.page.figures import loss_range, pictures
from hfbsz.report.page.overfitting import loss_limits, panel
from hfbsz.report.page.style import style
from hfbsz.system.files import refuse_others, write_text

_NOT_QUALITY = ("loss", "rows", "set_rows", "targets", "seconds")  # shown elsewhere, or not at all


def environment(*folders: Path) -> jinja2.Environment:
    """A jinja2 environment with the templates of these folders and of this one.

    Its filters `number`, `count`, `duration` and `memory` show None as `–`; `minus` is for texts of numbers.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters.update(number=_number, count=_count, duration=_duration, memory=_memory, minus=with_minus)
    return templates


def render(runs: Sequence[RunData]) -> str:
    """The page of one run or several, as HTML."""
    views = [_view(run, name, index) for index, (run, name) in enumerate(zip(runs, short_names(runs), strict=True))]
    monitored = [(index, view["overfitting"]) for index, view in enumerate(views) if view["overfitting"]]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            runs=views,
            # losses measured at the end first: the fixed part is smaller, so easier or harder by chance
            ranking=sorted(
                views, key=lambda view: (math.isnan(view["loss"]), not view["measured_at_end"], view["loss"])
            ),
            data_hashes={(run.plan.get("facts") or {}).get("data_hash") for run in runs} - {None},
            tasks={(run.plan.get("recipe") or {}).get("task") for run in runs} - {None},
            pictures=pictures(runs),
            cut=loss_range(runs)[2],
            measures=_measures([view["evaluation"] for view in views]),
            panel=panel(monitored) if monitored else None,
            panel_cut=bool(monitored) and loss_limits([overfitting for _, overfitting in monitored])[2],
        )
    )


def write(folders: Sequence[Path], out: Path | None, tell: Callable[[str], None] = lambda note: None) -> Path:
    """Write the page of one or more run folders and return its path.

    `out` None: `report.html`, in the run's folder for one run, in the working directory for several. `tell` is called
    with a note for each file that could not be read. Raises UserError for folders that are not runs, and if the page
    would replace a file that is not a page of hfbsz.
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


def _view(run: RunData, name: str, index: int) -> dict[str, Any]:
    """The values of a run that the template shows; None: not known. `index` decides its color and dashes."""
    plan = run.plan
    result = final_result(run)
    evaluations = [record for record in run.records if is_evaluation(record)]
    tokens, steps, seconds = (run.largest(axis) for axis in (TOKENS, STEPS, SECONDS))
    return {
        "name": name,
        "color": style(index)[0],
        "dashes": " ".join(map(str, style(index)[1])),
        "state": run.status.get("state", "unknown"),
        "why": run.status.get("why"),
        "loss": result.loss if result else math.nan,
        "measured_at_end": result is not None and result.measured_at_end,
        "evaluation": result.values if result else {},
        "result": result,
        "fixed_part": _fixed_part(result, best_evaluation(run)) if result else "",
        "not_better": not_better(run),
        "notes": run.notes,
        "has_best_weights": saved_weights(run) == "best",
        "last_evaluation": evaluations[-1] if evaluations else {},
        "overfitting": overfitting_of(run),
        "noise": noise_of(run.records),
        "sharpness": sharpness_of(run),
        "scores": scores(run.records, result.step if result else None),
        "saved_weights": saved_weights(run),
        "stopped_early": stopped_early(run),
        "cause": run.status.get("cause"),
        "save_best": ((plan.get("recipe") or {}).get("checkpoint") or {}).get("save") == "best",
        "patience": ((plan.get("recipe") or {}).get("eval") or {}).get("patience"),
        "tokens": tokens,
        "steps": steps,
        "planned_steps": plan.get("steps"),
        "seconds": seconds,
        "speed": tokens / seconds if tokens and seconds else None,
        "utilization": _median(run.values("perf/mfu")),
        "memory": run.largest("perf/peak_memory_bytes"),
        "batch": _range(run.batches),
        "rate": run.largest("train/learning_rate"),
        "split": _split(plan),
        "explanation": _explanation(plan),
        "recipe": run.recipe,
        "preview": _preview(run.preview),
    }


def _preview(preview: Mapping[str, Any]) -> dict[str, Any] | None:
    """The training examples of rows.json for the template; None if it is missing or in an unknown format."""
    try:
        rows = [
            {
                "number": int(row["number"]),
                "parts": [(str(text), bool(in_loss)) for text, in_loss in row["parts"]],
                "tokens": int(row["tokens"]),
                "learned": int(row["learned"]),
                "label": row.get("label"),
            }
            for row in preview["rows"]
        ]
        columns = {name: [str(column) for column in preview.get(name, ())] for name in ("read", "unused")}
        return {"rows": rows, "of": int(preview["of"]), **columns, "end": str(preview.get("end", ""))} if rows else None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _fixed_part(result: FinalResult, best: Mapping[str, Any] | None) -> str:
    """A note on the loss on the fixed part: its rows, and the best evaluation on them."""
    rows = f"{result.fixed_part['rows']:,} rows, the same" if "rows" in result.fixed_part else "the same rows"
    if best is None:
        return f"{rows} at every evaluation"
    if best[STEPS] == result.step:
        return f"{rows} at every evaluation: this is the best"
    return f"{rows} at every evaluation: the best is {best[LOSS]:.4f} at step {best[STEPS]:,}"


def _measures(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """The metrics of the evaluations besides the loss: those of MEASURES first, then those of `eval.metrics`."""
    measured = {name for evaluation in evaluations for name in evaluation if is_number(evaluation[name])}
    further = sorted(name for name in measured - MEASURES.keys() if "/" not in name)
    quality = [name for name in MEASURES if name in measured and name not in _NOT_QUALITY]
    return {name: metric(f"full/{name}") for name in [*quality, *further]}


def _split(plan: Mapping[str, Any]) -> str:
    """Micro-batch × accumulation × processes: `8 × (1 → 8) × 2`, or `≤ 2,048 tokens × variable × 2`."""
    tokens = plan.get("recipe", {}).get("batch", {}).get("micro_tokens")
    if tokens is not None:
        return f"≤ {tokens:,} tokens × variable × {plan.get('world_size')}"
    accumulation = _range(plan.get("accumulation", ()))
    accumulation = f"({accumulation})" if "→" in accumulation else accumulation
    split = (plan.get("micro_batch"), accumulation, plan.get("world_size"))
    return " × ".join(map(str, split)) if all(split) else "–"


def _explanation(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    try:
        return explain(from_dict(plan))
    except Exception as problem:  # written by another version of hfbsz, or by another program
        return f"plan.json cannot be read by this version of hfbsz: {problem}"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _range(values: Sequence[float]) -> str:
    """The first and the largest value: `8 → 64`."""
    ends = dict.fromkeys((values[0], max(values))) if values else {}
    return " → ".join(f"{value:,.0f}" for value in ends) or "–"


def _number(value: float | None, format_spec: str) -> str:
    return "–" if value is None or math.isnan(value) else with_minus(format(value, format_spec))


def _count(value: float | None) -> str:
    return "–" if value is None else short(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s"
    minutes, hours = rounded // 60, rounded // 3600
    return f"{minutes} min {rounded % 60:02d} s" if rounded < 3600 else f"{hours} h {minutes % 60:02d} min"


def _memory(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
