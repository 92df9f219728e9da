"""The folder of a run: locked by one process at a time, used by one recipe only, with a status for scripts."""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import StrEnum, auto
from pathlib import Path
from types import UnionType
from typing import Any

from filelock import FileLock, Timeout

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Recipe, differences
from hfbsz.recipe.load import LoadedRecipe, from_mapping
from hfbsz.system.disk import clear_leftovers, sha256
from hfbsz.system.files import read_object, write_text
from hfbsz.system.yaml import read_yaml, write_yaml


class Cause(StrEnum):
    """Why a run ended, for programs; the field `why` beside it is a sentence for people."""

    BUDGET = auto()  # trained to the end of its duration
    PATIENCE = auto()  # eval.patience: no better evaluation for so long
    TARGET = auto()  # eval.target: a validation loss this low
    SIGNAL = auto()  # a signal, or an interrupt from the keyboard
    STOPPED = auto()  # stopped in W&B
    DIVERGED = auto()  # weights, gradients or the last evaluation are not finite
    REFUSED = auto()  # a recipe, data or environment that cannot be used
    TRAINING = auto()  # training cannot continue, such as a step without targets
    RANK = auto()  # one rank failed or was lost
    DISK_FULL = auto()
    MEMORY = auto()  # out of memory, of the device or the host
    SYSTEM = auto()  # another error of the operating system
    EXCEPTION = auto()  # any other exception


_INTERRUPTION = ".interruption.tmp"  # a file in which other ranks tell rank 0 of a signal; its name marks a leftover
SWEEP_FIELDS = (  # that a sweep sets itself
    "schedule.shape",
    "batch.ramp",
    "batch.start",
    "eval.target",
    "eval.patience",
    "branch",
    "checkpoint.save",
)
SWEEP_FILE = "sweep.json"  # beside the tables of a sweep: what was swept
STATES = ("running", "finished", "preempted", "failed", "diverged")
_TYPES: dict[str, type[Any] | UnionType] = {
    **dict.fromkeys(("state", "recipe", "host"), str),
    **dict.fromkeys(("cause", "why"), str | None),
    **dict.fromkeys(("step", "clock", "of", "pid", "exceeded"), int),
    **dict.fromkeys(("started", "updated"), int | float),
    **dict.fromkeys(("reached", "saved"), dict),
}


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def path_of(loaded: LoadedRecipe) -> Path:
    """The folder of the run of a recipe."""
    return Path(loaded.recipe.output_dir or f"runs/{loaded.name}-{loaded.recipe.digest()}")


def announce_interruption(folder: Path, why: str) -> None:
    """On a rank other than 0: leave word that a signal ended it, for rank 0, which then finds a connection closed."""
    with suppress(OSError):
        (folder / _INTERRUPTION).write_text(why)


def read_status(folder: Path) -> dict[str, Any]:
    """The contents of `status.json`, without values of wrong types; empty if it is missing or cannot be read."""
    status = read_object(folder / "status.json") or {}
    return {name: value for name, value in status.items() if isinstance(value, _TYPES.get(name, object))}


def claim(folder: Path, if_busy: str, if_unwritable: str) -> FileLock:
    """Create the folder of a run if it is missing, and lock it; returns the lock.

    Raises UserError if another run is using the folder (ending with `if_busy`), and if it is not writable (ending with
    `if_unwritable`).
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = read_status(folder)
        who = f" (process {holder['pid']} on {holder['host']})" if {"pid", "host"} <= holder.keys() else ""
        raise UserError(f"{folder}: another run is at work in this folder{who}: {if_busy}") from None
    except OSError as problem:
        raise UserError(f"{folder}: cannot be written: {problem.strerror}: {if_unwritable}") from None
    return lock


def is_held(folder: Path) -> bool:
    """Whether a run is using a folder."""
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
    """Whether a folder contains a finished run of this recipe and duration."""
    return _ended_as("finished", folder, recipe)


def has_diverged(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder contains a run of this recipe and duration that diverged."""
    return _ended_as("diverged", folder, recipe)


def _ended_as(state: str, folder: Path, recipe: Recipe) -> bool:
    if read_status(folder).get("state") != state:
        return False
    earlier = recipe_of(folder)
    return earlier is not None and earlier.digest() == recipe.digest() and earlier.duration == recipe.duration


def recipe_of(folder: Path) -> Recipe | None:
    """The recipe of the run in a folder; None if it is missing or cannot be read."""
    try:
        return from_mapping(data) if (data := read_yaml(folder / "recipe.yaml")) else None
    except UserError:
        return None


class RunFolder:
    """The folder of a run, locked by rank 0. `finished`: it contains this run, complete, with its saved model."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        self.path, self._recipe = path_of(loaded), loaded.name
        self._lock = claim(self.path, "wait, or choose output_dir=…", "choose output_dir=…")
        self._started = time.time()
        self.notes: list[str] = []
        self._before = read_status(self.path)  # the status of an earlier start
        self.micro_batch: int | None = None  # of this start, in sequences, once it is planned
        # the micro-batch at which an earlier start ran out of memory, in sequences
        self.exceeded: int | None = self._before.get("exceeded")
        try:
            self.finished = self._inspect(loaded)
        except UserError:
            self.release()
            raise

    def _inspect(self, loaded: LoadedRecipe) -> bool:
        """Whether the folder contains this run, finished, with an undamaged model. Raises UserError if it contains
        something else."""
        clear_leftovers(self.path)
        if not self._contents():
            return False
        earlier = recipe_of(self.path)
        if earlier is None and not (self._trained() or self._checkpoints() or (self.path / "recipe.yaml").exists()):
            raise UserError(f"{self.path}: not empty, and not the folder of a run: choose another output_dir")
        if earlier is not None and self._trained() and earlier.digest() != loaded.recipe.digest():
            changed = "; ".join(differences(earlier, loaded.recipe)[:4])
            raise UserError(f"{self.path}: holds a run of another recipe ({changed}): choose another output_dir")
        return has_finished(self.path, loaded.recipe) and self._holds_its_model(loaded.recipe)

    def _holds_its_model(self, recipe: Recipe) -> bool:
        """Whether the saved files of a finished run are unchanged; if not, they are restored from a checkpoint. Raises
        UserError if there is no checkpoint."""
        saved = self._before.get("saved", {})
        lost = next((name for name, checksum in saved.items() if not self._is_unchanged(name, checksum)), None)
        if lost is None:
            return True
        if not self._checkpoints() and recipe.resume != "never":
            raise UserError(
                f"{self.path}: {lost} of the finished run is damaged or gone, and no checkpoint is left to restore it "
                "from: delete the folder to train it again"
            )
        self.notes.append(f"{lost} of the finished run is damaged or gone: restored from the newest checkpoint")
        self._before = {}
        return False

    def _is_unchanged(self, name: str, checksum: object) -> bool:
        """Whether a saved file still has its SHA-256 `checksum`."""
        try:
            return sha256(self.path / name) == checksum
        except OSError:
            return False

    def _contents(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != ".lock" and not path.name.startswith("attempt-")]

    def _checkpoints(self) -> list[Path]:
        return list(self.path.glob("checkpoint-*"))

    def _trained(self) -> bool:
        return (
            self.path / "records.jsonl"
        ).is_file()  # a start that failed before it wrote records has nothing to lose

    def begin(self, loaded: LoadedRecipe, from_scratch: bool) -> None:
        """Write the recipe. With `from_scratch` the files of an earlier attempt are moved to `attempt-N/`."""
        if from_scratch and self._trained():
            taken = [path.name.removeprefix("attempt-") for path in self.path.glob("attempt-*")]
            numbers = [int(number) for number in taken if number.isdecimal()]
            attempt = self.path / f"attempt-{max(numbers, default=0) + 1}"
            attempt.mkdir()
            for path in self._contents():
                if path != attempt:
                    path.rename(attempt / path.name)
            self._before = {}
        if loaded.recipe.resume == "never" or loaded.recipe.batch.micro_max != "auto":
            self.exceeded = None
        write_yaml(loaded.recipe.to_dict(), self.path / "recipe.yaml")

    def status(self, state: str, cause: Cause | None = None, why: str | None = None, **values: Any) -> None:
        """Write `status.json` with the contents of `body`."""
        self.write(self.body(state, cause, why, **values))

    def body(self, state: str, cause: Cause | None = None, why: str | None = None, **values: Any) -> dict[str, Any]:
        """The contents of `status.json`. `cause`: None while the run trains; `why`: a sentence if the run ended before
        its budget."""
        if state not in STATES:
            raise ValueError(state)
        return {
            "state": state,
            "recipe": self._recipe,
            "cause": cause,
            "why": why,
            **({"exceeded": self.exceeded} if self.exceeded else {}),
            **values,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": time.time(),
        }

    def write(self, body: Mapping[str, Any]) -> None:
        """Write `body` to `status.json`."""
        write_text(self.path / "status.json", json.dumps(body, indent=1))

    def saved(self, names: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of files of the saved model, by name."""
        return {name: sha256(self.path / name) for name in sorted(names)}

    def fail(self, cause: Cause, why: str, trained: bool, state: str = "failed") -> None:
        """Write that the run failed; a start that failed before it trained keeps the status of a completed one."""
        if not trained and self._before.get("state") in ("finished", "preempted"):
            self.write(self._before)
        else:
            if cause is Cause.MEMORY and self.micro_batch:
                self.exceeded = self.micro_batch
            self.status(state, cause, why)

    def interrupt(self, why: str, cause: Cause = Cause.SIGNAL) -> None:
        """Write that a signal, or a stop in W&B, ended the run before it trained; the progress of an earlier start is
        retained."""
        progress = {name: self._before[name] for name in ("step", "clock", "of", "reached") if name in self._before}
        self.status("preempted", cause, why, **progress)

    def interruption_elsewhere(self) -> str | None:
        """Why a signal ended another rank, if one did."""
        try:
            return (self.path / _INTERRUPTION).read_text() or None
        except (OSError, UnicodeDecodeError):
            return None

    def release(self) -> None:
        """Unlock the folder."""
        with suppress(OSError):
            (self.path / _INTERRUPTION).unlink(missing_ok=True)
        self._lock.release()
