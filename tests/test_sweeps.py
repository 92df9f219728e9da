"""The W&B sweep files launch what hfbsz takes: their commands are filled in by W&B's own agent, and read by `load`."""

import itertools
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hfbsz.plan.resolve import check
from hfbsz.recipe.load import load
from hfbsz.records.metrics import METRICS

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.fixture(params=SWEEPS, ids=lambda path: path.stem)
def sweep(request):
    return yaml.safe_load(request.param.read_text())


def points(sweep):
    """The grid, as the server hands it to an agent."""
    values = {name: given.get("values", [given.get("value")]) for name, given in sweep["parameters"].items()}
    for chosen in itertools.product(*values.values()):
        yield {name: {"value": value} for name, value in zip(values, chosen, strict=True)}


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What `wandb agent` would start for a sweep: (command, environment) of every point."""
    from wandb import wandb_agent

    started = []
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets in its own environment
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(
        wandb_agent,
        "AgentProcess",
        lambda command, env, **_: started.append((command, env)) or type("Process", (), {})(),
    )

    def launch(sweep):
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="s1")
        agent._sweep_command = list(sweep["command"])
        for number, point in enumerate(points(sweep)):
            agent._command_run({"run_id": f"r{number}", "program": sweep["program"], "args": point})
        return started

    return launch


def test_every_point_is_a_run_of_its_own_that_loads(sweep, launched, monkeypatch):
    loaded = []
    for command, environment in launched(sweep):
        assert command[:2] == ["accelerate", "launch"]
        place = command.index("scripts/pretrain.py")
        assert (ROOT / command[place]).is_file() and not any(word.startswith("${") for word in command)
        monkeypatch.setenv("WANDB_RUN_ID", environment["WANDB_RUN_ID"])
        loaded.append((environment["WANDB_RUN_ID"], load(command[place + 1 :]).recipe))
        check(loaded[-1][1], 1)
    assert len(loaded) == len(list(points(sweep))) > 1
    assert {Path(recipe.output_dir) for _, recipe in loaded} == {Path(f"runs/sweep-s1/{run}") for run, _ in loaded}
    assert len({recipe.digest() for _, recipe in loaded}) == len(loaded)  # every parameter decides something
    assert {recipe.log.group for _, recipe in loaded} == {"sweep-s1"}


def test_it_optimises_what_is_logged_and_summed_up_in_one_number(sweep):
    metric = sweep["metric"]
    assert metric["name"] in METRICS and metric["goal"] == "minimize"
    assert not metric["name"].endswith("/loss")  # min and last: a nested summary, which sweeps do not read
