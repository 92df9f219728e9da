"""What a team looks at in W&B: a saved view of a project, and a report, grouped by batch size, every curve over tokens.

Both are built without a server; only `save` needs one. A metric is drawn once `records/metrics` has it, so that no
panel stays empty for good.
"""

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfbsz.errors import UserError
from hfbsz.records.metrics import METRICS, metric
from hfbsz.report.wandb.reporter import AXIS, session

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

BATCH = "plan.largest_batch"  # the number in a run's config by which runs are grouped
LOGARITHMIC = ("eval/perplexity", "batch/global", "batch/accumulation", "batch/ratio")
ONCE = ("full/", "last/")  # measured at the end alone
TITLE_LENGTH = 128  # W&B's own limit
COLUMNS, WIDTH, HEIGHT = 2, 12, 8  # of a report's grid, which is 24 wide


@dataclass(frozen=True)
class Panel:
    """One picture: metrics of one unit, or whatever is logged under a name that `pattern` matches, those among it."""

    metrics: tuple[str, ...]
    pattern: str | None = None


@dataclass(frozen=True)
class Topic:
    """A section. `wanted` holds panels, names of metrics, and prefixes (`noise/`): all that METRICS has below them."""

    title: str
    question: str
    wanted: tuple[str | Panel, ...]

    def panels(self) -> Iterator[Panel]:
        """The panels of what METRICS has."""
        for want in self.wanted:
            if isinstance(want, Panel):
                yield want
            else:
                whole = want.endswith("/")
                yield from (Panel((name,)) for name in METRICS if name == want or (whole and name.startswith(want)))


TOPICS = (
    Topic(
        "Quality over tokens",
        "What does a larger batch cost at equal tokens?",
        ("eval/loss", "eval/bits_per_byte", "eval/perplexity", "train/loss"),
    ),
    Topic(
        "Quality at the end",
        "Which batch ends best, on all of validation, by the model that is kept?",
        ("full/loss", "full/bits_per_byte", "full/accuracy", "last/loss"),
    ),
    Topic(
        "Batch and rate",
        "How does the batch grow, and do rate and weight decay follow it?",
        ("batch/global", "batch/accumulation", "batch/ratio", "train/learning_rate", "train/weight_decay"),
    ),
    Topic("Throughput", "What does the hardware make of the batch?", ("perf/",)),
    Topic(
        "Noise",
        "How large is the batch against the noise of its gradient, and are its steps sound?",
        ("noise/", "train/grad_norm", "train/skipped"),
    ),
    Topic(
        "Overfitting",
        "Does validation loss part from training loss, and after how many passes over the rows?",
        (
            Panel(("train/loss", "eval/loss"), r"^(train|eval)/(.+/)?loss$"),  # eval/<set>/loss too
            "overfit/",
            "sharpness/",
            "eval/accuracy",
            "eval/extractable",
            "train/epoch",
        ),
    ),
)


@dataclass(frozen=True)
class Place:
    """A project of a team or user, and the group of its runs that is shown; None: all of them."""

    entity: str
    project: str
    group: str | None = None

    @property
    def title(self) -> str:
        """Without the symbols that W&B takes for emoji, `=` and `+` among them."""
        text = f"Batch size: {self.group or self.project}"
        return "".join("-" if unicodedata.category(c).startswith("S") else c for c in text)[:TITLE_LENGTH]

    @property
    def filter(self) -> str:
        """The group in W&B's language of filters, which neither quotes nor leaves alone what is in a string."""
        if self.group is None:
            return ""
        escaped = "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in self.group)
        return f"Metric('Group') == '{escaped}'"


def specification(place: Place, report: bool = True) -> dict[str, Any]:
    """What `save` would send, as plain data; needs no server. Raises UserError without wandb-workspaces."""
    specs = {"workspace": _view(place)._to_model().spec}
    if report:
        specs["report"] = _report(place, located=False)._to_model().spec
    where = {"entity": place.entity, "project": place.project, "name": place.title}
    return {
        kind: where | {"spec": json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))}
        for kind, spec in specs.items()
    }


def save(place: Place, report: bool = True) -> Iterator[tuple[str, str]]:
    """Saves a new view, then a new report; yields what was saved and its address. Asks no question.

    Raises UserError without wandb-workspaces or a login, and where the server does not take them.
    """
    view = _view(place)
    with session():
        yield "workspace", view.save().url
        if report:
            yield "report", _report(place, located=True).save().url


def _view(place: Place) -> "ws.Workspace":
    """The saved view. Its panels take the grouping of its table of runs, which a click takes back."""
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
        runset_settings=ws.RunsetSettings(filters=place.filter, groupby=[ws.Config(BATCH)]),
    )


def _report(place: Place, located: bool) -> "wr.Report":
    """The report. A set of runs that is `located` names its project, which W&B looks up on the server at once."""
    _need_package()
    import wandb_workspaces.reports.v2 as wr

    entity, project = (place.entity, place.project) if located else ("", "")
    blocks: list[Any] = [
        wr.P(
            "Every curve is drawn over tokens: only so do curves of different batch sizes compare. A line is the mean "
            "of the runs of one largest batch (sequences), the area around it their range."
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
            groupby=[f"config.{BATCH}"],
        )
        named = dict.fromkeys(name for panel in topic.panels() for name in panel.metrics)
        blocks += [
            wr.H2(topic.title),
            wr.P(topic.question),
            wr.UnorderedList([f"{name}: {METRICS[name].definition} ({_unit(name)})" for name in named]),
            wr.PanelGrid(runsets=[runs], panels=panels),
        ]
    what = f"group {place.group}" if place.group else f"project {place.project}"
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=place.title,
        description=f"What the batch size does in {what}",
        blocks=blocks,
        width="fluid",
    )


def _plot(panel: Panel) -> "wr.LinePlot | wr.BarPlot":
    """Curves over tokens; bars of what is measured once, at the end."""
    import wandb_workspaces.reports.v2 as wr

    first = panel.metrics[0]
    label = first.rpartition("/")[2].replace("_", " ")
    if first.startswith(ONCE):
        return wr.BarPlot(
            title=first,
            metrics=[first],
            title_x=f"{label} ({_unit(first)})",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
    return wr.LinePlot(
        title=", ".join(panel.metrics),
        x=AXIS,
        y=list(panel.metrics),
        metric_regex=panel.pattern,
        title_x=f"input tokens seen ({_unit(AXIS)})",
        title_y=f"{label} ({_unit(first)})",
        log_y=True if first in LOGARITHMIC else None,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _unit(name: str) -> str:
    return metric(name).unit or "no unit"


def _need_package() -> None:
    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError as missing:
        if missing.name != "wandb_workspaces":
            raise
        raise UserError(
            "the package wandb-workspaces is not installed: pip install -c constraints.txt -e '.[dashboard]'"
        ) from None
