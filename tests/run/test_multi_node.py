"""Two machines: network namespaces joined by a veth pair, one launcher and one CPU process in each."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from conftest import ROOT, TINY, Ended, records

PORT = 29511
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "2"]
LAUNCH += ["--config_file", str(ROOT / "accelerate_configs" / "multi_node.yaml")]

pytestmark = pytest.mark.slow


def ip(*words) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


@dataclass(frozen=True)
class Machine:
    namespace: str
    interface: str
    address: str


@pytest.fixture(scope="module")
def machines():
    """Two namespaces that reach each other and nothing else; gone at the end."""
    here = os.getpid()
    pair = [Machine(f"hfbsz-{here}-{n}", f"hfbsz{here % 10**6}{'ab'[n]}", f"10.77.0.{n + 1}") for n in (0, 1)]
    try:
        for machine in pair:
            ip("netns", "add", machine.namespace)
        first, second = pair
        ip("-n", first.namespace, "link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        ip("-n", first.namespace, "link", "set", second.interface, "netns", second.namespace)
        for machine in pair:
            ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", machine.interface)
            for link in ("lo", machine.interface):
                ip("-n", machine.namespace, "link", "set", link, "up")
    except (OSError, subprocess.SubprocessError) as problem:
        _remove(pair)
        pytest.skip(f"needs ip netns and the right to use it: {problem}")
    yield pair
    _remove(pair)


def _remove(pair) -> None:
    for machine in pair:  # the veth pair goes with its namespaces
        subprocess.run(["ip", "netns", "del", machine.namespace], capture_output=True, check=False)


@pytest.fixture
def launch(machines, environment):
    """Launch on both machines at once; `own` holds each one's further words and environment."""

    def run(*words, own=(((), {}), ((), {}))) -> list[Ended]:
        started = []
        for rank, (machine, (more, variables)) in enumerate(zip(machines, own, strict=True)):
            command = ["ip", "netns", "exec", machine.namespace, *LAUNCH, "--machine_rank", str(rank)]
            command += ["--main_process_ip", machines[0].address, "--main_process_port", str(PORT)]
            command += [str(ROOT / "scripts" / "pretrain.py"), TINY, *map(str, words), *map(str, more)]
            given = environment | {"GLOO_SOCKET_IFNAME": machine.interface} | variables
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, cwd=ROOT, env=given, **pipes))
        try:
            done = [process.communicate(timeout=240) for process in started]
        finally:
            for process in started:
                process.kill()
        return [Ended(process.returncode, *texts) for process, texts in zip(started, done, strict=True)]

    return run


@pytest.fixture(scope="module")
def one_machine(hfbsz, ragged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    ended = hfbsz("pretrain.py", TINY, *words_of(ragged, folder), processes=2)
    assert ended.code == 0, ended.err
    return folder


def words_of(ragged, folder):
    return [f"data.files={ragged}", "batch.micro_max=2", "precision=fp64", f"output_dir={folder}"]


@pytest.mark.parametrize("shared", [True, False], ids=["shared cache", "a cache each"])
def test_two_machines_train_as_one_does(launch, one_machine, ragged, tmp_path, shared):
    """float64: losses and norms of 50 steps to 1e-9; one folder, written by rank 0."""
    folder, caches = tmp_path / "run", [tmp_path / "cache-0", tmp_path / "cache-1"]
    own = tuple(((), {} if shared else {"HFBSZ_CACHE": str(cache)}) for cache in caches)
    for ended in launch(*words_of(ragged, folder), own=own):
        assert ended.code == 0, ended.err
    apart, together = records(folder, "step"), records(one_machine, "step")
    assert len(apart) == len(together) == 50
    for one, other in zip(apart, together, strict=True):
        for name in ("train/loss", "train/grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-9)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in one_machine.iterdir())
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert len(records(folder, "lifecycle")) == len(records(one_machine, "lifecycle"))
    cores = len(os.sched_getaffinity(0))
    threads = [json.loads((path / "machine.json").read_text())["threads"] for path in (folder, one_machine)]
    assert threads == [cores, max(1, cores // 2)]  # a process has its machine to itself, or shares it
    if not shared:
        rows = [sorted((path.name, path.read_bytes()) for path in cache.glob("*/*.arrow")) for cache in caches]
        assert rows[0] == rows[1] and len(rows[0]) == 2


def test_a_machine_with_other_data_is_refused_before_training(launch, ragged, tmp_path):
    """Other text on the second machine, then none: one line from rank 0, and no training."""
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(ragged.read_text().splitlines()[:200]))
    lines = {
        other: "error: data: rank 1 prepared other rows than rank 0",
        "none.txt": "error: rank 1: data.files: no file",
    }
    for number, (files, line) in enumerate(lines.items()):
        folder, started = tmp_path / f"run-{number}", time.monotonic()
        first, second = launch(*words_of(ragged, folder), own=(((), {}), ((f"data.files={files}",), {})))
        assert first.code != 0 and second.code != 0 and time.monotonic() - started < 60
        assert line in first.err and "error:" not in second.err.split("Traceback")[0]
        assert json.loads((folder / "status.json").read_text())["state"] == "failed"
        assert not (folder / "records.jsonl").exists()
