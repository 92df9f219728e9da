"""What a user gets for input that cannot be used: one line each, exit code 2, nothing lost."""

import json
import math
import os
import signal
import time

import pytest
from conftest import ROOT, TINY, records
from filelock import FileLock

from hfbsz.recipe.load import load
from hfbsz.records.folder import Cause, RunFolder, read_status


@pytest.fixture
def words(ragged, tmp_path):
    return [TINY, f"data.files={ragged}", f"output_dir={tmp_path}/run"]


def lines_of(ended):
    assert "Traceback" not in ended.err, ended.err
    return [line for line in ended.err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("batch.sze=8seq", "did you mean 'batch.size'"),
        ("model=tinny", "did you mean 'tiny'"),
        ("batch.size=-8seq", "negative"),
        ("optim.betas=[0.99,0.9]", "β1²"),
        ("batch.ramp=0:4 50%:8 20%:16", "thresholds must rise"),
        ("data.files=nowhere/*.txt", "no file matches"),
        ("batch.size=4096seq", "fewer than one batch"),
        ("model.shape.model_type=lama", "did you mean 'llama'"),
        ("model.shape.hiden_size=3", "did you mean 'hidden_size'"),
        ("model.path=nowhere", "cannot be loaded"),
        ("data.tokenizer=nowhere", "cannot be loaded"),
        ("model.shape.hidden_size=33", "model.shape"),
        ("data.sequence_length=512", "beyond the model's window"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(hfbsz, words, tmp_path, wrong, message):
    extra = ["batch.size=null"] if "ramp" in wrong else ["model.shape=null"] if "model.path" in wrong else []
    ended = hfbsz("pretrain.py", *words, *extra, wrong)
    (line,) = lines_of(ended)
    assert message in line and ended.code == 2
    status = read_status(tmp_path / "run")
    assert status == {} or ((status["state"], status["cause"]) == ("failed", "refused") and message in status["why"])


def test_an_indivisible_batch_on_two_processes_speaks_once(hfbsz, words):
    ended = hfbsz("pretrain.py", *words, "batch.size=7seq", processes=2)
    assert ended.code != 0 and [line for line in lines_of_launch(ended) if "take 6 or 8" in line] == lines_of_launch(
        ended
    )


def lines_of_launch(ended):
    return [line for line in ended.err.splitlines() if line.startswith("error: ")]


def test_the_launchers_accumulation_is_checked(hfbsz, words):
    ended = hfbsz("pretrain.py", *words, env={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    assert ended.code == 2 and "contradicts the plan" in lines_of(ended)[0]
    ended = hfbsz("pretrain.py", *words, env={"ACCELERATE_MIXED_PRECISION": "fp16"})
    assert ended.code == 2 and "fp16" in lines_of(ended)[0]


def test_another_recipes_folder_is_refused_and_kept(hfbsz, words, tmp_path):
    run = tmp_path / "run"
    assert hfbsz("pretrain.py", *words, "duration=8seq").code == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    ended = hfbsz("pretrain.py", *words, "duration=8seq", "optim.lr=1e-3")
    (line,) = lines_of(ended)
    assert ended.code == 2 and "another recipe (optim.lr: 0.003 there, 0.001 here)" in line
    again = hfbsz("pretrain.py", *words, "duration=8seq")
    assert again.code == 0 and "finished already" in again.out
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}


def test_a_folder_that_is_no_runs_is_refused(hfbsz, words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    ended = hfbsz("pretrain.py", *words)
    assert ended.code == 2 and "not the folder of a run" in lines_of(ended)[0]
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == ["thesis.txt"]


def test_a_locked_folder_is_refused(hfbsz, words, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        ended = hfbsz("pretrain.py", *words)
    assert ended.code == 2 and "another run is at work" in lines_of(ended)[0]


def test_an_unfinished_attempt_is_kept_aside(tmp_path):
    loaded = load([f"output_dir={tmp_path}/run", "batch.size=8seq"])
    for attempt in range(3):
        folder = RunFolder(loaded)
        assert not folder.finished
        folder.begin(loaded, from_scratch=True)
        (folder.path / "records.jsonl").write_text(f"{attempt}")
        folder.status("failed", Cause.EXCEPTION, "a test")
        folder.release()
    kept = [(tmp_path / "run" / f"attempt-{n}" / "records.jsonl").read_text() for n in (1, 2)]
    assert kept == ["0", "1"] and (tmp_path / "run" / "records.jsonl").read_text() == "2"


def test_sigint_ends_at_the_next_step_with_a_saved_model(words, tmp_path, environment, fork_server):
    process = fork_server.start([f"{ROOT}/scripts/pretrain.py", *words, "duration=100000seq"], environment)
    run = tmp_path / "run"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((run / "records.jsonl").exists() and len(records(run, "step")) > 5):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    status = json.loads((run / "status.json").read_text())
    assert process.returncode == 130 and "Traceback" not in err, err
    assert (status["state"], status["cause"], status["why"]) == ("preempted", "signal", "SIGINT")
    last = records(run, "step")[-1]
    assert status["step"] == last["train/global_step"] < 12_500
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(run).num_parameters() > 0


def test_a_start_that_failed_leaves_room_for_the_corrected_one(hfbsz, words, tmp_path):
    assert hfbsz("pretrain.py", *words, "batch.size=4096seq").code == 2
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert hfbsz("pretrain.py", *words, "duration=8seq").code == 0
    assert not list((tmp_path / "run").glob("attempt-*"))  # it held nothing to keep


def test_what_no_data_can_mend_is_refused_before_anything_is_written(hfbsz, words, tmp_path):
    ended = hfbsz("pretrain.py", *words, "data.pack=true", "scaling.rule=noise")
    assert ended.code == 2 and "scaling.noise_scale=120seq" in lines_of(ended)[0]
    assert not (tmp_path / "run").exists()


def test_arms_that_are_one_run_are_refused(hfbsz, words):
    ended = hfbsz("compare.py", *words[:2], "threads=1,2")
    (line,) = lines_of(ended)
    assert ended.code == 2 and all(word in line for word in ("threads=1", "threads=2"))


def test_sigint_to_rank_0_alone_stops_both_ranks_and_saves(words, tmp_path, environment, fork_server):
    command = [f"{ROOT}/scripts/pretrain.py", *words, "duration=100000seq", "log.page=true"]
    process = fork_server.start(command, environment, config="cpu_2proc.yaml")
    run = tmp_path / "run"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((run / "records.jsonl").exists() and len(records(run, "step")) > 5):
        time.sleep(0.1)
    os.kill(read_status(run)["pid"], signal.SIGINT)
    process.wait(timeout=60)
    status = read_status(run)
    assert (status["state"], status["cause"], status["why"]) == ("preempted", "signal", "SIGINT") and (
        run / "report.html"
    ).is_file()
    assert (run / "model.safetensors").is_file()


def test_a_diverging_run_fails_and_says_what_to_do(hfbsz, words, tmp_path):
    ended = hfbsz("pretrain.py", *words, "optim.lr=1e30", "optim.clip=null", "schedule.warmup=0seq", "log.page=true")
    assert ended.code == 1 and "lower optim.lr" in lines_of(ended)[0] and "training rows" in lines_of(ended)[0]
    assert read_status(tmp_path / "run")["state"] == "diverged"
    assert records(tmp_path / "run", "lifecycle")[-1]["state"] == "diverged"  # and the page shows what happened
    assert "failed" in (tmp_path / "run" / "report.html").read_text()


def test_without_a_recipe_the_recipes_are_listed(hfbsz):
    for script in ("pretrain.py", "plan.py"):
        ended = hfbsz(script)
        assert ended.code == 2 and "large_batch " in ended.out and "The main recipe" in ended.out
    assert hfbsz("pretrain.py", "seed=1").code == 2
    shown = hfbsz("pretrain.py", "recipe=large_batch", "--help")
    assert shown.code == 0 and "optim.lr=" in shown.out and "small_batch_pretrain.yaml" in shown.out


def test_plan_prints_text_and_json(hfbsz):
    ended = hfbsz("plan.py", "recipe=large_batch", "world_size=8", "train_rows=25000", "format=json")
    data = json.loads(ended.out)
    assert data["world_size"] == 8 and data["micro_batch"] * data["accumulation"][-1] * 8 == data["phases"][-1]["batch"]
    assert "processes 8" in hfbsz("plan.py", "recipe=large_batch", "world_size=8").out
    for wrong in ("world_size=0", "format=xml", "rows=many"):
        assert hfbsz("plan.py", "recipe=large_batch", wrong).code == 2


def test_gpt2_and_further_evaluation_sets(hfbsz, words, tmp_path, ragged):
    other = tmp_path / "other.txt"
    other.write_text("A text of another kind: prose, in which no line of source code stands. " * 40)
    ended = hfbsz("pretrain.py", *words, "model=tiny_gpt2", f"eval.sets.prose={other}", "duration=24seq")
    assert ended.code == 0, ended.err
    last = records(tmp_path / "run", "eval")[-1]
    for prefix in ("eval/", "eval/prose/"):
        loss = last[f"{prefix}loss"]
        assert last[f"{prefix}perplexity"] == pytest.approx(math.exp(loss))
        assert 0 < last[f"{prefix}bits_per_byte"] < 20 and last[f"{prefix}targets"] > 0
    assert last["eval/prose/loss"] != last["eval/loss"] and "prose loss" in ended.out
