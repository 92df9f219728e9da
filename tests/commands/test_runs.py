"""`hfbsz runs`: every run below a folder in one table; filters, orders and formats; one line for what is no run."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from past_runs import write_run

from hfbsz.commands.runs import main
from hfbsz.recipe.load import load
from hfbsz.records.folder import claim
from hfbsz.records.run_table import COLUMNS
from hfbsz.system.yaml import write_yaml


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def set_status(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    runs, now = tmp_path_factory.mktemp("written") / "runs", time.time()
    write_run(runs / "small-0000aaaa", ["batch.size=8seq"], noise=(20, 40), seconds=120)
    set_status(runs / "small-0000aaaa", state="finished", cause="budget", updated=now - 7200)
    write_run(runs / "sweep-x1" / "large", ["batch.size=128seq", "optim.lr=4e-3"], error=0.5, seconds=60)
    set_status(runs / "sweep-x1" / "large", state="preempted", cause="signal", recipe="mine", updated=now - 60)
    write_run(runs / "ramp", ["batch.size=null", "batch.ramp=0:8 30%:32 60%:64"])
    set_status(runs / "ramp", state="diverged", cause="diverged", why="the loss is not finite")
    write_run(runs / "killed", ["batch.size=32seq"])
    set_status(runs / "killed", state="running", pid=1, host="there")
    set_status(runs / "refused", state="failed", cause="refused", why="no such file")
    write_yaml(load(["recipe=small_batch_pretrain", "optim.lr=5e-3"]).recipe.to_dict(), runs / "refused/recipe.yaml")
    (runs / "small-0000aaaa" / "attempt-1").mkdir()
    set_status(runs / "small-0000aaaa" / "attempt-1", state="failed")
    (runs / "again").symlink_to("sweep-x1")  # a run has the name of its folder, not of a link
    (runs / "ramp" / "loop").symlink_to("..")
    (runs / "notes").mkdir()
    return runs


@pytest.fixture
def folder(written, tmp_path):
    """Runs in all states, some nested, beside folders that are no runs."""
    return shutil.copytree(written, tmp_path / "runs", symlinks=True)


def listed(capsys, *words):
    """The rows as JSON, and what stands on stderr."""
    code = main([*map(str, words), "format=json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


def names(capsys, *words):
    return [row["name"] for row in listed(capsys, *words)[0]]


def test_every_run_is_a_row_with_the_same_keys(folder, capsys):
    rows, err = listed(capsys)
    assert err == "" and all(list(row) == list(COLUMNS) for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == ["killed", "ramp", "refused", "small-0000aaaa", "sweep-x1/large"]
    small, ramp, refused = (by_name[name] for name in ("small-0000aaaa", "ramp", "refused"))
    records = [json.loads(line) for line in (folder / "small-0000aaaa/records.jsonl").read_text().splitlines()]
    assert small["loss"] == records[-1]["full/loss"] and small["loss_part"] == "full"
    assert small["steps"] == records[-1]["train/global_step"] and small["time"] == records[-1]["train/seconds"]
    assert small["tokens"] == records[-1]["train/num_input_tokens_seen"]
    assert small["speed"] == small["tokens"] / small["time"]
    assert (small["state"], small["cause"], small["recipe"]) == ("finished", "budget", "small")
    assert (small["batch"], small["first_batch"], small["noise"], small["noise_error"]) == (8, 8, 40, 4)
    assert small["rate"] == 2e-3 and small["done"] == pytest.approx(1) and 7200 <= small["age"] < 7300
    assert (ramp["first_batch"], ramp["batch"], ramp["state"], ramp["loss"]) == (8, 64, "diverged", None)
    assert ramp["noise"] is None and ramp["why"] == "the loss is not finite" and ramp["recipe"] is None
    assert refused["state"] == "failed" and refused["tokens"] is refused["loss"] is refused["batch"] is None
    assert by_name["sweep-x1/large"]["recipe"] == "mine"


def test_a_run_is_running_only_while_a_process_uses_its_folder(folder, capsys):
    def state():
        return listed(capsys, "name=killed")[0][0]["state"]

    assert state() == "stale"
    lock = claim(folder / "killed", "", "")
    assert state() == "running"
    lock.release()
    assert state() == "stale" and names(capsys, "state=stale") == ["killed"]


def test_a_loss_of_the_fixed_part_is_marked(folder, capsys):
    path = folder / "killed" / "records.jsonl"
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:-3]))
    (row,), _ = listed(capsys, "name=killed")
    assert row["loss_part"] == "eval" and 0.5 < row["done"] < 1
    assert main(["killed*"]) == 0
    assert f"{row['loss']:.4f}* " in (out := capsys.readouterr().out) and "* on the fixed part" in out
    assert f"stale {row['done']:.0%}" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["state=finished"], ["small-0000aaaa"]),
        (["state!=finished,failed,stale"], ["ramp", "sweep-x1/large"]),
        (["batch==8"], ["small-0000aaaa"]),
        (["batch>=64"], ["ramp", "sweep-x1/large"]),
        (["batch=8,32"], ["killed", "small-0000aaaa"]),
        (["batch<64seq"], ["killed", "small-0000aaaa"]),
        (["tokens>1M", "time<1.1min"], ["sweep-x1/large"]),
        (["tokens>1.1Mtok", "time>90"], ["killed", "ramp", "small-0000aaaa"]),
        (["age>1h"], ["small-0000aaaa"]),
        (["done>=99%", "cause=budget"], ["small-0000aaaa"]),
        (["noise=null", "state!=failed"], ["killed", "ramp", "sweep-x1/large"]),
        (["noise!=null"], ["small-0000aaaa"]),
        (["recipe=m*"], ["sweep-x1/large"]),
        (["optim.lr>2e-3"], ["refused", "sweep-x1/large"]),
        (["batch.size=128seq,32seq"], ["killed", "sweep-x1/large"]),
        (["batch.size<64tok"], []),
        (["batch.size<64seq", "batch.ramp=null", "optim.name=adamw"], ["killed", "refused", "small-0000aaaa"]),
        (["data.pack=true", "seed=0", "killed*", "*large"], ["killed", "sweep-x1/large"]),
        (["sm*"], ["small-0000aaaa"]),
        (["runs/sweep-x1"], ["large"]),
        (["runs/small-0000aaaa"], ["small-0000aaaa"]),
        (["runs/sweep-x1", "runs", "sort=name"], ["killed", "large", "ramp", "refused", "small-0000aaaa"]),
        (["sort=loss"], ["small-0000aaaa", "killed", "sweep-x1/large", "ramp", "refused"]),
        (["sort=-loss"], ["sweep-x1/large", "killed", "small-0000aaaa", "ramp", "refused"]),
        (["sort=-batch,name", "state!=failed"], ["sweep-x1/large", "ramp", "killed", "small-0000aaaa"]),
        (["sort=optim.lr,-batch", "batch>8"], ["ramp", "killed", "sweep-x1/large"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_filters_and_orders(folder, capsys, words, expected):
    assert names(capsys, *words) == expected


def test_columns_may_be_fields_of_the_recipe(folder, capsys):
    (row,), _ = listed(capsys, "refused*", "columns=name,optim.lr,batch.size,batch.ramp,model.lora.rank,loss")
    assert row == {
        "name": "refused", "optim.lr": 5e-3, "batch.size": "8 sequences", "batch.ramp": None, "model.lora.rank": None,
        "loss": None,
    }  # fmt: skip


def test_csv_has_a_header_and_the_numbers_of_the_json(folder, capsys):
    rows, _ = listed(capsys)
    assert main(["format=csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(table[0]) == list(COLUMNS) and len(table) == len(rows)
    for cells, row in zip(table, rows, strict=True):
        assert cells["loss"] == ("" if row["loss"] is None else f"{row['loss']:.12g}")
        assert cells["folder"] == row["folder"] and cells["why"] == (row["why"] or "")


def test_text_is_plain_and_whole_when_it_is_piped(folder, capsys):
    long = folder / ("a_recipe_with_a_very_long_name_" * 4)
    (folder / "small-0000aaaa").rename(long)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and long.name in out
    head, units, *lines = out.splitlines()
    assert head.split()[:4] == ["name", "state", "recipe", "batch"] and "tokens/s" in units
    (ramp,) = (line for line in lines if line.startswith("ramp"))
    assert "8 → 64" in ramp and "diverged" in ramp and "1.2M" in ramp and "2 h" in out
    assert lines[-1] == "5 runs: 1 finished, 1 preempted, 1 failed, 1 diverged, 1 stale"
    assert main(["batch>=64"]) == 0
    assert "2 runs of 5: 1 preempted, 1 diverged" in capsys.readouterr().out


def test_on_a_terminal_a_line_has_at_most_its_width(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    (folder / "small-0000aaaa").rename(folder / ("long_name_" * 12))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main([]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert len(lines) > 8 and max(map(len, lines)) <= 120
    assert "…" not in terminal.getvalue() and "".join(lines).count("long_name_") >= 5


def test_what_is_no_run_or_damaged_is_one_line_and_the_rest_is_shown(folder, capsys):
    (folder / "foreign").mkdir()
    (folder / "foreign" / "records.jsonl").write_bytes(b"\xff\x00 other data")
    set_status(folder / "other", state=7, started="x")
    broken = folder / "killed" / "records.jsonl"
    lines = broken.read_text().splitlines()
    broken.write_text("\n".join([*lines[:3], '{"event": "ev', *lines[4:], "[" * 10_000]))
    (folder / "ramp" / "plan.json").write_text("[]")
    rows, err = listed(capsys)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == ["killed", "ramp", "refused", "small-0000aaaa", "sweep-x1/large"]
    assert by_name["ramp"]["batch"] == 64 and by_name["ramp"]["rate"] is None and by_name["killed"]["loss"] > 0
    assert err.splitlines() == [
        "note: runs/foreign: not the folder of a run: skipped",
        "note: runs/other: not the folder of a run: skipped",
        "note: runs/ramp/plan.json: not the plan of a run: ignored",
    ]


def test_the_same_name_in_two_folders_is_told_apart(folder, tmp_path, capsys):
    write_run(tmp_path / "more" / "ramp", ["batch.size=8seq"])
    found = names(capsys, "runs", "more", "name=*ramp")
    assert found == ["runs/ramp", "more/ramp"]


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_no_runs_are_one_line_that_says_what_to_do(tmp_path, capsys, form):
    (tmp_path / "empty").mkdir()
    for words in ([], ["empty"]):
        assert main([*words, f"format={form}"]) == 0
        out, err = capsys.readouterr()
        line = out if form == "text" else err
        assert line.startswith(words[0] if words else "runs") and ": no runs: " in line and line.count("\n") == 1
        assert form == "text" or out == {"json": "[]\n", "csv": f"{','.join(COLUMNS)}\n"}[form]


def test_no_run_that_fits_is_one_line(folder, capsys):
    assert main(["loss<0.1"]) == 0
    assert capsys.readouterr().out == "runs: none of the 5 runs fits\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("los<3", "los: no such column or field of a recipe; did you mean 'loss'?"),
        ("optim.lrr=1", "did you mean 'optim.lr'?"),
        ("optim=adamw", "optim: no such column; fields of the recipe are optim.name"),
        ("fromat=json", "did you mean 'format'?"),
        ("loss<abc", "'abc' is not a number, such as 64, 1e-3 or 1.2M (its unit: nats/target)"),
        ("tokens>5steps", "'5steps' is not a number"),
        ("time<soon", "'soon' is not a time: write 40min, 2h or 3d"),
        ("state=finishd", "no such state; did you mean 'finished'?"),
        ("state>finished", "'finished' is not a number: write state=… or state!=… for text"),
        ("optim.name<z", "'z' is not a number"),
        ("loss=", "a value is missing; loss=null is for those that are unknown"),
        ("batch=8,,16", "a value is missing"),
        ("sort=los", "sort=los: los: no such column"),
        ("sort=", "sort=: a name is missing"),
        ("sort=name,-", "sort=name,-: a name is missing"),
        ("batch==x", "'x' is not a number"),
        ("runs/nothing", "runs/nothing: no such folder"),
        ("columns=name,los", "columns=name,los: los: no such column"),
        ("format=jsn", "format=jsn: must be text, json, csv; did you mean 'json'?"),
        ("nowhere", "nowhere: no such folder; for runs of such a name write"),
        ("tokens", "tokens: no such folder; for a comparison write"),
        ("--sort", "--sort: write sort=…"),
        ("a.log", "a.log: a file: name folders"),
        ("=3", "=3: no such folder"),
        ("x" * 5000, "no such folder"),
    ],
    ids=lambda value: value[:20],
)
def test_case_wrong_words_are_one_line(folder, tmp_path, capsys, word, message):
    (tmp_path / "a.log").write_text("")
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_files_of_an_expanded_glob_are_skipped_with_a_note(folder, capsys):
    (folder / "ramp.log").write_text("")
    assert main(["runs/ramp", "runs/ramp.log", "columns=name"]) == 0
    out, err = capsys.readouterr()
    assert out.split()[:2] == ["name", "ramp"] and err == "note: runs/ramp.log: a file: skipped\n"


def test_control_characters_of_a_folder_are_escaped(folder, capsys):
    (folder / "ramp").rename(folder / "ramp\x1b[31m")
    for form in ("text", "json", "csv"):
        assert main([f"format={form}"]) == 0
        assert "\x1b" not in capsys.readouterr().out


def test_the_help_names_every_column_and_unit(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and column.definition in text for name, column in COLUMNS.items())


def test_it_needs_neither_torch_nor_transformers(folder):
    code = "import sys; from hfbsz.commands.runs import main; main([]); main(['format=json']); "
    heavy = ("torch", "transformers", "datasets", "accelerate", "scipy", "matplotlib", "wandb")
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
