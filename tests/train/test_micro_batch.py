"""The probe on this device: what it measures, and that a run with batch.micro_max=auto is the run with that number."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, records

import hfbsz.train.micro_batch as module
from hfbsz.commands.probe import checkpointing_lines
from hfbsz.errors import RankError, UserError
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records.folder import read_status
from hfbsz.records.probe import Checkpointing, Probe, Trial, probe_from_dict
from hfbsz.train.layers import layers_of
from hfbsz.train.memory_limit import bytes_of
from hfbsz.train.micro_batch import about, probe
from hfbsz.train.setup import setup


@pytest.fixture(autouse=True)
def _here(monkeypatch, cache):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    monkeypatch.setattr(module, "_BLOCK_SECONDS", 0.01)


def built(ragged, *words):
    return setup(load([TINY, f"data.files={ragged}", *words]).recipe)


def test_the_trials_rise_until_they_are_no_faster(ragged):
    one = built(ragged)
    result = probe(one.parts(), about(one.parts(), "tiny"), largest=64)
    sizes = [trial.micro_batch for trial in result.trials]
    assert sizes == [2**power for power in range(len(sizes))] and len(sizes) > 2
    assert result.knee in sizes and result.step_seconds > 0 and result.sync_seconds is None
    assert all(trial.seconds > 0 and trial.error >= 0 and trial.peak_bytes > 2**20 for trial in result.trials)
    assert result.about["recipe"] == "tiny" and "cpu" in result.about["device"]


def test_the_price_of_activation_checkpointing(ragged, monkeypatch):
    one = built(ragged)
    result = probe(one.parts(), {}, largest=4)
    assert 1.05 < result.checkpointing.time_ratio < 2 and result.checkpointed_wall is None  # no peaks on a CPU
    assert not any(layer.gradient_checkpointing for layer in layers_of(one.model))
    assert probe(one.parts(), {}, largest=2, prices=False).checkpointing is None
    already = built(ragged, "model.activation_checkpointing=true")
    assert probe(already.parts(), {}, largest=2).checkpointing is None


def test_the_wall_moves_by_the_memory_of_a_row():
    trials = (Trial(1, 0.1, 0.0, 150), Trial(2, 0.1, 0.0, 200))
    result = Probe({}, 8.0, trials, 0.01, None, 1000, "the limit given", checkpointing=Checkpointing(1.3, 20.0))
    assert result.wall == 18 and result.checkpointed_wall == 45  # (1000 − 100) ÷ 20
    assert probe_from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert "1.30 times as long" in "".join(checkpointing_lines(result)) and "to 45 sequences" in "".join(
        checkpointing_lines(result)
    )


def failing(one, most):
    """Make passes over more than `most` rows run out of memory; returns the sizes of all passes."""
    sizes, loss_sum = [], one.task.loss_sum

    def loss(model, batch):
        sizes.append(len(batch.labels))
        if len(batch.labels) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return loss_sum(model, batch)

    one.task.loss_sum = loss
    return sizes


def test_a_trial_that_runs_out_of_memory_is_the_wall(ragged, monkeypatch):
    monkeypatch.setattr(module, "_GAIN", 0.0)
    one = built(ragged)
    sizes = failing(one, 5)
    result = probe(one.parts(), {}, largest=64)
    assert result.failed == 8 and result.wall <= 7 and max(sizes) == 8
    assert [trial.micro_batch for trial in result.trials] == [1, 2, 4]


def test_no_trial_is_made_that_the_line_predicts_above_the_limit(ragged, monkeypatch):
    monkeypatch.setattr(module, "_GAIN", 0.0)
    one = built(ragged)
    peaks = iter([1000, 1010, 1030, 1070, 1150])
    monkeypatch.setattr("hfbsz.train.device.memory.peak_bytes", lambda: next(peaks))
    result = probe(one.parts(), {}, limit=1100, largest=64)
    assert [trial.micro_batch for trial in result.trials] == [1, 2, 4]  # 8: 1070 × 1.05 > 1100
    assert result.wall == 11 and result.limit_source == "the limit given"


def test_a_row_that_does_not_fit_is_refused(ragged):
    one = built(ragged)
    failing(one, 0)
    with pytest.raises(UserError, match="a single row does not fit into"):
        probe(one.parts(), {})


def test_memory_is_measured_on_the_longest_rows(ragged):
    one = built(ragged)
    lengths, loss_sum = [], one.task.loss_sum
    one.task.loss_sum = lambda model, batch: (
        lengths.append(batch.inputs["input_ids"].shape[1]),
        loss_sum(model, batch),
    )[1]
    probe(one.parts(), {}, largest=1)
    assert lengths[0] == lengths[1] == int(one.data.train.lengths.max()) - 1
    assert min(lengths) < lengths[0]  # and timed on typical ones


def test_other_faults_are_not_taken_for_memory(ragged):
    one = built(ragged)

    def loss(model, batch):
        raise RuntimeError("size mismatch")

    one.task.loss_sum = loss
    with pytest.raises(RuntimeError, match="size mismatch"):
        probe(one.parts(), {})


@pytest.mark.parametrize(("text", "value"), [("8GB", 8 * 10**9), ("512MiB", 2**29), ("1.5GB", 1_500_000_000)])
def test_amounts_of_memory(text, value):
    assert bytes_of(text) == value


@pytest.mark.parametrize("text", ["8", "8G", "-1GB", "0GB", "infGB", "nanGB", "GB", "many GB"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(ValueError, match=r"write 8GB or 512MiB|could not convert"):
        bytes_of(text)


def test_a_run_with_auto_is_the_run_with_the_number_that_was_found(hfbsz, ragged, tmp_path):
    """The weights that the probe trains are not those of the run; a resumed run keeps the number that it began with."""
    words = [TINY, f"data.files={ragged}", "duration=12steps", "checkpoint.every=4steps", "threads=1"]
    words += ["schedule.shape=constant", "schedule.warmup=2steps"]
    env = {"HFBSZ_CACHE": str(tmp_path / "cache")}
    ended = hfbsz("pretrain.py", *words, "batch.micro_max=auto", f"output_dir={tmp_path / 'auto'}", env=env)
    assert ended.code == 0, ended.err
    plan = json.loads((tmp_path / "auto/plan.json").read_text())
    found = plan["facts"]["micro_max"]
    assert 1 <= found <= 8 and plan["micro_batch"] <= found
    assert f"micro-batches of at most {found} sequences" in ended.out
    (entry,) = (tmp_path / "cache/probes").glob("*.json")
    assert json.loads(entry.read_text())["knee"] == found
    ended = hfbsz("pretrain.py", *words, f"batch.micro_max={found}", f"output_dir={tmp_path / 'same'}", env=env)
    assert ended.code == 0, ended.err
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("auto", "same"))
    assert one == other
    other = 4 if found != 4 else 2
    entry.write_text(entry.read_text().replace(f'"micro_batch": {found},', f'"micro_batch": {other},'))
    extended = [word.replace("12steps", "16steps") for word in words]
    ended = hfbsz("pretrain.py", *extended, "batch.micro_max=auto", f"output_dir={tmp_path / 'auto'}", env=env)
    assert ended.code == 0, ended.err
    assert {step["batch/micro"] for step in records(tmp_path / "auto", "step")} == {plan["micro_batch"]}


def test_after_a_run_that_ran_out_of_memory_auto_takes_half(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", "duration=4steps", "batch.micro_max=auto", f"output_dir={tmp_path / 'run'}"]
    ended = hfbsz("pretrain.py", *words)
    assert ended.code == 0, ended.err
    status = read_status(tmp_path / "run")
    status |= {"state": "failed", "cause": "memory", "exceeded": 4}
    for path in (*(tmp_path / "run").glob("checkpoint-*"),):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (tmp_path / "run/status.json").write_text(json.dumps(status))
    ended = hfbsz("pretrain.py", *words)
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run/plan.json").read_text())["facts"]["micro_max"] == 2
    assert read_status(tmp_path / "run")["exceeded"] == 4  # also if it is stopped before its first checkpoint


def test_the_command_prints_and_saves_the_probe(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", "threads=1", f"out={tmp_path / 'probe'}", "largest=4"]
    ended = hfbsz("probe.py", *words)
    assert ended.code == 0, ended.err
    saved = json.loads((tmp_path / "probe/probe.json").read_text())
    assert f"batch.micro_max={saved['knee']}" in ended.out and "wall" in ended.out
    assert [trial["micro_batch"] for trial in saved["trials"]] == [1, 2, 4]
    page = (tmp_path / "probe/report.html").read_text()
    assert page.count("<svg") == 3 and f"batch.micro_max={saved['knee']}" in page
    ended = hfbsz("probe.py", *words, "format=json")
    assert ended.code == 0 and json.loads(ended.out)["limit_source"].endswith("memory")


def test_two_processes_agree(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", "threads=1", f"out={tmp_path / 'probe'}", "largest=4"]
    ended = hfbsz("probe.py", *words, processes=2)
    assert ended.code == 0, ended.err
    saved = json.loads((tmp_path / "probe/probe.json").read_text())
    assert saved["sync_seconds"] >= 0 and "over 2 processes" in ended.out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("limit=8", "8GB or 512MiB"),
        ("share=0", "share=0: not a share above 0"),
        ("share=2", "share=2: not a share above 0"),
        ("largest=0", "largest=0: not a whole number"),
        ("largest=1.5", "largest=1.5: not a whole number"),
        ("format=xml", "format=xml: neither text nor json"),
        ("limit=1MB", "a single row does not fit into"),
        ("limit=GB", "8GB or 512MiB"),
        ("batch.micro_max=some", "batch.micro_max: it is a whole number above 0, or auto"),
        ("batch.micro_max=0", "batch.micro_max: it is a whole number above 0, or auto"),
    ],
)
def test_wrong_words(hfbsz, ragged, tmp_path, word, said):
    ended = hfbsz("probe.py", TINY, f"data.files={ragged}", word, f"out={tmp_path / 'probe'}")
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err
    assert not (tmp_path / "probe").exists()


def test_a_file_of_others_and_a_folder_that_cannot_be_written_are_refused_at_once(hfbsz, ragged, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    ended = hfbsz("probe.py", TINY, f"data.files={ragged}", f"out={tmp_path}")
    assert ended.code == 2 and "another file is there" in ended.err and "probing" not in ended.out
    assert (tmp_path / "report.html").read_text() == "mine"
    ended = hfbsz("probe.py", TINY, f"data.files={ragged}", f"out={tmp_path / 'report.html'}")
    assert ended.code == 2 and "out=" in ended.err and "probing" not in ended.out


def test_a_stray_rank_is_named(hfbsz, ragged):
    ended = hfbsz("probe.py", TINY, f"data.files={ragged}", env={"RANK": "1"}, process=True)
    assert ended.code == 2 and "RANK" in ended.err


@pytest.mark.parametrize("words", [["batch.ramp=linear:50%", "batch.start=2seq"], ["batch.micro_tokens=200"]])
def test_what_auto_cannot_be_combined_with(ragged, words):
    recipe = load([TINY, f"data.files={ragged}", "batch.micro_max=auto", *words]).recipe
    with pytest.raises(UserError, match=r"batch\.micro_max"):
        resolve(recipe, 1, Facts(rows=500, tokens_per_row=40.0))


def test_rows_of_different_lengths_are_timed_per_token(ragged):
    one = built(ragged, "batch.by_length=true")
    bench = module._Bench(one.parts(), None, None, lambda *_: None)
    mean = one.data.train.lengths.mean() - 1
    counted = []
    bench._passes = lambda batches: counted.extend(batch.tokens for batch in batches)
    bench._seconds = lambda work, repeats: (work(), 10.0)[1]
    assert bench._block(2, 3) == pytest.approx(10.0 * 2 * mean / sum(counted)) and len(counted) == 3


def test_a_rank_that_runs_out_where_others_wait_ends_with_an_error(ragged):
    one = built(ragged)
    bench = module._Bench(one.parts(), None, None, lambda *_: None)
    failing(one, 0)
    assert not bench._fits(1)
    with pytest.raises(RankError, match="ran out of memory in a trial"):
        bench._try(lambda: bench._pass(bench._batch(bench.typical, 1)), alone=False)


@pytest.mark.process
def test_a_limit_from_outside_is_met_without_a_crash(environment, ragged):
    """`ulimit -v`: the probe stays below it, and says so."""
    code = (
        "import json, resource, sys, psutil\nimport hfbsz.train.micro_batch as module\n"
        "from hfbsz.recipe.load import load\nfrom hfbsz.train.setup import setup\n"
        "one = setup(load(sys.argv[1:]).recipe)\nnext(one.steps())\nmodule._GAIN = 0\n"
        "limit = psutil.Process().memory_info().vms + 400 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "print(json.dumps(module.probe(one.parts(), {}).to_dict()))"
    )
    words = [TINY, f"data.files={ragged}", "threads=1", "data.sequence_length=256"]
    words += ["model.shape.hidden_size=256", "model.shape.intermediate_size=1024"]
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["limit_source"] == "50 % of the address space that ulimit -v leaves"
    assert len(result["trials"]) > 2 and result["wall"] < 4096
    assert max(trial["peak_bytes"] for trial in result["trials"]) <= result["limit_bytes"]
