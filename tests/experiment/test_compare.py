"""scripts/compare.py as a user runs it: killed and resumed, failing arms, equal steps, matched models."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from fork_server import Forked

from hfbsz.commands.compare import main
from hfbsz.experiment.compare import ComparisonRunner
from hfbsz.experiment.page import page
from hfbsz.experiment.request import parse
from hfbsz.experiment.results import Experiment, Outcome
from hfbsz.records.folder import read_status
from hfbsz.report.console import Console

TINY = f"recipe={ROOT}/tests/tiny.yaml"
QUICK = ("launch=python", "threads=1", "eval.every=25%")


@pytest.fixture
def start(environment, fork_server, tmp_path):
    """Start the script in a separate folder, with its runs as processes; returns it and the file of its output."""

    def run(folder: str, *words: str) -> tuple[Forked, Path]:
        (tmp_path / folder).mkdir(exist_ok=True)
        output = tmp_path / f"{folder}.txt"
        command = [str(ROOT / "scripts" / "compare.py"), *map(str, words)]
        return fork_server.start(command, environment, output, tmp_path / folder), output

    return run


@pytest.fixture
def compare(forked_runs, tmp_path, monkeypatch, capsys):
    """Run the command in this process, in a separate folder, its runs in forks; returns its exit code and output."""

    def run(folder: str, *words: str) -> tuple[int, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        capsys.readouterr()
        code = main([*map(str, words)])
        return code, "".join(capsys.readouterr())

    return run


def without_times(experiment: Experiment) -> Experiment:
    """The experiment without values that depend on a clock or the machine's load."""

    def outcome(one: Outcome) -> Outcome:
        assert one.run is not None and one.state == "finished"
        records = [
            {**record, "train/seconds": 0.0, "train/device_seconds": 0.0, "perf/tokens_per_second": 1.0}
            for record in one.run.records
        ]
        trial = one.trial and replace(one.trial, seconds_to_target=1.0, tokens_per_second=1.0, peak_memory_bytes=1.0)
        run = replace(one.run, records=tuple(records), folder=one.folder)
        return replace(one, run=run, trial=trial, seconds_to_best=None)

    arms = [
        replace(
            arm,
            outcomes=tuple(map(outcome, arm.outcomes)),
            tried=tuple(replace(one, outcome=one.outcome and outcome(one.outcome)) for one in arm.tried),
        )
        for arm in experiment.arms
    ]
    return replace(experiment, arms=tuple(arms), findings=(), seconds_left=None)


def read(folder: Path, monkeypatch, *words: str) -> Experiment:
    monkeypatch.chdir(folder)
    runner = ComparisonRunner(parse(words), Console())
    return runner.run()  # all runs are finished


@pytest.mark.process
def test_a_comparison_killed_twice_gives_the_same_page(start, compare, ragged, tmp_path, monkeypatch):
    words = (TINY, f"data.files={ragged}", "duration=240seq", "batch.size=4seq,8seq", "jobs=2", *QUICK)
    words = (*words, "checkpoint.every=4steps")
    assert compare("unbroken", *words)[0] == 0
    runs = tmp_path / "broken" / "runs"
    for wait_for in (1, 3):  # checkpoints written
        process, output = start("broken", *words)
        deadline = time.monotonic() + 120
        while len([*runs.glob("*/checkpoint-*")]) < wait_for and process.poll() is None:
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        process.kill()
        process.wait()
    code, output = compare("broken", *words)
    assert code == 0, output
    pages = [
        page.render(without_times(read(tmp_path / folder, monkeypatch, *words))) for folder in ("unbroken", "broken")
    ]
    assert pages[0] == pages[1] and "8 sequences" in pages[0]
    code, output = compare("broken", *words)  # nothing is run twice
    assert code == 0 and output.count(": finished (") <= 2


def test_an_arm_that_fails_is_reported_and_the_rest_is_shown(compare, ragged, tmp_path):
    words = (TINY, f"data.files={ragged}", "duration=64seq", "optim.lr=1e-3,1e30", *QUICK, "out=table.json")
    code, text = compare("w", *words)
    assert code == 1
    (failed,) = (line for line in text.splitlines() if line.startswith("diverged: "))
    assert "not finite" in failed
    results = json.loads((tmp_path / "w" / "table.json").read_text())
    table = results["arms"]
    assert [row["seeds"] for row in table] == [1, 1] and table[1]["diverged"] == 1 and table[0]["loss"] > 0
    assert table[1]["loss"] is None and table[1]["runs"][0]["state"] == "diverged" and results["finished"]
    (report,) = (tmp_path / "w" / "comparisons").glob("*/report.html")
    html = report.read_text()
    assert "not finite" in html and f"{table[0]['loss']:.4f}" in html and 'http-equiv="refresh"' not in html


def test_the_results_are_json_alone_and_beside_the_page(compare, ragged, tmp_path, capsys):
    words = (TINY, f"data.files={ragged}", "duration=32seq", "batch.size=4seq,8seq", *QUICK, "name=n")
    code, text = compare("w", *words, "picture=p.png")
    assert code == 0 and "loss (nats/target)" in text
    assert main([*words, "picture=p.png", "out=copy.json", "format=json"]) == 0  # nothing is run again
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert "2 of 2 runs are already finished" in err and results["kind"] == "hfbsz comparison"
    assert (
        out
        == (tmp_path / "w" / "copy.json").read_text()
        == (tmp_path / "w" / results["page"]).with_name("results.json").read_text()
    )
    assert results["page"] == "comparisons/n/report.html" and results["picture"] == "p.png"
    assert [arm["batch"] for arm in results["arms"]] == [4, 8] and results["finished"] and results["ended"] == 2
    for arm in results["arms"]:
        (run,) = arm["runs"]
        final = json.loads((tmp_path / "w" / run["folder"] / "records.jsonl").read_text().splitlines()[-2])
        assert run["loss"] == arm["loss"] == final["full/loss"] and run["steps"] == 32 / arm["batch"]
        assert run["tokens"] == final["train/num_input_tokens_seen"] and run["seconds"] >= final["train/seconds"]
    assert [pair["verdict"] for pair in results["pairs"]] == ["not tested"]


@pytest.mark.process
def test_sigterm_ends_the_runs_at_work_with_a_checkpoint_and_the_same_command_goes_on(start, ragged, tmp_path):
    words = (TINY, f"data.files={ragged}", "duration=2000seq", "batch.size=4seq,8seq", *QUICK)
    process, output = start("w", *words)
    runs = tmp_path / "w" / "runs"
    deadline = time.monotonic() + 120
    while not any('"step"' in path.read_text() for path in runs.glob("*/records.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None, output.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    (folder,) = (path for path in runs.iterdir() if path.is_dir())  # the second was never started
    assert read_status(folder)["state"] == "preempted" and [*folder.glob("checkpoint-*")]
    assert "SIGTERM" in output.read_text()
    (report,) = (tmp_path / "w" / "comparisons").glob("*/report.html")
    assert 'http-equiv="refresh"' in report.read_text()  # the page of an unfinished comparison reloads


def test_the_rate_is_tuned_for_each_batch(compare, ragged, tmp_path, monkeypatch):
    words = (TINY, f"data.files={ragged}", "duration=96seq", "batch.size=4seq,8seq", "tune=optim.lr:3")
    words = (*words, "optim.lr=1.2e-2", "jobs=2", *QUICK)
    code, output = compare("w", *words)
    assert code == 0, output
    experiment = read(tmp_path / "w", monkeypatch, *words)
    assert len(experiment.arms) == 2 and all(len(arm.trials) == 1 for arm in experiment.arms)
    for arm in experiment.arms:
        losses = {tried.value: tried.loss for tried in arm.tried}
        (chosen,) = (tried.value for tried in arm.tried if tried.chosen)
        assert len(losses) >= 3 and 1.2e-2 in losses and losses[chosen] == min(losses.values())
        assert arm.arm.tuned == (min(losses) < chosen < max(losses))
        assert arm.trials[0].final_loss == losses[chosen]


def test_equal_steps_gives_all_arms_the_steps_of_the_largest_batch(compare, ragged, tmp_path, monkeypatch):
    words = (TINY, f"data.files={ragged}", "duration=96seq", "batch.size=4seq,16seq", "equal=steps", *QUICK)
    code, output = compare("w", *words)
    assert code == 0, output
    experiment = read(tmp_path / "w", monkeypatch, *words)
    assert [arm.trials[0].optimizer_steps for arm in experiment.arms] == [6, 6]
    assert any("6 steps" in note for note in experiment.notes)


def test_models_of_equal_loss_are_handed_to_fine_tuning(compare, ragged, tmp_path, monkeypatch):
    chats = tmp_path / "chats.jsonl"
    turns = [{"prompt": f"what is {n} and {n}", "response": f"it is {2 * n}"} for n in range(60)]
    chats.write_text("\n".join(map(json.dumps, turns)))
    file = tmp_path / "mine.yaml"
    early = "eval.every: 10%\n  eval.full: false\n  checkpoint.every: 10%\n  checkpoint.keep: 20\n  threads: 1\n"
    file.write_text(
        f"pretrain:\n  recipe: {ROOT}/tests/tiny.yaml\n  data.files: {ragged}\n  duration: 160 sequences\n"
        f"  batch.size: [4 sequences, 16 sequences]\n  {early}match: 0.2\n"
        f"recipe: {ROOT}/tests/tiny.yaml\nmodel.shape: null\ntask: instruction\ndata.files: {chats}\n"
        "data.prompt: prompt\ndata.response: response\nduration: 32 sequences\nbatch.size: [4 sequences, 8 sequences]\n"
    )
    code, output = compare("w", file, *QUICK)
    assert code == 0, output
    experiment = read(tmp_path / "w", monkeypatch, str(file), *QUICK)
    assert len(experiment.arms) == 4 and all(len(arm.trials) == 1 for arm in experiment.arms)
    assert any("pretrained models" in note and "within the tolerance of 0.2" in note for note in experiment.notes)
    models = [*(tmp_path / "w" / "comparisons").glob("*/models/*")]
    assert len(models) == 2
    for model in models:
        marker = json.loads((model / "handed_over.json").read_text())
        assert Path(tmp_path / "w" / marker["from"]).is_dir() and (model / "model.safetensors").is_file()
    runs = [folder for folder in (tmp_path / "w" / "runs").iterdir() if folder.is_dir()]
    assert sum(bool([*folder.glob("checkpoint-*")]) for folder in runs) == 2  # only pretraining keeps checkpoints
