import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from fork_server import CONFIGS, Forked, ForkServer

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # a core for each worker, and so one thread for what it runs: threads that wait for each other's cores take minutes
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no folder is then not looked up for many seconds
ROOT = Path(__file__).resolve().parent.parent
TINY = "recipe=tests/tiny.yaml"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """The token cache, one for all workers."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if worker else base) / "cache"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def environment(cache) -> dict[str, str]:
    """The user's environment, without what another test or a launcher may have set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "WANDB_", "OMP_"))}
    return kept | {"HFBSZ_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


@pytest.fixture(scope="session")
def ragged(tmp_path_factory) -> Path:
    """300 documents of real source text, from 3 to 400 characters, as JSON lines."""
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    path = tmp_path_factory.mktemp("corpus") / "ragged.jsonl"
    start, lines = 0, []
    for number in range(300):
        length = 3 + (number * 7919) % 398
        lines.append(json.dumps({"text": text[start : start + length]}))
        start += 250
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def fork_server(environment, tmp_path_factory):
    server = ForkServer(environment, tmp_path_factory.mktemp("forks"), ROOT)
    yield server
    server.close()


@pytest.fixture(scope="session")
def hfbsz(environment, fork_server):
    """Run a script on 1 or 2 processes, which are forked from one with its imports done; with `process` by a command of
    its own, with `launcher` by accelerate launch."""

    def run(script, *words, processes=1, config=None, process=False, launcher=False, env=None, timeout=300) -> Ended:
        path = str(script) if Path(script).is_absolute() else str(ROOT / "scripts" / script)
        words, env = [path, *map(str, words)], environment | {name: str(value) for name, value in (env or {}).items()}
        name = config or ("cpu.yaml" if processes == 1 else "cpu_2proc.yaml")
        if not launcher and not process and (name in CONFIGS or config is None):
            ranks = {"config": name, "ranks": 2} if name in CONFIGS else {}
            return Ended(*fork_server.run(words, env, timeout, **ranks))
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / name)]
        launch = [] if process else launch
        command = [sys.executable, *launch, *words]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def forked_runs(fork_server, environment, monkeypatch):
    """In this process the runs of a comparison are forked; it does not hear signals."""
    from hfbsz.experiment import compare, launch, sweep

    def start(words: Sequence[str], log: IO[str]) -> Forked:
        script, *rest = words[words.index("hfbsz") + 1 :]
        here = Path.cwd()
        return fork_server.start([f"{ROOT}/scripts/{script}.py", *rest], environment, here / log.name, here)

    for module in (compare, sweep):
        monkeypatch.setattr(module, "Launcher", partial(launch.Launcher, start=start))
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def records(folder: Path, event: str) -> list[dict]:
    lines = (Path(folder) / "records.jsonl").read_text().rpartition("\n")[0].splitlines()  # complete lines
    return [record for record in map(json.loads, lines) if record["event"] == event]
