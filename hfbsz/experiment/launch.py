"""Jobs as subprocesses, some at a time; what is finished is never repeated, what was cut off goes on."""

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

from hfbsz.experiment.jobs import Job
from hfbsz.records.folder import cpu_cores, has_diverged, has_finished, is_held, read_status

_LOOK_SECONDS = 0.5


@dataclass
class Launcher:
    """Runs jobs. `told` hears of every job's end, from the thread that ran it."""

    command: Sequence[str]  # that starts a module or a script
    at_once: int
    told: Callable[[Job, str], None]
    keeps_checkpoints: bool = True
    scripts: Path | None = None  # a folder that has them; None: the commands of this package
    seconds: dict[Path, float] = field(default_factory=dict)  # what each run that ended here took
    at_work: dict[Path, float] = field(default_factory=dict)  # when it was started (monotonic)
    failures: dict[Path, str] = field(default_factory=dict)  # why, in a line

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Run what is not finished; returns once all have ended, or after `stop`."""
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(self._one, jobs))

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Start no further run, and tell those at work to end with a checkpoint."""
        self._stopped.set()
        for process in list(self._processes.values()):
            with suppress(OSError):
                process.send_signal(signal.SIGTERM)

    def _one(self, job: Job) -> None:
        if self.stopped:
            return
        if has_finished(job.folder, job.loaded.recipe):
            return self.told(job, "finished earlier")
        if has_diverged(job.folder, job.loaded.recipe):
            return self.told(job, f"diverged earlier: to run it again, delete {job.folder}")
        started = self.at_work[job.folder] = time.monotonic()
        try:
            code = self._launched(job)
        finally:
            del self.at_work[job.folder]
        finished = has_finished(job.folder, job.loaded.recipe)
        if self.stopped and not finished:
            return
        self.seconds[job.folder] = time.monotonic() - started
        diverged = has_diverged(job.folder, job.loaded.recipe)
        if not finished and not diverged:
            self.failures[job.folder] = failure_of(job, code)
            return self.told(job, f"failed: {self.failures[job.folder]}")
        for path in [] if self.keeps_checkpoints else job.folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
        self.told(job, f"diverged: {read_status(job.folder).get('why')}" if diverged else "finished")

    def _launched(self, job: Job) -> int:
        """Run a job; one that an earlier, killed comparison left at work, or that began meanwhile, is waited for."""
        code = 0
        while not self.stopped:
            if self._let_go(job.folder):
                code = self._launch(job) if not has_finished(job.folder, job.loaded.recipe) else 0
                if code == 0 or not is_held(job.folder):
                    break
        return code

    def _launch(self, job: Job) -> int:
        script = ["-m", "hfbsz", job.script] if self.scripts is None else [str(self.scripts / f"{job.script}.py")]
        words = [*self.command, *script, *job.command]
        if self.at_once > 1 and not any(word.startswith("threads=") for word in job.command):
            words.append(f"threads={max(1, cpu_cores() // self.at_once)}")
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            self._processes[job.folder] = process
            if self.stopped:
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            del self._processes[job.folder]
        if self.stopped or code < 0:  # a launcher that was ended leaves its child to save what it has
            while is_held(job.folder):
                time.sleep(_LOOK_SECONDS)
        return code

    def _let_go(self, folder: Path) -> bool:
        """Wait until no run is at work in a folder; False where the comparison was stopped meanwhile."""
        while is_held(folder) and not self.stopped:
            time.sleep(_LOOK_SECONDS)
        return not self.stopped


def launcher(name: str, config: Path | None = None) -> list[str]:
    """The command that starts a script: `accelerate` (launch), with a config file or its own default, or `python`."""
    if name == "python":
        return [sys.executable]
    named = [] if config is None else ["--config_file", str(config)]
    return [sys.executable, "-P", "-m", "accelerate.commands.launch", "--quiet", *named]


def failure_of(job: Job, code: int) -> str:
    """What a failed run says of itself, in a line."""
    lines = job.log.read_text(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    why = said.removeprefix("error: ") if said else read_status(job.folder).get("why")
    return f"{why or f'ended with code {code}'} ({job.log})"
