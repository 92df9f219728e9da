"""The dashboard: its specification built offline, saving it to a server on loopback, and its errors."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import ROOT
from fake_wandb import KEY, Answer, fake_server

from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records.metrics import METRICS, NOISE, Metric
from hfbsz.report.wandb.dashboard import TOPICS, Place, differing, specification

TOKENS = "train/num_input_tokens_seen"
SCRIPT = str(ROOT / "scripts" / "dashboard.py")
EXPECTED = {
    "Quality over tokens": {"eval/loss", "eval/bits_per_byte", "eval/perplexity", "train/loss"},
    "Quality at the end": {"full/loss", "full/bits_per_byte", "full/accuracy", "last/loss"},
    "Batch and learning rate": {
        "batch/global",
        "batch/accumulation",
        "batch/ratio",
        "train/learning_rate",
        "train/weight_decay",
    },
    "Throughput": {
        "perf/tokens_per_second",
        "perf/step_seconds",
        "perf/data_seconds",
        "perf/forward_seconds",
        "perf/backward_seconds",
        "perf/measurement_seconds",
        "perf/optimizer_seconds",
        "perf/mfu",
        "perf/peak_memory_bytes",
    },
    "Noise": {"train/grad_norm", "train/skipped"},
    "Sharpness": {"sharpness/critical", "sharpness/critical_rate", "sharpness/rate_ratio", "sharpness/eigenvalue"},
    "Overfitting": {"train/loss", "eval/loss", "train/epoch"},
    "Scores on tasks": {"harness/acc", "harness/acc_norm", "harness/exact_match"},
}
HOSTILE = "it's a \"g\" = <1e-3> \\ and State == 'x' + é🚀" + "x" * 200


def dashboard(place: Path, *words: str, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script without the user's W&B settings and without standard input."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    clean |= {"HOME": str(place), "NETRC": str(place / "netrc"), "NO_PROXY": "*", "no_proxy": "*"}
    code = f"import runpy, sys; {before}sys.argv[0] = {SCRIPT!r}; runpy.run_path({SCRIPT!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT, env=clean | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return specification(Place("team", "hfbsz", "arms"))


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The view's panels by section."""
    bank = spec["workspace"]["spec"]["section"]["panelBankConfig"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in bank["sections"]}


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]


def runsets(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The run sets of the view and of every grid of the report."""
    return [
        *spec["workspace"]["spec"]["section"]["runSets"],
        *(sets for grid in grids(spec) for sets in grid["runSets"]),
    ]


def test_sections_and_their_metrics(spec: dict[str, Any]) -> None:
    drawn = {name: {m for panel in panels for m in panel["metrics"]} for name, panels in sections(spec).items()}
    assert list(drawn) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert expected <= drawn[name] <= METRICS.keys()
    assert drawn["Throughput"] == {metric for metric in METRICS if metric.startswith("perf/")}


def test_every_panel_is_over_tokens_and_has_units_and_the_loss_is_over_time_too(spec: dict[str, Any]) -> None:
    drawn = [panel for panels in sections(spec).values() for panel in panels]
    bars = [panel for panel in drawn if panel["metrics"][0].startswith(("full/", "last/"))]  # one number per run
    assert len(bars) == 5 and all("xAxis" not in panel for panel in bars)
    axes = [(panel["xAxis"], panel["metrics"]) for panel in drawn if panel not in bars]
    timed = [(axis, ["eval/loss"]) for axis in ("train/seconds", "train/device_seconds")]
    assert [one for one in axes if one[0] != TOKENS] == timed and (TOKENS, ["eval/loss"]) in axes
    for panel in (panel for panel in drawn if panel not in bars):
        assert panel["xAxisTitle"].endswith(f"({METRICS[panel['xAxis']].unit})")
        units = {METRICS[metric].unit for metric in panel["metrics"]}
        assert len(units) == 1 and panel["yAxisTitle"].endswith(f"({units.pop() or 'no unit'})")
        assert panel["groupAgg"] == "mean" and panel["groupArea"] == "minmax"


def test_the_report_has_the_same_panels(spec: dict[str, Any]) -> None:
    for grid, panels in zip(grids(spec), sections(spec).values(), strict=True):
        shown = grid["panelBankSectionConfig"]["panels"]
        assert [panel["config"] for panel in shown] == panels
        places = [tuple(panel["layout"].values()) for panel in shown]
        assert len(set(places)) == len(places)
    text = json.dumps(spec["report"], ensure_ascii=False)
    assert all(f"{name}: {METRICS[name].definition}" in text for metrics in EXPECTED.values() for name in metrics)


def test_runs_are_filtered_by_group_and_grouped_by_an_entry_of_their_config(spec: dict[str, Any]) -> None:
    plan = resolve(load(["recipe=large_batch"]).recipe, 1, Facts())
    for runs in runsets(spec):
        (group,), (only,) = runs["grouping"], runs["filters"]["filters"]
        assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "arms")
        assert group["section"] == "config"
        config = {"plan": {"value": plan.to_dict()}}  # how W&B stores {"plan": {…}}
        first, value, name = group["name"].split(".")
        assert config[first][value][name] == 64
    bank = spec["workspace"]["spec"]["section"]["panelBankConfig"]
    assert all(section["localPanelSettings"]["useRunsTableGroupingInPanels"] for section in bank["sections"])
    assert all(runs["filters"]["filters"] == [] for runs in runsets(specification(Place("team", "hfbsz"))))


def test_a_metric_of_a_section_gets_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Metric("noise scale", "sequences", "gradient noise scale", section=NOISE, logarithmic=True)
    monkeypatch.setitem(METRICS, "noise/scale", scale)
    panels = sections(specification(Place("team", "hfbsz")))[NOISE]
    (panel,) = (panel for panel in panels if panel["metrics"] == ["noise/scale"])
    assert panel["yAxisTitle"] == "noise scale (sequences)" and panel["yLogScale"] is True


def test_the_pattern_draws_every_loss_and_nothing_else() -> None:
    losses, scores = (p.pattern for topic in TOPICS for p in topic.panels() if p.pattern)
    logged = [*METRICS, "eval/code/loss", "eval/code/perplexity", "harness/a_task/acc", "harness/a_task/acc_stderr"]
    assert [name for name in logged if re.search(losses, name)] == ["train/loss", "eval/loss", "eval/code/loss"]
    assert [name for name in logged if re.search(scores, name)] == ["harness/a_task/acc"]


def test_any_group_name_is_escaped() -> None:
    spec = specification(Place("team", "hfbsz", HOSTILE))
    assert all(runs["filters"]["filters"][0]["value"] == HOSTILE for runs in runsets(spec))
    assert spec["workspace"]["name"].startswith("Batch size: it's a") and len(spec["workspace"]["name"]) == 128


def test_json_needs_neither_login_nor_server(tmp_path: Path, spec: dict[str, Any]) -> None:
    words = ("entity=team", "project=hfbsz", "group=arms", "format=json")
    done = dashboard(tmp_path, *words, WANDB_BASE_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")
    assert sections(json.loads(done.stdout)) == sections(spec)
    alone = json.loads(dashboard(tmp_path, *words, "report=no").stdout)
    assert list(alone) == ["workspace"]
    assert (alone["workspace"]["entity"], alone["workspace"]["project"]) == ("team", "hfbsz")


@pytest.mark.parametrize("env", [{}, {"WANDB_MODE": "disabled"}, {"WANDB_MODE": "offline"}])
def test_without_a_login_one_line(tmp_path: Path, env: dict[str, str]) -> None:
    done = dashboard(tmp_path, "entity=team", WANDB_BASE_URL="http://127.0.0.1:9", **env)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "nobody is logged in" in line and "wandb login" in line


def test_a_server_that_is_down_is_reported_in_one_line_and_soon(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = dashboard(tmp_path, "entity=team", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert done.returncode == 2 and time.monotonic() - begin < 30
    (line,) = done.stderr.splitlines()
    assert "127.0.0.1:9" in line and KEY not in line


def test_without_the_package_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    done = dashboard(tmp_path, "entity=team", "format=json", before="sys.modules['wandb_workspaces'] = None; ")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "wandb-workspaces" in line and "pip install" in line and "[dashboard]" in line


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        (["project=p"], ["entity="]),
        (["entity="], ["entity="]),
        (["entity=t", "gruop=g", "report=maybe"], ["'group'", "report=maybe: "]),
    ],
)
def test_all_mistakes_are_reported_at_once(tmp_path: Path, words: list[str], phrases: list[str]) -> None:
    done = dashboard(tmp_path, *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == len(phrases)
    assert all(phrase in line for phrase, line in zip(phrases, done.stderr.splitlines(), strict=True))


def test_without_words_it_prints_its_usage(tmp_path: Path) -> None:
    assert (dashboard(tmp_path).returncode, dashboard(tmp_path, "--help").returncode) == (2, 0)


def test_the_fields_that_differ_are_those_of_some_runs_only() -> None:
    recipes = [
        {"seed": 0, "optim": {"lr": 1e-3}, "log": {"group": "a"}},
        {"optim": {"lr": 2e-3}, "log": {"group": "b"}},
    ]
    assert differing(recipes) == ["seed", "optim.lr"]
    assert differing(recipes[:1]) == differing([]) == [] and differing([recipes[0], recipes[0]]) == []


def runs_of(recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """A project with runs of these recipes, as the server describes it."""
    node = {"id": "r", "displayName": "n", "state": "finished", "tags": [], "projectId": 1, "sweepName": None}
    node |= {"summaryMetrics": "{}", "systemMetrics": "{}", "historyLineCount": 1, "user": {"username": "me"}}
    nodes = [node | {"name": f"r{i}", "config": json.dumps({"recipe": {"value": r}})} for i, r in enumerate(recipes)]
    edges = [{"node": one, "cursor": str(number)} for number, one in enumerate(nodes)]
    page = {"endCursor": None, "hasNextPage": False}
    return {"internalId": "i1", "runCount": len(nodes), "readOnly": False, "runs": {"edges": edges, "pageInfo": page}}


class Views(Answer):
    """A server that stores the views and reports it receives."""

    received: ClassVar[list[dict[str, Any]]] = []

    def query(self, request: dict[str, Any]) -> dict[str, Any]:
        text, variables = request["query"], request.get("variables", {})
        if "query Viewer" in text or "GetDefaultEntity" in text:
            teams = {"edges": [{"node": {"name": "team"}}]}
            return {
                "viewer": {"id": "u1", "entity": "team", "username": "u", "email": "", "flags": "{}", "teams": teams}
            }
        if "ProjectInternalId" in text:
            return {"project": {"id": "p1", "internalId": "i1"}}
        if "GetProjects" in text:
            project = {"id": "p1", "name": "hfbsz", "entityName": "team", "createdAt": "2026-01-01T00:00:00"}
            project |= {"isBenchmark": False, "user": None}
            return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": project}]}}
        if "query Runs" in text:
            return {"project": runs_of([{"seed": 0, "optim": {"lr": 1e-3}}, {"seed": 1, "optim": {"lr": 1e-3}}])}
        assert "upsertView" in text, text
        self.received.append(variables)
        view = {"id": "Vmlldzox", "type": "runs", "description": "", "spec": variables["spec"]}
        view |= {"name": variables["name"], "displayName": variables["displayName"]}
        view |= {"project": {"id": "p1", "name": "hfbsz", "entityName": "team"}}
        view |= {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view, "inserted": True}}


def test_saving_sends_the_specification_and_prints_the_addresses(tmp_path: Path, spec: dict[str, Any]) -> None:
    with fake_server() as server:
        server.RequestHandlerClass = Views
        done = dashboard(tmp_path, "entity=team", "group=arms", **server.environment())
        url = server.url
    assert (done.returncode, done.stderr) == (0, "")
    view, report = Views.received
    assert [view["type"], report["type"]] == ["project-view", "runs"]
    assert {each["projectName"] for each in (view, report)} == {"hfbsz"}
    sent = {"workspace": {"spec": json.loads(view["spec"])}, "report": {"spec": json.loads(report["spec"])}}
    assert sections(sent) == sections(spec) and len(grids(sent)) == len(grids(spec))
    columns = sent["workspace"]["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert columns == ["run:displayName", "config:recipe.value.seed"]
    projects = [runs["project"] for grid in grids(sent) for runs in grid["runSets"]]
    assert all(
        (project["name"], project["entityName"], project["id"]) == ("hfbsz", "team", "i1") for project in projects
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"workspace {url}/team/hfbsz?nw=")
    assert second.startswith(f"report    {url}/team/hfbsz/reports/")
