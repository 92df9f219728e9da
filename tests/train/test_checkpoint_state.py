"""A state.json with a correct hash may still have wrong contents: reported in one line, without a traceback."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.train.checkpoint import Collected, newest, read, save
from hfbsz.train.checkpoint_state import check_complete

PLAN = resolve(load(["recipe=tests/tiny.yaml", "data.files=x", "duration=8seq"]).recipe, 1, Facts(rows=100)).to_dict()
STATE = {
    "digest": "0a", "plan": PLAN, "progress": {"step": 7, "clock": 28, "tokens": 9, "seconds": 1.0, "losses": [0.5]},
    "kept": {"best": 7}, "data_hash": "1b", "wandb_id": None, "watch": {"best_step": 7, "best_nll": [1.0]},
    "final": {"event": "eval", "step": 7, "clock": 28, "tokens": 9, "seconds": 1.0, "values": {"eval/loss": 2.0}},
}  # fmt: skip


def put(path: Path, text: str) -> None:
    """Replace the state.json of a checkpoint, with a matching hash."""
    (path / "state.json").write_text(text)
    hashes = json.loads((path / "complete.json").read_text())
    hashes["state.json"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "complete.json").write_text(json.dumps(hashes))


@pytest.fixture
def path(tmp_path):
    return save(tmp_path, 7, Collected({"a": torch.ones(2)}, {}, [], None), STATE)


def test_a_written_state_is_read_back(path):
    checkpoint = read(path)
    check_complete(checkpoint.state, path)
    assert checkpoint.state["progress"] == STATE["progress"] and checkpoint.state["plan"] == PLAN


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"progress": []}, "progress"),
        ({"progress": {"step": "7"}}, "progress.step"),
        ({"progress": {"step": -1}}, "progress.step"),
        ({"progress": {"clock": 10**400}}, "progress.clock"),
        ({"progress": {"decisions": [[1]]}}, "progress.decisions.0"),
        ({"kept": {"best": "../x"}}, "kept.best"),
        ({"plan": {}}, "plan"),
        ({"plan": {**PLAN, "facts": "x"}}, "plan"),
        ({"plan": {**PLAN, "world_size": "x"}}, "plan"),
        ({"plan": {**PLAN, "recipe": [1]}}, "plan"),
        ({"final": {"event": "eval"}}, "final.step"),
        ({"watch": 3}, "watch"),
        ({"digest": None}, "digest"),
        ({"optimizer": "x"}, "optimizer"),
        ({"optimizer": [{"momentum": "x"}]}, "optimizer.0.momentum.bool"),
    ],
)
def test_case_s16_wrong_types_are_reported_in_one_line(path, changed, key):
    put(path, json.dumps({**json.loads((path / "state.json").read_text()), **changed}))
    with pytest.raises(UserError, match="not a complete checkpoint") as caught:
        read(path)
    (line,) = caught.value.lines
    assert f"(state.json: {key}: " in line and "\n" not in line


@pytest.mark.parametrize("text", ["[]", '"x"', "3", "null", "[" * 10**5, '{"format": [1]}'])
def test_case_s16_an_invalid_state_is_reported_and_skipped(path, text):
    put(path, text)
    warnings: list[str] = []
    assert newest(path.parent, warnings.append) is None
    assert len(warnings) == 1 and warnings[0].endswith(": skipped")


@pytest.mark.parametrize("name", ["digest", "plan", "progress", "kept", "data_hash", "final", "watch"])
def test_a_run_resumes_only_from_a_complete_state(path, name):
    state = {key: value for key, value in STATE.items() if key != name}
    with pytest.raises(UserError, match=f"state.json lacks {name}"):
        check_complete(state, path)
