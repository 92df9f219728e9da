"""How a run ends that does not finish: signals before the first step, readers that have gone, stray launchers."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY
from test_faults import ranks
from test_resume import Started

from hfbsz.errors import LaunchError, TrainingError, UserError, describe_error
from hfbsz.recipe.load import load
from hfbsz.records.folder import Cause, RunFolder, is_held, read_status
from hfbsz.system.launcher import _option, _values_of, check_launch

pytestmark = pytest.mark.process


@pytest.fixture
def words(ragged, tmp_path):
    return [TINY, f"data.files={ragged}", f"output_dir={tmp_path}/run", "duration=5steps", "threads=1"]


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """A corpus whose tokenizer is trained for many seconds, inside a call that Python's handlers do not interrupt."""
    random.seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(random.choices(letters, k=random.randint(4, 12))) for _ in range(200_000)]
    path = tmp_path_factory.mktemp("slow") / "slow.jsonl"
    with path.open("w") as file:
        for _ in range(4000):
            file.write(json.dumps({"text": " ".join(random.choices(vocabulary, k=300))}) + "\n")
    return [TINY, f"data.files={path}", "data.vocab_size=60000", "threads=1"]


def python(code, *, preexec_fn=None, timeout=30):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=timeout, preexec_fn=preexec_fn
    )


def test_case_28_signs_that_the_output_lacks_are_replaced(hfbsz, words, tmp_path):
    ended = hfbsz("pretrain.py", *words, process=True, env={"PYTHONIOENCODING": "ascii"})
    assert ended.code == 0 and "micro 8 ? accumulation" in ended.out, ended.err
    assert read_status(tmp_path / "run")["state"] == "finished"
    for script in (["plan.py", "recipe=seesaw"], ["plan.py", "recipe=nosuch"], ["compare.py", "--help"]):
        ended = hfbsz(*script, process=True, env={"PYTHONIOENCODING": "ascii:strict"})
        assert "Traceback" not in ended.err and ended.code == (2 if "nosuch" in script[1] else 0)


def test_case_33_a_run_outlives_the_reader_of_its_output(words, environment, tmp_path):
    command = [sys.executable, "scripts/pretrain.py", *words]
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None and run.stderr is not None and run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b"" and run.wait(timeout=120) == 0
    status = read_status(tmp_path / "run")
    assert (status["state"], status["cause"], status["why"], status["step"]) == ("finished", "budget", None, 5)


@pytest.mark.parametrize(
    "script", [["plan.py", "recipe=seesaw", "format=json"], ["pretrain.py", "recipe=debug", "--help"]]
)
def test_case_33_a_script_whose_reader_has_gone_is_silent(script, environment):
    command = f"{sys.executable} scripts/{' '.join(script)} | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.stderr == "" and ended.stdout.splitlines()[-1] == "0"


def test_output_to_a_terminal_that_was_closed_is_dropped(tmp_path):
    code = (
        "import signal, sys, time; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from hfbsz.system.streams import make_lasting; make_lasting()\n"
        "print('begun', flush=True); time.sleep(1)\n"
        "print('more', flush=True); print('more', file=sys.stderr)\n"
        f"open({str(tmp_path / 'end')!r}, 'w').write('reached')"
    )
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    assert b"begun" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "end").read_text() == "reached"


def stopped(run, folder, number, process, cache):
    """Send a signal; assert that the run ends within seconds, says so, and leaves nothing half made."""
    started = time.monotonic()
    run.end(number, process)
    assert time.monotonic() - started < 30
    status = read_status(folder)
    assert status["state"] == "preempted" and not is_held(folder)
    assert status["cause"] == "signal" and status["why"].startswith("SIG")
    assert not list(cache.glob("*.tmp")) and not list(cache.glob(".*.tmp"))


_HEEDED = pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="nohup: SIGHUP is ignored")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=_HEEDED)])
def test_case_32_a_signal_in_preparation_ends_the_run(hfbsz, slow, ragged, environment, fork_server, tmp_path, number):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    run = Started(folder, {**environment, "HFBSZ_CACHE": str(cache)}, *slow, server=fork_server)
    run.wait_for(lambda: list(cache.glob("*.tmp")))
    time.sleep(2)  # in the tokenizer
    stopped(run, folder, number, None, cache)
    assert run.process.returncode == 130
    ended = hfbsz("pretrain.py", TINY, f"data.files={ragged}", "duration=5steps", f"output_dir={folder}")
    assert ended.code == 0 and not list(folder.glob("attempt-*")), ended.err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_case_32_a_signal_to_either_rank_in_preparation_ends_both(slow, environment, fork_server, tmp_path, rank):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    run = Started(folder, {**environment, "HFBSZ_CACHE": str(cache)}, *slow, processes=2, server=fork_server)
    run.wait_for(lambda: list(cache.glob("*.tmp")))
    time.sleep(2)
    stopped(run, folder, signal.SIGTERM, ranks(run.process.pid)[rank].pid, cache)


def test_case_32_rank_0_that_finds_the_other_gone_says_that_a_signal_ended_it(slow, environment, fork_server, tmp_path):
    folder, environment = tmp_path / "run", {**environment, "HFBSZ_CACHE": str(tmp_path / "cache")}
    run = Started(folder, environment, *slow, processes=2, server=fork_server, patience=600)
    run.wait_for(lambda: list((tmp_path / "cache").glob("*.tmp")))
    err = run.end(signal.SIGTERM, ranks(run.process.pid)["1"].pid)
    status = read_status(folder)
    assert (status["state"], status["cause"]) == ("preempted", "signal") and status["why"].startswith("SIGTERM"), err
    assert "another rank has ended" not in err and not list(folder.glob(".*.tmp"))


_INTERRUPT = "import os, signal, time; from hfbsz.system.signals import Interrupt; stop = Interrupt()\n"
_TERM = "os.kill(os.getpid(), signal.SIGTERM)\n"


def test_a_signal_is_remembered_once_training_has_begun():
    ended = python(f"{_INTERRUPT}stop.train()\n{_TERM}print(stop(), stop.reason)\n{_TERM}print('again')")
    assert ended.stdout == "True SIGTERM\nagain\n" and ended.stderr.count("SIGTERM: ending after this step") == 2


def test_a_signal_that_was_swallowed_in_preparation_is_raised_before_training():
    code = f"{_INTERRUPT}try:\n  {_TERM}except KeyboardInterrupt: pass\nstop.train()"
    assert "Interrupted: SIGTERM before the first step" in python(code).stderr


def test_a_call_that_hears_no_signal_is_left(tmp_path):
    code = (
        "import hashlib, threading, pathlib\nfrom hfbsz.system.signals import scratch\nstop.leaving = print\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        f"path = pathlib.Path({str(tmp_path)!r}) / 'half'\nwith scratch(path):\n  path.mkdir()\n"
        "  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
    )
    ended = python(_INTERRUPT + code)
    assert ended.returncode == 130 and ended.stderr.startswith("error: SIGTERM before the first step")
    assert "SIGTERM before" in ended.stdout and not list(tmp_path.iterdir())


def test_nohup_is_heeded():
    code = f"{_INTERRUPT}os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    assert python(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)).stdout == "alive\n"
    heeding = python(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    assert "SIGHUP before the first step" in heeding.stderr


def test_a_signal_in_preparation_keeps_what_an_earlier_start_has_come_to(tmp_path):
    loaded = load([TINY, f"output_dir={tmp_path}/run"])
    folder = RunFolder(loaded)
    folder.begin(loaded, from_scratch=True)
    folder.status("preempted", Cause.SIGNAL, "SIGTERM", step=7, clock=56)
    folder.release()
    again = RunFolder(loaded)
    again.status("running")
    again.interrupt("SIGTERM before the first step")
    again.release()
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"], status["clock"]) == ("preempted", 7, 56)


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (SystemExit(1), "SystemExit: a library ended the process with exit code 1"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (AssertionError(), "AssertionError"),
        (KeyboardInterrupt(), "interrupted"),
        (TrainingError(["one", "two"]), "one; two"),
    ],
)
def test_why_is_never_bare(problem, why):
    assert describe_error(problem) == why
    try:
        raise AssertionError
    except AssertionError as raised:
        assert "test_ends.py, line" in describe_error(raised)


WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: no launcher set that: unset WORLD_SIZE;",
        ),
        ({"RANK": "1"}, "unset RANK;"),
        ({"LOCAL_RANK": "0"}, "unset LOCAL_RANK;"),
        ({"RANK": "first"}, "RANK='first' is not a whole number: unset RANK"),
        ({"MASTER_PORT": ""}, "MASTER_PORT='' is not a whole number"),
        (WHOLE, "would wait for 1 more: unset WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT"),
        ({**WHOLE, "RANK": "2"}, "must be below WORLD_SIZE"),
        ({**WHOLE, "TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "5"}, "must be below WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 in the environment is not from 1 to WORLD_SIZE=1: unset LOCAL"),
        ({**WHOLE, "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3"}, "not from 1 to WORLD_SIZE=2"),
        ({"OMP_NUM_THREADS": "4,2"}, "OMP_NUM_THREADS='4,2' is not a number of threads"),
    ],
)
def test_stray_variables_of_a_launcher_are_told(environment, message):
    with pytest.raises(UserError) as caught:
        check_launch(environment)
    assert message in caught.value.lines[0] and isinstance(caught.value, LaunchError) != ("OMP_" in message)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**WHOLE, "TORCHELASTIC_RUN_ID": "none"},
        {**WHOLE, "SLURM_STEP_ID": "0"},
        {"MASTER_ADDR": "host", "MASTER_PORT": "29500"},  # exported for a launcher that comes later
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "host"},
        {"LOCAL_RANK": "-1", "OMP_NUM_THREADS": "4"},
        {"OMP_NUM_THREADS": ""},
        {**WHOLE, "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"},
    ],
)
def test_what_a_launcher_sets_passes(environment):
    check_launch(environment)


def test_a_stray_rank_is_told_at_once(hfbsz, words, tmp_path):
    for stray in ({"RANK": "3"}, {"WORLD_SIZE": "many"}, {"OMP_NUM_THREADS": "all"}):
        ended = hfbsz("pretrain.py", *words, env=stray, timeout=20)
        assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert "no such preset" in hfbsz("plan.py", "recipe=nosuch", env={"RANK": "3"}).err


def test_case_41_accumulation_of_the_launch_command_is_refused(words, environment):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--gradient-accumulation-steps=4"]
    ended = subprocess.run(
        [*launch, "scripts/pretrain.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "=4 contradicts the plan, whose accumulation is 1: remove gradient_accumulation_steps from" in ended.stderr


def test_case_41_the_config_file_and_precision_too(words, environment, tmp_path):
    config = tmp_path / "config.yaml"
    plain = (ROOT / "accelerate_configs" / "cpu.yaml").read_text()
    config.write_text(f"{plain}deepspeed_config:\n  gradient_accumulation_steps: 8\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    for options, message in (([], "=8 contradicts the plan"), (["--mixed_precision", "no"], "precision=bf16")):
        asked = ["precision=bf16"] if options else []
        ended = subprocess.run(
            [*launch, *options, "scripts/pretrain.py", *words, *asked],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert message in ended.stderr and "Traceback" not in ended.stderr.split("accelerate/commands")[0][:200]


def test_options_of_a_launch_command():
    command = ["--cpu", "--mixed-precision", "no", "--mixed_precision=bf16", "--num_processes", "2"]
    assert _option(command, "mixed_precision") == "bf16" and _option(command, "gradient_accumulation_steps") is None
    assert list(_values_of({"a": {"b": {"steps": 3}}, "steps": "auto"}, "steps")) == ["3", "auto"]
