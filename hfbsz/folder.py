"""A run's folder: claimed by one process at a time, never shared by two recipes, with a status that scripts read."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hfbsz.errors import UserError
from hfbsz.loading import Loaded, from_mapping, read_yaml, write_yaml
from hfbsz.recipe import Recipe

STATES = ("running", "finished", "preempted", "failed")
_MAY_CHANGE = ("output_dir", "threads", "batch.micro_max", "batch.micro_tokens", "resume")  # when a run goes on


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def path_of(loaded: Loaded) -> Path:
    """Where a recipe's run lies."""
    return Path(loaded.recipe.output_dir or f"runs/{loaded.name}-{loaded.recipe.digest()}")


def read_status(folder: Path) -> dict[str, Any]:
    """What `status.json` says; empty where there is none that can be read."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def claim(folder: Path, if_busy: str, if_unwritable: str) -> FileLock:
    """Make a run's folder, where it is missing, and hold it until the lock is released.

    Raises UserError where a run is at work in it, and where it cannot be written; both say what to do then.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = read_status(folder)
        who = f" (process {holder['pid']} on {holder['host']})" if "pid" in holder else ""
        raise UserError(f"{folder}: another run is at work in this folder{who}: {if_busy}") from None
    except OSError as problem:
        raise UserError(f"{folder}: cannot be written: {problem.strerror}: {if_unwritable}") from None
    return lock


def is_held(folder: Path) -> bool:
    """Whether a run is at work in a folder."""
    if not (folder / ".lock").is_file():
        return False
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def has_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder holds this very run, at its end; one of another duration goes on, or starts over."""
    if read_status(folder).get("state") != "finished":
        return False
    try:
        there = from_mapping(read_yaml(folder / "recipe.yaml"))
    except UserError:
        return False
    return there.digest() == recipe.digest() and there.duration == recipe.duration


class RunFolder:
    """The folder of a run while rank 0 holds it: `finished`, or to be begun."""

    def __init__(self, loaded: Loaded) -> None:
        self.path = path_of(loaded)
        self._lock = claim(self.path, "wait, or choose output_dir=…", "choose output_dir=…")
        self._started = time.time()
        self._before = read_status(self.path)  # what an earlier start had come to
        try:
            self.finished = self._inspect(loaded)
        except UserError:
            self.release()
            raise

    def _inspect(self, loaded: Loaded) -> bool:
        """Whether the folder holds this very run, finished; raises UserError where it holds something else."""
        if not self._there():
            return False
        if not (self.path / "recipe.yaml").is_file():
            raise UserError(f"{self.path}: not empty, and not the folder of a run: choose another output_dir")
        earlier = from_mapping(read_yaml(self.path / "recipe.yaml"))
        if self._trained() and earlier.digest() != loaded.recipe.digest():
            changed = _difference(earlier.to_dict(), loaded.recipe.to_dict())
            raise UserError(f"{self.path}: holds a run of another recipe ({changed}): choose another output_dir")
        return has_finished(self.path, loaded.recipe)

    def _there(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != ".lock" and not path.name.startswith("attempt-")]

    def _trained(self) -> bool:
        return (self.path / "records.jsonl").is_file()  # a start that failed before that holds nothing to lose

    def begin(self, loaded: Loaded, anew: bool) -> None:
        """Write the recipe; where the run begins `anew`, what an earlier attempt trained moves to `attempt-N/`."""
        if anew and self._trained():
            numbers = [int(path.name.removeprefix("attempt-")) for path in self.path.glob("attempt-*")]
            attempt = self.path / f"attempt-{max(numbers, default=0) + 1}"
            attempt.mkdir()
            for path in self._there():
                if path != attempt:
                    path.rename(attempt / path.name)
            self._before = {}
        write_yaml(loaded.recipe.to_dict(), self.path / "recipe.yaml")

    def status(self, state: str, why: str | None = None, **values: Any) -> None:
        """Write `status.json` whole or not at all; `why` says how a run ended that did not finish."""
        if state not in STATES:
            raise ValueError(state)
        body = {
            "state": state,
            "why": why,
            **values,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": time.time(),
        }
        write_text(self.path / "status.json", json.dumps(body, indent=1))

    def fail(self, why: str, trained: bool) -> None:
        """Write that the run has failed; a start that was refused before it trained leaves what there was."""
        if not trained and self._before.get("state") in ("finished", "preempted"):
            write_text(self.path / "status.json", json.dumps(self._before, indent=1))
        else:
            self.status("failed", why=why)

    def interrupt(self, why: str) -> None:
        """Write that a signal ended the run before it trained; how far an earlier start had come stays."""
        kept = {name: self._before[name] for name in ("step", "clock", "of", "reached") if name in self._before}
        self.status("preempted", why=why, **kept)

    def release(self) -> None:
        self._lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """The fields in which two recipes differ, the first few of them."""
    changed = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if key not in ("log", "eval", "checkpoint"):
                changed += [part for part in [_difference(before, after, f"{prefix}{key}.")] if part]
        elif before != after and prefix + key not in _MAY_CHANGE:
            changed.append(f"{prefix}{key}: {before} there, {after} here")
    return "; ".join(changed[:4])
