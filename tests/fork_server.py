"""Runs scripts in forks of a process that has done their imports: a short run takes a second where it took seven.

A fork has arguments, environment, working directory and output files of its own, and ends as Python ends. What the
imports read from the environment is that of the server.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NEVER = ("wandb", "__m")  # W&B reads the environment when it is imported
IMPORTS = (
    "hfbsz.run.cli",
    "hfbsz.run.session",
    "hfbsz.report.page.page",
    "hfbsz.experiment.compare",
    "datasets",
    "peft",
)


class ForkServer:
    """Starts with the first script."""

    def __init__(self, environment: Mapping[str, str], folder: Path, cwd: Path) -> None:
        self._environment, self._folder, self._cwd = dict(environment), folder, cwd
        self._process: subprocess.Popen[str] | None = None

    def run(self, words: Sequence[str], env: Mapping[str, str], timeout: float) -> tuple[int, str, str]:
        """Exit code, output and errors of a script with its arguments; raises TimeoutExpired."""
        if self._process is None:
            command = [sys.executable, __file__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(command, env=self._environment, cwd=self._cwd, text=True, **pipes)
        out, err = self._folder / "out", self._folder / "err"
        job = {"words": list(words), "env": dict(env), "timeout": int(timeout)}
        job |= {name: str(self._folder / name) for name in ("out", "err", "modules")}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(words, timeout, out.read_text(), err.read_text())
        return code, out.read_text(errors="replace"), err.read_text(errors="replace")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def serve() -> None:
    load(IMPORTS)
    for line in sys.stdin:
        job = json.loads(line)
        if (child := os.fork()) == 0:
            become(job)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError, ValueError):
            load(json.loads(Path(job["modules"]).read_text()))  # so that the next fork need not
        print(os.waitstatus_to_exitcode(status), flush=True)


def load(names: Sequence[str]) -> None:
    for name in names:
        if name not in sys.modules and not name.startswith(NEVER):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def become(job: Mapping[str, object]) -> None:
    """Be the script that a job names."""
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, job["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    signal.alarm(job["timeout"])
    os.environ.clear()
    os.environ.update(job["env"])
    if "CRASH_AT" in os.environ:
        from crashing import crash_at

        at, folder, log = (os.environ[f"CRASH_{name}"] for name in ("AT", "IN", "LOG"))
        crash_at(int(at), Path(folder), os.environ["CRASH_POWER"] == "1", Path(log))
    sys.argv = job["words"]
    sys.path[0] = str(Path(job["words"][0]).parent)
    atexit.register(lambda: Path(job["modules"]).write_text(json.dumps(list(sys.modules))))
    runpy.run_path(job["words"][0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
