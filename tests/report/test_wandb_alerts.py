"""Alerts: what a reading or the end of a run tells, each kind once."""

from typing import Any

import pytest

from hfbsz.records.record import Clock, Reading
from hfbsz.report.wandb.alerts import Alerts

ALL = ("overfitting", "batch", "diverged", "preempted", "failed")
ONSET = Reading("eval", Clock(40, 320), {"eval/loss": 3.0, "overfit/onset_step": 20.0})
FAR = {"batch/global": 512, "noise/scale": 100.0, "noise/scale_error": 10.0}


class Run:
    """What is sent to W&B."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def alert(self, **alert: Any) -> None:
        self.sent.append(alert)


@pytest.fixture
def run() -> Run:
    return Run()


def alerts(run: Run, *kinds: str) -> Alerts:
    return Alerts(kinds, "a run", lambda work, part: work(run))


def test_the_onset_of_overfitting_is_told_once(run):
    watching = alerts(run, *ALL)
    watching.read(Reading("eval", Clock(20, 160), {"eval/loss": 2.0}))
    assert run.sent == []
    for _ in range(3):
        watching.read(ONSET)
    (alert,) = run.sent
    assert alert["title"] == "Overfitting began" and alert["text"].startswith("a run: since step 20 ")
    assert alert["level"] == "WARN" and alert["wait_duration"] >= 60 and len(alert["title"]) < 64


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, True),
        ({"batch/global": 480}, False),  # four times the upper end of the interval, 120
        ({"noise/scale_error": 40.0}, False),
        ({"noise/scale_error": None}, False),
        ({"noise/scale": -1.0}, False),
        ({"noise/scale": float("nan")}, False),
    ],
)
def test_a_batch_past_the_noise_scale_is_told_where_it_is_sure(run, changed, told):
    values = {name: value for name, value in (FAR | changed).items() if value is not None}
    watching = alerts(run, *ALL)
    for step in (1, 2):
        watching.read(Reading("step", Clock(step, 8 * step), values))
    assert [alert["title"] for alert in run.sent] == ["Batch past the noise scale"] * told


def test_the_scale_of_norms_alone_tells_nothing(run):
    values = {"batch/global": 512, "noise/norm_scale": 10.0, "noise/norm_scale_error": 0.1}
    alerts(run, *ALL).read(Reading("step", Clock(1, 8), values))
    assert run.sent == []


@pytest.mark.parametrize("state", ["diverged", "failed", "preempted"])
def test_the_end_is_told_with_its_cause_but_not_with_texts_of_the_run(run, state):
    watching = alerts(run, *ALL)
    for _ in range(2):
        watching.end(state, {"cause": "memory", "why": "/home/me/secret.txt: hf_PLANTED"})
    (alert,) = run.sent
    assert "memory" in alert["text"] and "PLANTED" not in str(alert) and state in alert["title"].lower()


def test_a_finished_run_and_kinds_that_are_off_tell_nothing(run):
    alerts(run, *ALL).end("finished", {"cause": "budget"})
    silent = alerts(run, "failed")
    silent.read(ONSET)
    silent.read(Reading("step", Clock(1, 8), FAR))
    silent.end("diverged", {})
    assert run.sent == []
    silent.end("failed", {})
    assert len(run.sent) == 1
