"""The critical batch by a sweep: runs whose steps to the target are planted, and a small one that trains."""

import csv
import json
import math
import random
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT, records

from hfbsz.commands.critical import main, read_table
from hfbsz.experiment import launch, sweep
from hfbsz.experiment.gather import outcome_of, position_of
from hfbsz.measure.critical_batch import fit
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records.folder import path_of
from hfbsz.records.run_data import STEPS, read_run
from hfbsz.system.yaml import write_yaml

LEAST_STEPS, LEAST_SEQUENCES, TARGET = 60.0, 1800.0, 4.0
WORDS = ["method=sweep", f"recipe={ROOT}/tests/tiny.yaml", "data.pack=true", "duration=800ktok", "launch=python"]
SWEEP = [*WORDS, f"target={TARGET}", "batch.size=2seq,8seq,32seq,64seq", "seed=0,1,2", "optim.lr=null"]


class Planted:
    """Starts runs that end at once, with the losses of S = (a + b ÷ B)·(1 + c·distance² of the rate from the best)."""

    def __init__(self, middle=2e-3, exponent=0.3, noise=0.02, curvature=0.3):
        self.middle, self.exponent, self.noise, self.curvature = middle, exponent, noise, curvature
        self.started = []

    def __call__(self, words, log):
        given = [word for word in words[words.index("pretrain") + 1 :] if not word.startswith("threads=")]
        loaded = load(given)
        recipe, folder = loaded.recipe, path_of(loaded)
        plan = resolve(recipe, 1, Facts(rows=10**6, tokens_per_row=64.0))
        batch, rate = plan.largest_batch, plan.peak_rate(plan.largest_batch)
        self.started.append((batch, rate, recipe.seed))
        distance = math.log2(rate / (self.middle * batch**self.exponent))
        steps = (LEAST_STEPS + LEAST_SEQUENCES / batch) * (1 + self.curvature * distance**2)
        steps *= math.exp(random.Random(str(self.started[-1])).gauss(0, self.noise))
        at, rows = {STEPS: 0, "train/sequences": 0}, []
        for planned in plan.walk():
            at = {STEPS: at[STEPS] + 1, "train/sequences": planned.next_clock}
            if plan.due(recipe.eval.every, at[STEPS], planned.clock, planned.next_clock):
                rows.append({"event": "eval", **at, "eval/loss": TARGET + math.log(steps / at[STEPS])})
                if rows[-1]["eval/loss"] <= recipe.eval.target:
                    break
        diverged = distance > 3
        if diverged:
            rows[-1]["eval/loss"] = math.nan
        folder.mkdir(parents=True)
        (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
        (folder / "status.json").write_text(json.dumps({"state": "diverged" if diverged else "finished"}))
        write_yaml(recipe.to_dict(), folder / "recipe.yaml")
        return self

    def wait(self):
        return 0

    def send_signal(self, number):
        pass


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def plant(**options) -> Planted:
        start = Planted(**options)
        monkeypatch.setattr(sweep, "Launcher", partial(launch.Launcher, start=start))
        return start

    return plant


def the_folder() -> Path:
    (folder,) = Path("comparisons").iterdir()
    return folder


def sweep_words(*words: str) -> list[str]:
    given = {word.partition("=")[0] for word in words}
    return [word for word in SWEEP if word.partition("=")[0] not in given and word != "optim.lr=null"] + list(words)


def test_a_planted_critical_batch_and_rate_are_recovered(planted, capsys):
    runs = planted()
    assert main(sweep_words("picture=fit.png")) == 0
    shown, folder = capsys.readouterr().out, the_folder()
    result = fit(*read_table(folder / "steps.csv"))
    assert len(result.batches) == 12
    assert result.balance.low < LEAST_SEQUENCES / LEAST_STEPS < result.balance.high
    assert result.balance.value == pytest.approx(LEAST_SEQUENCES / LEAST_STEPS, rel=0.15)
    exponent = float(shown.partition("best rate    ∝ batch^")[2].split(",")[0])
    assert exponent == pytest.approx(0.3, abs=0.05)
    assert f"balance      {result.balance.value:.1f} sequences" in shown
    assert Path("fit.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 and "McCandlish" in page and "Runs are not finished" not in page
    with (folder / "rates.csv").open() as file:
        tried = [(int(row["batch"]), float(row["optim.lr"])) for row in csv.DictReader(file)]
    for batch in (2, 8, 32, 64):
        rates = sorted(rate for size, rate in tried if size == batch)
        assert len(rates) >= 5 and all(high / low == pytest.approx(2, rel=0.01) for low, high in pairwise(rates))

    count = len(runs.started)
    assert count == len(set(runs.started)) == len(tried) + 2 * 4  # two further seeds at each batch
    assert main(sweep_words()) == 0
    assert len(runs.started) == count
    assert capsys.readouterr().out.splitlines()[-8:] == shown.splitlines()[-9:-1]  # but for the line of the picture


def test_other_rates_are_given_up_at_three_times_the_sequences_of_the_recipes_own(planted):
    planted(noise=0.0)
    assert main(sweep_words()) == 0
    own, others = {}, []
    for folder in (path for path in Path("runs").iterdir() if path.is_dir()):
        run = read_run(folder)
        batch, total = run.plan["largest_batch"], run.plan["sequences"]
        if run.plan["reference_learning_rate"] == 3e-3:
            own[batch] = (position_of(run, TARGET, "train/sequences"), total)
        else:
            others.append((batch, total))
    assert set(own) == {2, 8, 32, 64} and others
    for batch, total in others:
        sequences, most = own[batch]
        assert total == min(most, batch * math.ceil(3 * sequences / batch))


def test_a_best_rate_at_the_end_gives_no_critical_batch(planted, capsys):
    planted(middle=0.1, curvature=0.02)  # further than the search goes
    assert main(sweep_words("rates=3", "seed=0")) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert lines and all("at the end of those tried" in line for line in lines)
    assert "balance" not in captured.out
    page = (the_folder() / "report.html").read_text()
    assert "at the end of those tried" in page and "No critical batch is given" in page


def test_a_target_that_no_run_reaches_gives_no_critical_batch(planted, capsys):
    planted()
    assert main(sweep_words("target=0.5", "rates=3", "seed=0", "duration=100ktok")) == 1
    assert "no rate reached 0.5 nats/target: raise target=" in capsys.readouterr().err


def test_a_failed_run_is_named_and_run_again(planted, capsys, monkeypatch):
    runs = planted()
    plain = Planted.__call__

    def fail(self, words, log):
        if "batch.size=8seq" in words and "seed=1" in words:
            self.wait = lambda: 1
            return self
        self.wait = lambda: 0
        return plain(self, words, log)

    monkeypatch.setattr(Planted, "__call__", fail)
    assert main(sweep_words("rates=3")) == 1
    assert "batch.size=8seq: a run at the best optim.lr failed" in capsys.readouterr().err
    monkeypatch.setattr(Planted, "__call__", plain)
    count, runs.wait = len(runs.started), lambda: 0
    assert main(sweep_words("rates=3")) == 0
    assert [seed for _, _, seed in runs.started[count:]] == [1]


def test_a_rate_that_fails_is_named_beside_the_result(planted, capsys, monkeypatch):
    planted()
    plain = Planted.__call__

    def fail(self, words, log):
        failing = "batch.size=8seq" in words and "optim.lr=0.012" in words
        self.wait = lambda: int(failing)
        return self if failing else plain(self, words, log)

    monkeypatch.setattr(Planted, "__call__", fail)
    assert main(sweep_words("seed=0")) == 1
    shown = capsys.readouterr().out
    assert "failed       batch.size=8seq: exit code 1" in shown and "balance      " in shown
    assert "exit code 1" in (the_folder() / "report.html").read_text()


def test_a_target_that_is_reached_in_the_warmup_is_refused(planted, capsys):
    planted()
    assert main(sweep_words("schedule.warmup=250ktok")) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "batch.size=2seq: 4 nats/target is reached by the end of the warmup" in err
    assert len([path for path in Path("runs").iterdir() if path.is_dir()]) == 4


def test_shares_of_the_duration_are_those_of_the_whole_one(planted):
    planted()
    main(sweep_words("schedule.warmup=4%", "eval.every=2%", "seed=0"))
    recipes = [read_run(path).plan["recipe"] for path in Path("runs").iterdir() if path.is_dir()]
    assert {recipe["schedule"]["warmup"] for recipe in recipes} == {"32000 tokens"}
    assert {recipe["eval"]["every"] for recipe in recipes} == {"16000 tokens"}
    assert len({recipe["duration"] for recipe in recipes}) > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["target=low"], "target"),
        (["target=-1"], "target"),
        (["target="], "target=LOSS is missing"),
        (["batch.size=8seq"], "at least 3 batches"),
        (["batch.size=8seq,16seq"], "at least 3 batches"),
        (["first=abc"], "first"),
        (["branch=runs/x/checkpoint-3"], "branch"),
        (["batch.ramp=doubling:75%"], "batch.ramp"),
        (["schedule.shape=cosine"], "schedule.shape"),
        (["duration=100steps"], "duration"),
        (["rates=2"], "3 to 15"),
        (["rates=x"], "3 to 15"),
        (["tune=optim.lr:5"], "not an option of a sweep"),
        (["optim.lr=1e-3,2e-3"], "optim.lr: a sweep varies batch.size alone"),
        (["batch.sise=8seq"], "batch.sise"),
        (["picture=x.gif"], ".png or .svg"),
        (["scaling.beta2=keep,half_life"], "scaling.beta2: a sweep varies batch.size alone"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(planted, capsys, words, message):
    runs = planted()
    assert main(sweep_words(*words)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err
    assert not runs.started and not Path("runs").exists()


def test_a_sweep_that_trains(forked_runs, ragged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        *WORDS[:-2],
        f"data.files={ragged}",
        "launch=python",
        "threads=1",
        "duration=40ktok",
        "schedule.warmup=1ktok",
    ]
    code = main([*words, "target=5.4", "batch.size=4seq,8seq,16seq", "rates=3", "eval.every=512tok"])
    captured = capsys.readouterr()
    assert code in (0, 1), captured.err
    with (the_folder() / "rates.csv").open() as file:
        shown = [(int(row["batch"]), float(row["steps"])) for row in csv.DictReader(file)]
    measured = []
    for folder in (path for path in Path("runs").iterdir() if path.is_dir()):
        losses = [record["eval/loss"] for record in records(folder, "eval")]
        assert all(loss > 5.4 for loss in losses[:-1])
        run = outcome_of(folder, 0).run
        measured.append((run.plan["largest_batch"], position_of(run, 5.4, STEPS)))
        if losses[-1] <= 5.4:
            assert json.loads((folder / "status.json").read_text())["cause"] == "target"
    assert sorted(shown) == sorted(measured) and len(shown) >= 9
    assert sum(math.isfinite(steps) for _, steps in shown) >= 6
