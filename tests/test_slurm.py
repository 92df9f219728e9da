"""scripts/slurm.sh with stand-ins for Slurm's commands: what each node is told, exit codes, and the signal."""

import os
import shutil
import signal
import subprocess
import time
from itertools import pairwise

import pytest
from conftest import ROOT

STANDINS = {
    "scontrol": "printf 'host0\\nhost1\\n'",
    "srun": 'while [ "$1" != bash ]; do shift; done\nSLURM_NODEID=1 exec "$@"',
    "accelerate": 'printf "%s\\n" "$@" > words\n[ -z "${STAY:-}" ] || { echo $$ > pid; exec sleep 60; }\nexit "$ENDS"',
    "scancel": 'echo "$@" > cancelled\nkill -TERM "$(cat pid)"',
}
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def start(tmp_path):
    """Start the script as sbatch would, in a folder of its own."""
    for name, body in STANDINS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(*words, **variables):
        given = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "host[0-1]"}
        given |= {"SLURM_NNODES": "2", "ENDS": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
        command = ["bash", str(ROOT / "scripts" / "slurm.sh"), *words]
        return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return run


def told(tmp_path):
    """What the launcher of a node was told: its options, and the script with its words."""
    words = (tmp_path / "words").read_text().splitlines()
    place = words.index("scripts/pretrain.py")
    options = dict(pairwise(words[:place]))
    return {key.removeprefix("--"): value for key, value in options.items() if key.startswith("--")}, words[place + 1 :]


def test_a_node_is_told_its_place_and_the_words_as_they_were_given(start, tmp_path):
    assert start("recipe=debug", "data.files=a b/*.txt", SLURM_GPUS_ON_NODE="8").wait(timeout=30) == 0
    options, words = told(tmp_path)
    assert words == ["recipe=debug", "data.files=a b/*.txt"]
    wanted = {"num_machines": "2", "num_processes": "16", "machine_rank": "1", "main_process_ip": "host0"}
    assert wanted.items() <= options.items() and options["main_process_port"] == "20007"
    assert (ROOT / options["config_file"]).is_file()


def test_without_gpus_a_node_runs_one_process_and_a_failure_is_the_jobs(start, tmp_path):
    job = start("recipe=debug", ENDS="3", HFBSZ_LAUNCH="accelerate_configs/fsdp2.yaml")
    assert job.wait(timeout=30) == 3
    options, _ = told(tmp_path)
    assert options["num_processes"] == "2" and options["config_file"] == "accelerate_configs/fsdp2.yaml"


def test_the_signal_before_the_end_reaches_the_step_and_the_script_waits_for_it(start, tmp_path):
    job = start("recipe=debug", STAY="yes")
    until = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=30)
    assert (tmp_path / "cancelled").read_text().split() == ["--signal=INT", "20007.0"]
    assert job.returncode == 128 + signal.SIGTERM and "SIGINT to the ranks" in out
