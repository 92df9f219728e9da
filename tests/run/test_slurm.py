"""scripts/slurm.sh with stand-ins for the commands of Slurm: the launch of a node, exit codes, signals, requeueing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise

import pytest
from conftest import ROOT

LAUNCHER = """\
printf "%s\\n" "$@" > words
leave() {
  sleep "${SAVING:-0}"
  [ -z "${LEAVES:-}" ] || { mkdir -p run && printf "%s" "$LEAVES" > run/status.json; }
  exit "$ENDS"
}
[ -n "${STAY:-}" ] || leave
trap leave TERM
echo $$ > pid
for _ in $(seq 600); do sleep 0.1; done
"""
STANDINS = {
    "scontrol": 'if [ "$1" = requeue ]; then echo "$@" >> requeued; exit "${REFUSES:-0}"; fi\necho host0\necho host1',
    "srun": 'while [ "$1" != bash ]; do shift; done\nSLURM_NODEID=1 exec "$@"',
    "accelerate": LAUNCHER,
    "scancel": 'echo "$@" >> canceled\nkill -TERM "$(cat pid)"\nsleep 0.3',
    "python": f'PYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"',
}
pytestmark = [pytest.mark.process, pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")]


@pytest.fixture
def start(tmp_path):
    """Start the script as sbatch would, in a folder of its own; what it leaves behind is ended."""
    started = []
    for name, body in STANDINS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(*words, **variables):
        given = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "host[0-1]"}
        given |= {"SLURM_NNODES": "2", "ENDS": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
        command = ["bash", str(ROOT / "scripts" / "slurm.sh"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=given, start_new_session=True, **pipes))
        return started[-1]

    yield run
    for job in started:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


def launch_of(tmp_path):
    """The arguments of a node's launcher: its options, and the script with its words."""
    words = (tmp_path / "words").read_text().splitlines()
    place = words.index("scripts/pretrain.py")
    options = dict(pairwise(words[:place]))
    return {key.removeprefix("--"): value for key, value in options.items() if key.startswith("--")}, words[place + 1 :]


def send(job, tmp_path, *numbers):
    """Send signals to the script once its launcher is at work."""
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    for number in numbers:
        time.sleep(0.2)
        job.send_signal(number)


def leaves(state, step=None):
    """A `status.json` as the run writes it: with a step only once it has ended."""
    return json.dumps({"state": state} | ({} if step is None else {"step": step}))


def test_a_node_gets_its_rank_and_unchanged_words(start, tmp_path):
    assert start("recipe=debug", "data.files=a b/*.txt", SLURM_GPUS_ON_NODE="8").wait(timeout=30) == 0
    options, words = launch_of(tmp_path)
    assert words == ["recipe=debug", "data.files=a b/*.txt"]
    wanted = {"num_machines": "2", "num_processes": "16", "machine_rank": "1", "main_process_ip": "host0"}
    assert wanted.items() <= options.items() and options["main_process_port"] == "20007"
    assert (ROOT / options["config_file"]).is_file()


def test_without_gpus_a_node_runs_one_process_and_a_failure_is_the_jobs(start, tmp_path):
    job = start("recipe=debug", ENDS="3", HFBSZ_LAUNCH="accelerate_configs/fsdp2.yaml")
    assert job.wait(timeout=30) == 3
    options, _ = launch_of(tmp_path)
    assert options["num_processes"] == "2" and options["config_file"] == "accelerate_configs/fsdp2.yaml"


def test_the_signal_before_the_end_reaches_the_step_once_and_the_script_waits_for_it(start, tmp_path):
    """Slurm signals the ranks as well as their launcher: SIGINT would come to a rank twice, and end it at once."""
    job = start("recipe=debug", STAY="yes", ENDS="1")
    send(job, tmp_path, signal.SIGUSR1, signal.SIGUSR1)
    out, _ = job.communicate(timeout=60)
    assert (tmp_path / "canceled").read_text().splitlines() == ["--signal=TERM 20007.0"]
    assert job.returncode == 1 and out.count("SIGTERM to the ranks") == 1


PREEMPTED = leaves("preempted", 12)


@pytest.mark.parametrize(
    ("before", "after", "words", "variables", "why"),
    [
        (None, PREEMPTED, [], {}, None),
        (leaves("preempted", 7), PREEMPTED, [], {}, None),
        (leaves("running"), PREEMPTED, [], {}, None),
        (None, PREEMPTED, ["resume=auto"], {"HFBSZ_REQUEUE": "yes"}, None),
        (None, PREEMPTED, [], {"REFUSES": "1"}, "Slurm refused"),
        (None, PREEMPTED, [], {"HFBSZ_REQUEUE": "no"}, "HFBSZ_REQUEUE=no"),
        (None, PREEMPTED, ["resume=never"], {}, "not requeued: resume=never"),
        (None, leaves("preempted", 0), [], {}, "no step was trained since step 0"),
        (PREEMPTED, PREEMPTED, [], {}, "no step was trained since step 12"),
        (PREEMPTED, "", [], {}, "no step was trained since step 12"),
        (None, "", [], {}, "the run's state is none"),
        (PREEMPTED, leaves("failed"), [], {}, "the run's state is failed"),
        (None, leaves("running"), [], {}, "the run's state is running"),
        (None, PREEMPTED, ["optim.lrr=1"], {}, "the run's state is unknown"),
    ],
)
def test_a_run_that_ended_at_the_signal_is_requeued_and_resumes(start, tmp_path, before, after, words, variables, why):
    if before is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "status.json").write_text(before)
    job = start("recipe=debug", "output_dir=run", *words, STAY="yes", ENDS="1", LEAVES=after, **variables)
    send(job, tmp_path, signal.SIGUSR1)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    asked = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").exists() else None
    assert asked == ("requeue 20007\n" if why in (None, "Slurm refused") else None), out
    assert ("not requeued" in out) == (why is not None) and (why or "preempted at step 12") in out


def test_a_run_that_finishes_at_the_signal_ends_a_successful_job(start, tmp_path):
    """A launcher that got a signal does not exit with 0, whatever its ranks did."""
    job = start("recipe=debug", "output_dir=run", STAY="yes", ENDS="1", LEAVES=leaves("finished", 40))
    send(job, tmp_path, signal.SIGUSR1)
    assert job.wait(timeout=60) == 0 and not (tmp_path / "requeued").exists()


def test_a_run_that_ends_without_the_signal_is_not_requeued(start, tmp_path):
    job = start("recipe=debug", "output_dir=run", ENDS="1", LEAVES=PREEMPTED)
    assert job.wait(timeout=60) == 1 and not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("first", [[], [signal.SIGUSR1]])
def test_a_canceled_job_is_not_requeued(start, tmp_path, first):
    """Slurm ends the script with SIGTERM; here also while the run saves itself after the other signal."""
    job = start("recipe=debug", "output_dir=run", STAY="yes", SAVING="30", ENDS="1", LEAVES=PREEMPTED)
    send(job, tmp_path, *first, signal.SIGTERM)
    assert job.wait(timeout=60) == -signal.SIGTERM and not (tmp_path / "requeued").exists()


def test_the_switch_takes_yes_or_no(start, tmp_path):
    job = start("recipe=debug", HFBSZ_REQUEUE="never")
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 2 and "HFBSZ_REQUEUE=never: yes or no" in out and not (tmp_path / "words").exists()
