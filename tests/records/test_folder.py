"""What surrounds a run: its folder's files are whole or absent, and damage to them costs no run whose checkpoints are
good."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, records
from safetensors.torch import load_file, save_file

from hfbsz.errors import UserError
from hfbsz.recipe.load import load
from hfbsz.records.folder import RunFolder, read_status
from hfbsz.records.jsonl import JsonLines, gaps, trim
from hfbsz.records.record import Clock, Reading
from hfbsz.records.run_data import read_run
from hfbsz.run.failure import outage_of
from hfbsz.system.disk import clear_leftovers, sha256, system_errors, writing_into
from hfbsz.system.files import write_text
from hfbsz.train.checkpoint import steps


@pytest.fixture(scope="module")
def words(ragged):
    return [
        TINY,
        f"data.files={ragged}",
        "duration=20 steps",
        "eval.every=5 steps",
        "checkpoint.every=5 steps",
    ]


@pytest.fixture(scope="module")
def whole(hfbsz, words, tmp_path_factory):
    """The folder of a finished run, with its newest checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = hfbsz("pretrain.py", *words, "log.page=true", f"output_dir={folder}")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def killed(whole, tmp_path):
    """The same folder as a kill after the last step leaves it: not finished."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    write_text(folder / "status.json", json.dumps({**read_status(whole), "state": "running"}))
    for name in ("report.html", "model.safetensors"):
        (folder / name).unlink()
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "nothing else": lambda folder: None,
    "recipe.yaml is empty": lambda folder: (folder / "recipe.yaml").write_text(""),
    "recipe.yaml is gone": lambda folder: (folder / "recipe.yaml").unlink(),
    "recipe.yaml is not text": lambda folder: (folder / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01"),
    "sent.json is cut": lambda folder: (folder / "sent.json").write_text('[["step", 1'),
    "sent.json holds something else": lambda folder: (folder / "sent.json").write_text('{"a": null}'),
    "status.json is a list": lambda folder: (folder / "status.json").write_text("[]"),
    "status.json is not text": lambda folder: (folder / "status.json").write_bytes(b"\xff" * 40),
    "plan.json and machine.json are cut": lambda folder: [cut(folder / f"{n}.json") for n in ("plan", "machine")],
    "records.jsonl ends inside a line": lambda folder: cut(folder / "records.jsonl"),
    "wandb.json is gone": lambda folder: (folder / "wandb.json").unlink(),
    "leftovers": lambda folder: [(folder / ".saved.tmp").mkdir(), (folder / ".plan.json.tmp").write_text("{")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_case_d05_side_files_that_are_damaged_cost_no_run(hfbsz, words, whole, killed, damage):
    DAMAGES[damage](killed)
    ended = hfbsz("pretrain.py", *words, "log.page=true", f"output_dir={killed}")
    assert ended.code == 0 and f"resumes from {killed}/checkpoint-20" in ended.out, ended.err
    assert read_status(killed)["state"] == "finished" and (killed / "report.html").is_file()
    assert sha256(killed / "model.safetensors") == sha256(whole / "model.safetensors")
    assert not list(killed.glob(".*.tmp")) and steps(killed) == steps(whole)


def test_case_d06_finished_is_written_last(hfbsz, words, whole, killed):
    """The page is drawn as of the end, though status.json does not say so yet."""
    hfbsz("pretrain.py", *words, "log.page=true", f"output_dir={killed}")
    status, page = killed / "status.json", killed / "report.html"
    assert status.stat().st_mtime_ns >= page.stat().st_mtime_ns
    assert 'class="state finished"' in page.read_text()
    assert records(killed, "lifecycle")[-1]["state"] == "finished"
    assert [len(records(folder, "final")) for folder in (whole, killed)] == [1, 1]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "a bit"])
def test_a_finished_run_whose_model_is_damaged_is_saved_again(hfbsz, words, whole, tmp_path, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    {"cut": lambda: cut(path), "gone": path.unlink, "a bit": lambda: path.write_bytes(content)}[damage]()
    ended = hfbsz("pretrain.py", *words, f"output_dir={folder}")
    told = f"warning: {name} of the finished run is damaged or gone: restored from the newest checkpoint"
    assert ended.code == 0 and told in ended.out, ended.err
    assert sha256(path) == sha256(whole / name) and read_status(folder)["state"] == "finished"
    assert "finished already" in hfbsz("pretrain.py", *words, f"output_dir={folder}").out


def test_a_finished_run_without_model_and_checkpoints_is_told_of(hfbsz, words, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoint-*", "model.safetensors"))
    ended = hfbsz("pretrain.py", *words, f"output_dir={folder}")
    assert ended.code == 2 and ended.err == (
        f"error: {folder}: model.safetensors of the finished run is damaged or gone, and no checkpoint is left to "
        "restore it from: delete the folder to train it again\n"
    )


@pytest.fixture(scope="module")
def best_before_the_end(hfbsz, words, tmp_path_factory):
    """Words of a run, at a rate so high that its last evaluation is not the best, and its folder."""
    for rate in (0.2, 0.05, 0.3, 0.4, 0.5):
        folder = tmp_path_factory.mktemp("best") / "run"
        rest = ["checkpoint.save=best", "checkpoint.keep=4", f"optim.lr={rate}", "schedule.shape=constant"]
        assert hfbsz("pretrain.py", *words, *rest, f"output_dir={folder}").code == 0
        if 5 < records(folder, "final")[0]["model/step"] < 20:
            return [*words, *rest], folder
    raise AssertionError("the last evaluation, or the first, is the best at every rate")


@pytest.mark.parametrize("damage", ["damaged", "gone", "at the end"])
def test_case_d04_the_best_checkpoint_is_damaged(hfbsz, best_before_the_end, tmp_path, damage):
    best_words, whole = best_before_the_end
    folder, best = tmp_path / "run", records(whole, "final")[0]["model/step"]
    shutil.copytree(whole, folder)
    write_text(folder / "status.json", json.dumps({"state": "running"}))
    if damage == "gone":
        shutil.rmtree(folder / f"checkpoint-{best}")
    else:
        cut(folder / f"checkpoint-{best}" / "model.safetensors")
    if damage == "at the end":  # none is left from before the best
        for step in steps(folder):
            if step < best:
                shutil.rmtree(folder / f"checkpoint-{step}")
    ended = hfbsz("pretrain.py", *best_words, f"output_dir={folder}")
    assert ended.code == 0 and "it was the best" in ended.out, ended.err
    model, last = load_file(folder / "model.safetensors"), load_file(whole / "checkpoint-20" / "model.safetensors")
    if damage == "at the end":
        assert "the last weights are saved, not the best ones" in ended.out
        assert all(model[name].equal(last[name]) for name in model)
    else:
        assert f"resumes from {folder}/checkpoint-{best - 5}" in ended.out
        assert sha256(folder / "model.safetensors") == sha256(whole / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("eval.patience=2", "eval.patience: None there, 2 here"),
        ("checkpoint.save=best", "checkpoint.save: last there, best here"),
        ("optim.lr=1e-4", "optim.lr: 0.003 there, 0.0001 here"),
    ],
)
def test_a_refused_recipe_names_what_differs(whole, words, change, told):
    with pytest.raises(UserError) as caught:
        RunFolder(load([*words, f"output_dir={whole}", change]))
    assert caught.value.lines == (f"{whole}: holds a run of another recipe ({told}): choose another output_dir",)


def test_other_rows_to_evaluate_are_taken_with_a_word(hfbsz, words, killed):
    shutil.rmtree(killed / "checkpoint-20")
    ended = hfbsz("pretrain.py", *words, f"output_dir={killed}", "eval.rows=9")
    assert ended.code == 0 and "eval.rows: 16 before, 9 now: losses are of other rows" in ended.out, ended.err


def test_every_start_is_in_machine_json(hfbsz, words, killed):
    shutil.rmtree(killed / "checkpoint-20")
    before = json.loads((killed / "machine.json").read_text())
    write_text(killed / "machine.json", json.dumps({**before, "torch": "1.0"}))
    ended = hfbsz("pretrain.py", *words, f"output_dir={killed}")
    assert f"resumed on another machine or version: torch 1.0 → {before['torch']}" in ended.out
    machine = json.loads((killed / "machine.json").read_text())
    assert machine["step"] == 15 and machine["torch"] == before["torch"]
    assert [(start["step"], start["torch"]) for start in machine["earlier"]] == [(0, "1.0")]


def test_what_is_written_follows_the_umask_and_replaces_links(tmp_path):
    outside, run = tmp_path / "outside.json", tmp_path / "run"
    outside.write_text("precious")
    run.mkdir()
    (run / "config.json").symlink_to(outside)
    before = os.umask(0o027)
    try:
        with writing_into(run) as partial:
            save_file({}, partial / "model.safetensors")
            (partial / "config.json").write_text("{}")
            (partial / "templates").mkdir()
            (partial / "templates" / "a.jinja").write_text("a")
        write_text(run / "status.json", "{}")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "a.jinja", "status.json"), 0o640)
    assert outside.read_text() == "precious" and (run / "config.json").read_text() == "{}"


def test_a_write_that_fails_replaces_nothing(tmp_path):
    (tmp_path / "config.json").write_text("before")
    with pytest.raises(OSError, match="No space left") as caught, writing_into(tmp_path) as partial:
        (partial / "config.json").write_text("half")
        raise Exception("No space left on device (os error 28)")  # as tokenizers says it
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "before"
    with pytest.raises(ValueError, match="other"), system_errors():
        raise ValueError("other")


def test_leftovers_go_and_nothing_else(tmp_path):
    for name in (".status.json.tmp", ".lock", "model.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".checkpoint-4.tmp").mkdir()
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "model.tmp"]


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [(errno.ENOSPC, "disk_full", "make room; "), (errno.EDQUOT, "disk_full", "make room; "),
     (errno.EACCES, "system", "check its permissions; "), (errno.EIO, "system", ""), (errno.ESTALE, "system", "")],
)  # fmt: skip
def test_room_is_asked_for_where_that_is_what_lacks(whole, words, tmp_path, number, cause, remedy):
    folder = RunFolder(load([*words, f"output_dir={tmp_path}/run"]))
    try:
        reason = os.strerror(number)
        again = f"{remedy}the same command resumes from the newest checkpoint"
        assert outage_of(OSError(number, reason, "/a/file"), folder) == (cause, f"/a/file: {reason}; {again}")
        assert outage_of(OSError(number, reason), folder) == (cause, f"{tmp_path}/run: {reason}; {again}")
        assert outage_of(ValueError("no fault of the machine"), folder) is None
        for problem in (MemoryError(), torch.OutOfMemoryError("Tried to allocate 12 GiB. Including")):
            cause, line = outage_of(problem, folder)
            assert cause == "memory" and "batch.micro_max" in line
    finally:
        folder.release()


def test_records_that_are_missing_or_there_twice_are_told_of(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = JsonLines(path)
    for step in range(6):
        lines.write(Reading("eval" if step == 5 else "step", Clock(step, step, step, 0.0), {}))
    lines.close()
    assert read_run(tmp_path).notes == ()
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*text[:2], *text[3:5], text[4], text[5]]))
    (note,) = read_run(tmp_path).notes
    assert note == f"{path}: lacks 1 record (number 2) and holds twice 1 record (number 4)"
    trim(path, 4)  # a run that goes on keeps the gap visible
    assert "lacks 1 record (number 2)" in read_run(tmp_path).notes[0]


def test_a_run_that_goes_on_numbers_its_records_without_a_gap(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = JsonLines(path)
    for event, step in (("step", 1), ("final", 1), ("lifecycle", 1), ("step", 2)):
        lines.write(Reading(event, Clock(step, step, step, 0.0), {}))
    lines.close()
    trim(path, 1)
    lines = JsonLines(path)
    lines.write(Reading("step", Clock(2, 2, 2, 0.0), {}))
    lines.close()
    assert [json.loads(line)["record"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert gaps([]) is None and gaps([{"event": "step"}]) is None  # of an earlier version
