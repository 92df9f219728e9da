"""Runs scripts in forks of a process that has done their imports: a short run takes a second where it took seven.

A fork has arguments, environment, working directory and output files of its own, and ends as Python ends. What the
imports read from the environment is that of the server.
"""

import atexit
import contextlib
import gc
import importlib
import io
import itertools
import json
import math
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

NEVER = ("wandb", "trackio", "__m")  # they read the environment when they are imported
IMPORTS = (
    "hfbsz.run.cli",
    "hfbsz.run.session",
    "hfbsz.report.page.page",
    "hfbsz.experiment.compare",
    "datasets",
    "peft",
)


# what `accelerate launch` adds to the environment of a rank, without what differs from rank to rank or run to run
LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
}
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
CONFIGS = {"cpu_2proc.yaml": LAUNCHED, "fsdp2_cpu_2proc.yaml": LAUNCHED | FSDP2}  # in accelerate_configs/


PATIENCE = 3.0  # seconds that the other ranks have to end after the first that failed


def rank_variables(rank: int, ranks: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {name: str(number) for name, number in numbers.items()}


def environments_of(env: Mapping[str, str], config: str | None, ranks: int) -> list[dict[str, str]]:
    """The environment of each rank."""
    if config is None:
        return [dict(env)]
    common = CONFIGS[config] | {"MASTER_PORT": str(free_port())}
    return [dict(env) | common | rank_variables(rank, ranks) for rank in range(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Forked:
    """A script at work in a fork: the part of subprocess.Popen that tests use."""

    def __init__(self, server: "ForkServer", pid: int, err: Path) -> None:
        self._server, self.pid, self._err, self.returncode = server, pid, err, None

    @property
    def stderr(self) -> io.StringIO:
        """What it has written to its standard error so far."""
        return io.StringIO(self._err.read_text(errors="replace"))

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout, None, self._err.read_text())
            time.sleep(0.02)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[None, str]:
        self.wait(timeout)
        return None, self._err.read_text(errors="replace")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts with the first script."""

    def __init__(self, environment: Mapping[str, str], folder: Path, cwd: Path) -> None:
        self._environment, self._folder, self._cwd = dict(environment), folder, cwd
        self._process: subprocess.Popen[str] | None = None
        self._number, self._lock = itertools.count(), threading.Lock()

    def ask(self, job: Mapping[str, object]) -> int | None:
        with self._lock:
            return self._ask(job)

    def _ask(self, job: Mapping[str, object]) -> int | None:
        if self._process is None:
            command = [sys.executable, __file__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(command, env=self._environment, cwd=self._cwd, text=True, **pipes)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(
        self, words: Sequence[str], env: Mapping[str, str], timeout: float, config: str | None = None, ranks: int = 1
    ) -> tuple[int, str, str]:
        """Exit code, output and errors of a script with its arguments; raises TimeoutExpired. With a configuration of
        CONFIGS, of `ranks` processes that find what its launcher would have told them; the first that fails ends the
        others, and its code is 1, as with the launcher."""
        out, err = self._folder / "out", self._folder / "err"
        for path in (out, err):
            path.write_text("")
        envs = environments_of(env, config, ranks)
        code = self.ask({"words": list(words), "envs": envs, "timeout": int(timeout), **self._paths(out, err)})
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(words, timeout, out.read_text(), err.read_text())
        code = int(code != 0) if config is not None else code
        return code, out.read_text(errors="replace"), err.read_text(errors="replace")

    def start(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        out: Path | None = None,
        cwd: Path | None = None,
        config: str | None = None,
        patience: float = PATIENCE,
    ) -> Forked:
        """A script, left at work; `out`: the file of its output and errors. With a configuration of CONFIGS, two
        ranks, children of the process that is returned; `patience`: seconds from the first failure to the end."""
        err = out or self._folder / f"err-{next(self._number)}"
        err.touch()
        envs = environments_of(env, config, 1 if config is None else 2)
        job = {
            "words": list(words),
            "envs": envs,
            "timeout": 0,
            "start": True,
            "cwd": cwd and str(cwd),
            "patience": patience,
        }
        return Forked(self, self.ask(job | {"cwd": cwd and str(cwd)} | self._paths(out or Path(os.devnull), err)), err)

    def _paths(self, out: Path, err: Path) -> dict[str, str]:
        return {"out": str(out), "err": str(err), "modules": str(self._folder / "modules")}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def serve() -> None:
    load(IMPORTS)
    with contextlib.suppress(ImportError):  # what every first model that is saved computes in Transformers
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.freeze()  # what is shared with the forks stays shared
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(poll(job["poll"]) if "poll" in job else fork(job)), flush=True)


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def fork(job: Mapping[str, object]) -> int:
    """Fork the ranks of a job: the exit code of the first that fails, or 0; of a job to `start`, its process, which is
    the parent of its ranks if there are several."""
    if job.get("start") and len(job["envs"]) > 1:
        if (supervisor := os.fork()) == 0:
            os._exit(int(fork(job | {"start": False}) != 0))
        return supervisor
    children = []
    for env in job["envs"]:
        if (child := os.fork()) == 0:
            become(job, env)
        children.append(child)
    if job.get("start"):
        return children[0]
    code, left, failed = 0, set(children), math.inf
    while left:
        for child in [*left]:
            if (ended := poll(child)) is not None:
                left.discard(child)
                code, failed = code or ended, min(failed, time.monotonic()) if ended else failed
        if time.monotonic() > failed + job.get("patience", PATIENCE):
            for child in left:
                os.kill(child, signal.SIGTERM)
            failed = math.inf
        time.sleep(0.005)
    with contextlib.suppress(OSError, ValueError):
        load(json.loads(Path(job["modules"]).read_text()))  # so that the next fork need not
    return code


def load(names: Sequence[str]) -> None:
    for name in names:
        if name not in sys.modules and not name.startswith(NEVER):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def become(job: Mapping[str, object], env: Mapping[str, str]) -> None:
    """Be the script that a job names, in the environment `env`."""
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, job["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    signal.alarm(job["timeout"])
    os.chdir(job.get("cwd") or os.getcwd())
    os.environ.clear()
    os.environ.update(env)
    if "CRASH_AT" in os.environ:
        from crashing import crash_at

        at, folder, log = (os.environ[f"CRASH_{name}"] for name in ("AT", "IN", "LOG"))
        crash_at(int(at), Path(folder), os.environ["CRASH_POWER"] == "1", Path(log))
    sys.argv = job["words"]
    sys.path[0] = str(Path(job["words"][0]).parent)
    atexit.register(lambda: Path(job["modules"]).write_text(json.dumps(list(sys.modules))))
    code: object = 0
    try:
        runpy.run_path(job["words"][0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    end(code)


def end(code: object) -> NoReturn:
    """End as Python does, but for the objects of thousands of modules, which take seconds to destroy one by one."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(int(code or 0) & 0xFF)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
