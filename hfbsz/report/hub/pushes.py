"""Pushes a run to the Hub beside its training: in a process of its own, one push at a time, within a time limit."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hfbsz
from hfbsz.display import command, one_line
from hfbsz.report.hub.request import Outcome, Request
from hfbsz.system.command_name import command_name

LEAST_SECONDS = 120.0  # time limit of a push, to which its size adds
BYTES_PER_SECOND = 1e6
_POLL_SECONDS = 0.1
_STAGED = ".hub.tmp"  # the model to push during a run; a name that the next start removes

Show = Callable[[str, float, float], None]  # label, done, total


class Push:
    """A push in progress."""

    def __init__(self, folder: Path, model: Path, repository: str, private: bool) -> None:
        size = sum(path.stat().st_size for path in model.iterdir() if path.is_file())
        self.request = Request(folder, model, repository, private, LEAST_SECONDS + size / BYTES_PER_SECOND)
        package = str(Path(hfbsz.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hfbsz.report.hub", self.request.text()],  # -P: no code of the working folder
            env=os.environ | {"PYTHONPATH": paths, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a signal to the run is not one to the push
        )
        self._end = time.monotonic() + self.request.seconds

    def outcome(self) -> Outcome | None:
        """What came of it; None while it is in progress. After its time limit it is ended."""
        if self._process.poll() is None:
            if time.monotonic() < self._end:
                return None
            self._process.kill()
        out = self._process.communicate()[0]
        try:
            return Outcome(**json.loads(out.splitlines()[-1]))
        except (IndexError, ValueError, TypeError):
            reason = (
                f"it took longer than {self.request.seconds:.0f} s" if time.monotonic() >= self._end else "it broke off"
            )
            return Outcome(error=reason)

    def wait(self, show: Show, stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Wait for it, or until `stop` is true."""
        try:
            while (outcome := self.outcome()) is None:
                if stop():
                    return Outcome(error="the run was asked to end")
                show(f"pushing to {self.request.repository}", 0, 0)
                time.sleep(_POLL_SECONDS)
            return outcome
        finally:
            self.stop()

    def stop(self) -> None:
        """End it, if it is in progress."""
        self._process.kill()
        with suppress(ValueError):  # its output has been read already
            self._process.communicate()


class Pushes:
    """The pushes of a run in training. No fault of the Hub, nor of the disk that the model is copied to, reaches the
    run: it is a warning, told once; the next push tries again."""

    def __init__(self, folder: Path, repository: str, private: bool, warn: Callable[[str], None]) -> None:
        self._folder, self._repository, self._private, self._warn = folder, repository, private, warn
        self._push: Push | None = None
        self._told: set[str] = set()

    def is_ready(self) -> bool:
        """Whether no push is in progress."""
        if self._push is not None and (outcome := self._push.outcome()) is not None:
            self._push = None
            self._tell(outcome)
        return self._push is None

    def start(self, stage: Callable[[Path], None]) -> None:
        """Start a push of the model and card that `stage` writes to a folder; returns at once after that."""
        model = self._folder / _STAGED
        try:
            shutil.rmtree(model, ignore_errors=True)
            model.mkdir()
            stage(model)
            self._push = Push(self._folder, model, self._repository, self._private)
        except Exception as fault:
            self._tell(Outcome(error=f"{type(fault).__name__}: {fault}"))

    def finish(self, show: Show, stop: Callable[[], bool]) -> str | None:
        """Push the ended run, and wait for it; returns the address of its repository, None if it was not pushed."""
        self.stop()
        try:
            outcome = Push(self._folder, self._folder, self._repository, self._private).wait(show, stop)
        except Exception as fault:
            outcome = Outcome(error=f"{type(fault).__name__}: {fault}")
        self._tell(outcome)
        return outcome.url

    def stop(self) -> None:
        """End a push that is in progress, and remove what was copied for it."""
        if self._push is not None:
            self._push.stop()
        self._push = None
        shutil.rmtree(self._folder / _STAGED, ignore_errors=True)

    def _tell(self, outcome: Outcome) -> None:
        lines = list(outcome.notes)
        if outcome.error is not None:
            lines.append(
                f"not pushed to the Hub: {outcome.error}; nothing is lost, {push_command(self._folder)} pushes the run "
                "after its end"
            )
        for line in lines:
            if line not in self._told:
                self._warn(one_line(line))
        self._told.update(lines)


def push_command(folder: Path) -> str:
    """The command that pushes a run that has ended."""
    return f"{command_name('push')} {command(folder)}"
