"""A run's folder may be of another version, or another's: what looks otherwise counts as missing; the rest is shown."""

import json
import math
import random
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_html import make_run, plan_of, records_of

from hfbsz.errors import UserError
from hfbsz.experiment.gather import gather, outcome_of
from hfbsz.experiment.page import page
from hfbsz.experiment.page.results_file import results_of
from hfbsz.experiment.page.terminal import lines_of
from hfbsz.experiment.results import ArmResult, Experiment, rows
from hfbsz.records.run_data import read_run
from hfbsz.records.shapes import parse_plan, parse_record
from hfbsz.report.page import page as html
from hfbsz.report.wandb.identity import config_of, read_identity
from hfbsz.report.wandb.sync import _read

OTHERS: list[Any] = [
    *("x", "", [], {}, None, True, -1, 0, 1e308, 10**400, math.nan, math.inf, [1], {"a": 1}, [None], "NaN", [[[]]]),
]
AXES = {"train/global_step": 3, "train/sequences": 6, "train/num_input_tokens_seen": 9, "train/seconds": 1.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plan_of("duration=60ktok")
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", plan, records_of(plan))
    identity = {"id": "a", "project": "p", "entity": None, "group": None, "job_type": "pretrain", "name": "n"}
    (folder / "wandb.json").write_text(json.dumps(identity))
    (folder / "machine.json").write_text(json.dumps({"device": "cpu", "processes": 1, "threads": 2}))
    row = {"number": 0, "parts": [["a", False], ["b", True]], "tokens": 2, "learned": 1, "label": None}
    (folder / "rows.json").write_text(json.dumps({"rows": [row], "of": 9, "read": ["text"], "unused": [], "end": "x"}))
    return folder


def copied(run: Path, folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_text(texts.get(path.stem, path.read_text()))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        *('{"steps": "x"}', '{"phases": "abc"}', '{"phases": [1]}', '{"phases": [{}]}', '{"facts": "x"}'),
        *('{"recipe": [1]}', '{"recipe": {"task": 5}}', '{"recipe": {"batch": []}}', '{"accumulation": 3}', "[]", "3"),
        *('"x"', "null", "{", '{"steps": 1e999}', '{"steps": 1' + "0" * 400 + "}", "[" * 10**5, '{"a":' * 10**5),
    ],
)
def test_case_s16_a_plan_of_other_types_is_ignored_with_a_note(run, tmp_path, text):
    folder = copied(run, tmp_path / "other", plan=text)
    notes: list[str] = []
    drawn = html.write([folder, run], tmp_path / "page.html", notes.append).read_text()
    assert notes == [f"{folder / 'plan.json'}: not the plan of a run: ignored"]
    assert "other" in drawn and "no evaluation yet" not in drawn
    with suppress(UserError):
        config_of(folder)


def test_case_s16_the_script_prints_the_note(run, tmp_path):
    folder = copied(run, tmp_path / "other", plan='{"steps": "x"}')
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{folder}/report.html\n")
    assert done.stderr == f"note: {folder}/plan.json: not the plan of a run: ignored\n"


def test_a_plan_with_missing_or_unknown_fields_is_valid():
    assert parse_plan('{"steps": 7, "new": {"a": [1]}}') == {"steps": 7, "new": {"a": [1]}} and parse_plan("{}") == {}


def test_records_have_valid_axes_and_only_fields_of_known_types():
    record = parse_record(json.dumps({"event": "eval", **AXES, "eval/loss": "NaN", "eval/rows": [1], "note": "x"}))
    assert record is not None and record.keys() == {"event", "eval/loss", *AXES}
    for name in AXES:
        for value in ("x", None, [1], -1, 10**400, math.inf, math.nan):
            assert parse_record(json.dumps({"event": "step", **AXES, name: value})) is None
    for line in ("[]", "x", "", "{}", "[" * 10**5, json.dumps({**AXES, "event": [1]})):
        assert parse_record(line) is None


@pytest.mark.parametrize("text", ["[]", '[["id", "x"]]', '{"id": 5}', "{}", "[" * 10**5, "x"])
def test_an_identity_of_wrong_types_is_reported_in_one_line(run, tmp_path, text):
    folder = copied(run, tmp_path / "other", wandb=text)
    with pytest.raises(UserError, match=r"wandb\.json cannot be read") as caught:
        read_identity(folder)
    assert len(caught.value.lines) == 1


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, part in inside for deeper in paths(part, (*path, key)))]


def changed(value: Any, chance: random.Random) -> Any:
    """With one part of it left out, or of another type."""
    path = chance.choice(paths(value))
    if not path:
        return chance.choice(OTHERS)
    part = value
    for key in path[:-1]:
        part = part[key]
    if chance.random() < 0.25:
        del part[path[-1]]
    else:
        part[path[-1]] = chance.choice(OTHERS)
    return value


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_changed_in_a_folder_the_pages_are_drawn(run, tmp_path, seed):
    chance = random.Random(seed)
    texts = {}
    for name in chance.sample(["plan", "status", "machine", "wandb", "rows", "records"], 2):
        lines = (run / f"{name}.json{'l' * (name == 'records')}").read_text()
        parts = [json.loads(line) for line in (lines.splitlines() if name == "records" else [lines])]
        for _ in range(3 if name == "records" else 1):
            place = chance.randrange(len(parts))
            parts[place] = changed(parts[place], chance)
        texts[name] = "\n".join(map(json.dumps, parts))
    folder = copied(run, tmp_path / "other", **texts)
    assert read_run(folder).folder == folder
    html.write([folder, run], tmp_path / "page.html")
    outcomes = (outcome_of(folder, 0), outcome_of(run, 1))
    stands = Experiment(name="n", command="c", task="language_modeling", folder=tmp_path, arms=())
    comparison = gather(stands, [(ArmResult("a", None, outcomes), ("a",), False)])
    assert rows(comparison) and lines_of(comparison) and page.render(comparison) and results_of(comparison).text()
    with suppress(UserError), ExitStack() as held:
        _read(folder, held)
