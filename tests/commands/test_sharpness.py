"""`hfbsz sharpness` measures finished runs on the same rows, twice the same, and leaves them as they are."""

import json

import pytest

from hfbsz.commands.sharpness import main
from hfbsz.measure.rank_correlation import rank_correlation
from hfbsz.system.disk import sha256

QUICK = ["rows=8", "micro_batch=4", "seconds=0"]


@pytest.fixture(scope="module")
def runs(hfbsz, ragged, tmp_path_factory):
    """Two finished runs at two batches."""
    folder = tmp_path_factory.mktemp("sharp")
    made = []
    for batch in (4, 8):
        path = folder / f"batch-{batch}"
        words = ["recipe=tests/tiny.yaml", f"data.files={ragged}", "duration=40seq", f"batch.size={batch}seq"]
        ended = hfbsz("pretrain.py", *words, "batch.micro_max=4", f"output_dir={path}")
        assert ended.code == 0, ended.err
        made.append(path)
    return made


@pytest.fixture(autouse=True)
def _environment(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HFBSZ_CACHE", "OMP_NUM_THREADS"):
        if name in environment:
            monkeypatch.setenv(name, environment[name])


def measured(capsys, *words):
    code = main([*map(str, words), *QUICK, "format=json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_two_runs_are_measured_alike_and_left_as_they_are(runs, tmp_path, capsys):
    before = [sha256(run / "model.safetensors") for run in runs]
    result = measured(capsys, *runs)
    one, other = result["runs"].values()
    assert [run["batch"] for run in (one, other)] == ["4", "8"]
    for run in (one, other):
        assert run["eigenvalues"] == sorted(run["eigenvalues"], reverse=True) and run["eigenvalues"][0] > 0
        assert run["gap"] == pytest.approx(run["validation_loss"] - run["loss"]) and run["trace"]["samples"] == 8
        assert dict(map(tuple, run["landscape"]))[0.0] == pytest.approx(run["loss"], rel=1e-5)
        assert list(run["noise"]) == ["0.01", "0.03", "0.1", "0.3"] and run["sam"]["0.1"] > run["sam"]["0.01"] > 0
        assert list(run["costs"])[:3] == ["eigenvalues", "trace", "SAM"] and len(run["costs"]) == 7
        assert sum(cost["seconds"] for cost in run["costs"].values()) <= run["seconds"]
        assert all(cost["peak_bytes"] > 2**26 for cost in run["costs"].values())  # with torch in memory
    (line,) = result["between"].values()
    ends = dict(map(tuple, line))
    assert ends[0.0] == pytest.approx(one["loss"], rel=1e-5) and ends[1.0] == pytest.approx(other["loss"], rel=1e-4)
    assert [sha256(run / "model.safetensors") for run in runs] == before
    page = (tmp_path / f"sharpness/{runs[0].name}/report.html").read_text()
    assert "contested" in page and page.count("<svg") == 3 and "Peak memory" in page


def test_it_is_the_same_twice_and_kept_beside_the_weights(runs, capsys):
    first = measured(capsys, runs[0])
    kept = json.loads((runs[0] / "sharpness.json").read_text())
    again = measured(capsys, runs[0])  # from the cache
    assert again["runs"] == first["runs"]
    (runs[0] / "sharpness.json").write_text(json.dumps({**kept, "minimum": {"loss": 1}}))  # of another version
    anew = measured(capsys, runs[0])
    for name in ("loss", "eigenvalues", "sam", "keskar", "landscape"):
        assert anew["runs"][runs[0].name][name] == first["runs"][runs[0].name][name]
    other = measured(capsys, runs[0], "micro_batch=8")
    assert other["runs"][runs[0].name]["loss"] == pytest.approx(first["runs"][runs[0].name]["loss"], rel=1e-6)
    assert other["runs"][runs[0].name]["eigenvalues"] == pytest.approx(
        first["runs"][runs[0].name]["eigenvalues"], rel=0.01
    )


def test_the_loss_on_shifted_text(runs, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 40)
    (run,) = measured(capsys, runs[0], "shifted=other.txt")["runs"].values()
    assert list(run["shifted"]) == ["shifted"] and run["shifted"]["shifted"] > 0
    assert "Loss on shifted" in (tmp_path / f"sharpness/{runs[0].name}/report.html").read_text()
    (tmp_path / "other.txt").write_text("It was the best of times, it was the worst of times. " * 40)
    (changed,) = measured(capsys, runs[0], "shifted=other.txt")["runs"].values()
    assert changed["shifted"] != run["shifted"] and changed["loss"] == run["loss"]


def test_text_for_people(runs, capsys):
    assert main([str(runs[1]), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "λ max" in out and "batch-8" in out and "contested" in out and "±" in out


def test_rank_correlations_have_an_interval():
    exact = rank_correlation([1, 2, 3, 4, 5, 6], [2, 3, 5, 7, 11, 13])
    assert exact.value == pytest.approx(1) and exact.high <= 1 + 1e-9 and exact.count == 6
    none = rank_correlation([1, 2, 3, 4, 5, 6, 7, 8], [3, 1, 4, 1, 5, 9, 2, 6])
    assert none.low < none.value < none.high and none.low < 0.5
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None and rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no such folder"),
        (["."], "not the folder of a finished run"),
        ([], "name at least one run"),
        ([".", "rows=0"], "rows=0: not a whole number"),
        ([".", "rows=many"], "rows=many"),
        ([".", "rows=²"], "rows=²: not a whole number above 0"),
        ([".", "seconds=-1"], "seconds=-1"),
        ([".", "format=xml"], "neither text nor json"),
    ],
)
def test_wrong_words_are_told(words, told, capsys):
    assert main([*QUICK, *words]) == 2
    assert told in capsys.readouterr().err


def test_weights_that_are_not_finite_are_told(runs, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "recipe.yaml").write_bytes((runs[0] / "recipe.yaml").read_bytes())
    weights = load_file(runs[0] / "model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, broken / "model.safetensors")
    assert main([str(broken), *QUICK]) == 2 and "no finite curvature" in capsys.readouterr().err


def test_other_files_and_other_models_are_told(runs, hfbsz, ragged, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/report.html").write_text("mine")
    assert main([str(runs[0]), *QUICK, "out=mine"]) == 2 and "another file is there" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "recipe.yaml").write_bytes((runs[0] / "recipe.yaml").read_bytes())
    (damaged / "model.safetensors").write_bytes((runs[0] / "model.safetensors").read_bytes()[:-100])
    assert main([str(damaged), *QUICK]) == 2 and "cannot be read" in capsys.readouterr().err
