"""Runs jobs as subprocesses, a limited number at a time; finished runs are skipped, interrupted runs resume."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from hfbsz.experiment.jobs import Job
from hfbsz.records.folder import cpu_cores, has_diverged, has_finished, is_held, read_status
from hfbsz.system.yaml import as_text

_POLL_SECONDS = 0.5
_NAME_LENGTH = 128  # most characters of log.name


class Process(Protocol):
    """A process that was started: the part of `subprocess.Popen` that a launcher uses."""

    def wait(self) -> int:
        """Wait until it has ended; returns its exit code, -N if signal N ended it."""
        ...

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        ...


def start_process(words: Sequence[str], log: IO[str]) -> Process:
    """Start a command in a session of its own, with `log` as its output."""
    return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@dataclass
class Launcher:
    """Runs jobs. `on_end(job, result)` is called for every job that ends, in the thread that ran it."""

    command: Sequence[str]  # the prefix that starts a module or a script
    max_parallel: int
    on_end: Callable[[Job, str], None]
    keep_checkpoints: bool = True
    scripts: Path | None = None  # folder of the scripts to run; None: the commands of this package
    start: Callable[[Sequence[str], IO[str]], Process] = start_process
    seconds: dict[Path, float] = field(default_factory=dict)  # by folder: duration of each run that ended here
    running: dict[Path, float] = field(default_factory=dict)  # by folder: start time (monotonic) of each active run
    failures: dict[Path, str] = field(default_factory=dict)  # by folder: the reason, in one line

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._processes: dict[Path, Process] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs that are not finished; returns when all have ended, or after `stop`."""
        with ThreadPoolExecutor(self.max_parallel) as pool:
            list(pool.map(self._run_job, jobs))

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Start no further run, and ask active runs (SIGTERM) to save a checkpoint and end."""
        self._stopped.set()
        for process in list(self._processes.values()):
            with suppress(OSError):
                process.send_signal(signal.SIGTERM)

    def _run_job(self, job: Job) -> None:
        if self.stopped:
            return
        if has_finished(job.folder, job.loaded.recipe):
            return self.on_end(job, "finished earlier")
        if has_diverged(job.folder, job.loaded.recipe):
            return self.on_end(job, f"diverged earlier: to run it again, delete {job.folder}")
        started = self.running[job.folder] = time.monotonic()
        try:
            code = self._launch_or_wait(job)
        finally:
            del self.running[job.folder]
        finished = has_finished(job.folder, job.loaded.recipe)
        if self.stopped and not finished:
            return
        self.seconds[job.folder] = time.monotonic() - started
        diverged = has_diverged(job.folder, job.loaded.recipe)
        if not finished and not diverged:
            self.failures[job.folder] = failure_reason(job, code)
            return self.on_end(job, f"failed: {self.failures[job.folder]}")
        for path in [] if self.keep_checkpoints else job.folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
        self.on_end(job, f"diverged: {read_status(job.folder).get('why')}" if diverged else "finished")

    def _launch_or_wait(self, job: Job) -> int:
        """Run a job; if another process is running it, such as one left by a killed comparison, wait for that first."""
        code = 0
        while not self.stopped:
            if self._wait_for_lock(job.folder):
                code = self._launch(job) if not has_finished(job.folder, job.loaded.recipe) else 0
                if code == 0 or not is_held(job.folder):
                    break
        return code

    def _launch(self, job: Job) -> int:
        script = ["-m", "hfbsz", job.script] if self.scripts is None else [str(self.scripts / f"{job.script}.py")]
        words = [*self.command, *script, *job.command]
        if not job.loaded.recipe.log.name and (name := " ".join((*job.choices, *job.added))):
            words.append(f"log.name='{as_text(name[:_NAME_LENGTH])}'")  # what differs from the other runs
        if self.max_parallel > 1 and not any(word.startswith("threads=") for word in job.command):
            words.append(f"threads={max(1, cpu_cores() // self.max_parallel)}")
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as log:
            process = self._processes[job.folder] = self.start(words, log)
            if self.stopped:
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            del self._processes[job.folder]
        if self.stopped or code < 0:  # a launcher that was killed leaves its child process, which is still saving
            while is_held(job.folder):
                time.sleep(_POLL_SECONDS)
        return code

    def _wait_for_lock(self, folder: Path) -> bool:
        """Wait until no process holds the folder; returns False if the comparison was stopped meanwhile."""
        while is_held(folder) and not self.stopped:
            time.sleep(_POLL_SECONDS)
        return not self.stopped


def launch_command(name: str, config: Path | None = None) -> list[str]:
    """The command prefix that starts a script: `accelerate launch` (with a config file if given), or `python`."""
    if name == "python":
        return [sys.executable]
    options = [] if config is None else ["--config_file", str(config)]
    return [sys.executable, "-P", "-m", "accelerate.commands.launch", "--quiet", *options]


def failure_reason(job: Job, code: int) -> str:
    """The reason of a failed run, in one line: its last `error:` line, its status, or its exit code."""
    lines = job.log.read_text(errors="replace").splitlines()
    error = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    why = error.removeprefix("error: ") if error else read_status(job.folder).get("why")
    return f"{why or f'exit code {code}'} ({job.log})"
