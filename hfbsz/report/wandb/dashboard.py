"""A saved W&B view of a project and a W&B report: runs grouped by batch size, every curve over tokens, the validation
loss over time and device time too.

Both are built without a server; only `save` needs one. Only metrics in `records/metrics` get a panel, so that no panel
is always empty.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfbsz.errors import UserError
from hfbsz.recipe.fields import leaves
from hfbsz.records.metrics import (
    AT_END,
    BATCH,
    METRICS,
    NOISE,
    OVERFITTING,
    PARTS_OF_A_STEP,
    QUALITY,
    SCORES,
    SHARPNESS,
    THROUGHPUT,
    metric,
    section,
)
from hfbsz.report.wandb.reporter import AXIS, session

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

GROUP_BY = "plan.largest_batch"  # the config entry by which runs are grouped
FINAL_PREFIXES = ("full/", "last/")  # measured once, at the end of a run
MOST_COLUMNS, MOST_RUNS = 8, 500  # of the runs table; runs that are compared for them
NOT_COMPARED = ("log", "output_dir", "threads", "resume")  # parts of a recipe that are no columns
TITLE_LENGTH = 128  # W&B's limit, characters
SHARES = ("acc", "acc_norm", "exact_match")  # scores of tasks that share a panel: `harness/<task>/<measure>`
COLUMNS, WIDTH, HEIGHT = 2, 12, 8  # panels per row and their size; a report's grid is 24 units wide


@dataclass(frozen=True)
class Panel:
    """One panel: metrics of one unit, or all metrics that match the regular expression `pattern`, including these."""

    metrics: tuple[str, ...]
    pattern: str | None = None
    axis: str = AXIS


@dataclass(frozen=True)
class Topic:
    """A section of the dashboard: the panels `first`, then one panel for every metric of the section `title` of
    records/metrics."""

    title: str  # a section of records/metrics
    question: str
    first: tuple[Panel, ...] = ()

    def panels(self) -> Iterator[Panel]:
        """The panels of the section, in order."""
        yield from self.first
        yield from (Panel((name,)) for name in section(self.title))


TOPICS = (
    Topic(
        QUALITY,
        "How does the loss depend on the batch at equal tokens, equal time and equal device time?",
        tuple(Panel(("eval/loss",), axis=axis) for axis in ("train/seconds", "train/device_seconds")),
    ),
    Topic(AT_END, "Which batch gives the best saved model, on the full validation set?"),
    Topic(BATCH, "How does the batch grow, and how are learning rate and weight decay scaled with it?"),
    Topic(
        THROUGHPUT,
        "How do speed and memory depend on the batch, and what takes the time of a step?",
        (Panel(tuple(f"perf/{part}_seconds" for part in PARTS_OF_A_STEP)),),
    ),
    Topic(NOISE, "How large is the batch relative to the gradient noise scale, and are steps skipped?"),
    Topic(SHARPNESS, "How far is the learning rate from one that raises the loss, and how sharp does the loss become?"),
    Topic(
        OVERFITTING,
        "Does validation loss diverge from training loss, and after how many epochs?",
        (Panel(("train/loss", "eval/loss"), r"^(train|eval)/(.+/)?loss$"),),  # eval/<set>/loss too
    ),
    Topic(
        SCORES,
        "How do the models score on tasks of lm-evaluation-harness (eval.harness)?",
        (Panel(tuple(f"harness/{name}" for name in SHARES), rf"^harness/.+/({'|'.join(SHARES)})$"),),
    ),
)


@dataclass(frozen=True)
class Place:
    """A W&B project, and the group of its runs to show; None: all runs."""

    entity: str
    project: str
    group: str | None = None

    @property
    def title(self) -> str:
        """The title of the view and the report, without symbols that W&B treats as emoji, such as `=` and `+`."""
        text = f"Batch size: {self.group or self.project}"
        return "".join("-" if unicodedata.category(c).startswith("S") else c for c in text)[:TITLE_LENGTH]

    @property
    def filter(self) -> str:
        """The group as a W&B filter expression, escaped, since the filter language has no quoting; empty: no filter."""
        if self.group is None:
            return ""
        escaped = "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in self.group)
        return f"Metric('Group') == '{escaped}'"


def specification(place: Place, report: bool = True) -> dict[str, Any]:
    """What `save` would send, as plain data; needs no server. Raises UserError if wandb-workspaces is missing."""
    specs = {"workspace": _view(place)._to_model().spec}
    if report:
        specs["report"] = _report(place, located=False)._to_model().spec
    target = {"entity": place.entity, "project": place.project, "name": place.title}
    return {
        kind: target | {"spec": json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))}
        for kind, spec in specs.items()
    }


def save(place: Place, report: bool = True) -> Iterator[tuple[str, str]]:
    """Save a new view, then a new report; yields (kind, URL) of each. Never prompts.

    Raises UserError if wandb-workspaces is not installed, nobody is logged in, or the server refuses them.
    """
    _need_package()
    with session() as api:
        yield "workspace", _view(place, _columns(api, place)).save().url
        if report:
            yield "report", _report(place, located=True).save().url


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which recipes differ, as dotted names in the order of a recipe. `recipes`: as plain data."""
    flat = [dict(leaves(recipe)) for recipe in recipes]
    names = dict.fromkeys(name for fields in flat for name in fields if name.partition(".")[0] not in NOT_COMPARED)
    return [name for name in names if len({json.dumps(fields.get(name)) for fields in flat}) > 1]


def _columns(api: Any, place: Place) -> list[str]:
    """The first columns of the runs table: the fields of the recipe in which the runs differ. None if W&B cannot list
    them, such as in a project without runs."""
    group = {"group": place.group} if place.group is not None else {}
    recipes = []
    with suppress(Exception):
        runs = api.runs(f"{place.entity}/{place.project}", filters=group, lazy=False)
        for _, run in zip(range(MOST_RUNS), runs, strict=False):
            if isinstance(recipe := run.config.get("recipe"), dict):
                recipes.append(recipe)
    return [f"config:recipe.value.{name}" for name in differing(recipes)[:MOST_COLUMNS]]


def _view(place: Place, columns: Sequence[str] = ()) -> "ws.Workspace":
    """The saved view. Its panels use the grouping of its runs table, which users can change; `columns`: its first
    columns, after the name."""
    _need_package()
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=place.title,
        sections=[
            ws.Section(name=topic.title, panels=[_plot(panel) for panel in topic.panels()], is_open=True)
            for topic in TOPICS
        ],
        settings=ws.WorkspaceSettings(x_axis=AXIS),
        runset_settings=ws.RunsetSettings(
            filters=place.filter, groupby=[ws.Config(GROUP_BY)], pinned_columns=list(columns)
        ),
    )


def _report(place: Place, located: bool) -> "wr.Report":
    """The report. `located`: its run sets name the project, which wandb-workspaces looks up on the server at once."""
    _need_package()
    import wandb_workspaces.reports.v2 as wr

    entity, project = (place.entity, place.project) if located else ("", "")
    blocks: list[Any] = [
        wr.P(
            "Every curve is drawn over tokens, so that curves of different batch sizes are comparable; the validation "
            "loss is drawn over training time and device time too. A line is the mean over the runs of one largest "
            "batch (sequences), the area around it their range."
        )
    ]
    for topic in TOPICS:
        panels: list[Any] = [_plot(panel) for panel in topic.panels()]
        for number, panel in enumerate(panels):
            row, column = divmod(number, COLUMNS)
            panel.layout = wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
        runs = wr.Runset(
            entity=entity,
            project=project,
            name="by largest batch",
            filters=place.filter,
            groupby=[f"config.{GROUP_BY}"],
        )
        metrics = dict.fromkeys(name for panel in topic.panels() for name in panel.metrics)
        blocks += [
            wr.H2(topic.title),
            wr.P(topic.question),
            wr.UnorderedList(
                [f"{name}: {METRICS[name].definition} ({metric(name).unit or 'no unit'})" for name in metrics]
            ),
            wr.PanelGrid(runsets=[runs], panels=panels),
        ]
    scope = f"group {place.group}" if place.group else f"project {place.project}"
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=place.title,
        description=f"The effect of the batch size in {scope}",
        blocks=blocks,
        width="fluid",
    )


def _plot(panel: Panel) -> "wr.LinePlot | wr.BarPlot":
    """A line plot over the panel's axis, or a bar plot of a metric that is measured once."""
    import wandb_workspaces.reports.v2 as wr

    first = panel.metrics[0]
    entry = metric(first)
    if first.startswith(FINAL_PREFIXES):
        return wr.BarPlot(
            title=first,
            metrics=[first],
            title_x=entry.label,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
    return wr.LinePlot(
        title=", ".join(panel.metrics),
        x=panel.axis,
        y=list(panel.metrics),
        metric_regex=panel.pattern,
        title_x=metric(panel.axis).label,
        title_y=entry.label,
        log_y=True if entry.logarithmic else None,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _need_package() -> None:
    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError as missing:
        if missing.name != "wandb_workspaces":
            raise
        raise UserError(
            "the package wandb-workspaces is not installed: pip install -c constraints.txt -e '.[dashboard]'"
        ) from None
