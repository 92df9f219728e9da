"""A table of runs: its columns, and the row of a run, read from its folder."""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.recipe.values import path_of
from hfbsz.records.evaluations import final_result
from hfbsz.records.folder import STATES, is_held, read_status
from hfbsz.records.noise import noise_of
from hfbsz.records.run_data import CLOCK, SECONDS, STEPS, TOKENS, RunData, is_number, read_run
from hfbsz.records.shapes import parse_plan
from hfbsz.system.yaml import read_yaml

STALE, UNKNOWN = "stale", "unknown"
ROW_STATES = (*STATES, STALE, UNKNOWN)
_FILES = ("records.jsonl", "status.json")  # either makes a folder that of a run
_NOT_RUNS = ("attempt-*", "checkpoint-*", "wandb")  # folders inside that of a run
_DEFAULT_FOLDER = re.compile(r"(.+)-[0-9a-f]{8}(-.+)?")  # runs/<recipe>-<8 hex digits>, with the suffix of a comparison


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    definition: str
    unit: str = ""  # of a number; empty: no unit
    is_text: bool = False


COLUMNS: dict[str, Column] = {
    "name": Column("folder of the run, from the folder that was searched", is_text=True),
    "state": Column(
        "running, finished, preempted, failed or diverged; stale: it says running, but no process is using the folder",
        is_text=True,
    ),
    "cause": Column("why it ended, as in status.json", is_text=True),
    "why": Column("why it ended before its budget, as a sentence", is_text=True),
    "done": Column("share of the budget that is trained, 0 to 1"),
    "recipe": Column("name of the recipe", is_text=True),
    "batch": Column("largest global batch", "sequences"),
    "first_batch": Column("first global batch", "sequences"),
    "rate": Column("peak learning rate, at the largest batch"),
    "tokens": Column("input tokens trained on, without padding", "tokens"),
    "steps": Column("optimizer steps", "steps"),
    "loss": Column(
        "validation loss of the saved model, or of the last evaluation of a run that has none", "nats/target"
    ),
    "loss_part": Column("rows of that loss: full (measured at the end) or eval (the fixed part)", is_text=True),
    "time": Column("training time, without evaluations", "s"),
    "speed": Column("tokens ÷ training time, over all devices", "tokens/s"),
    "noise": Column("newest estimate of the gradient noise scale", "sequences"),
    "noise_error": Column("its standard error", "sequences"),
    "age": Column("time since the last record or status", "s"),
    "updated": Column("when that was", "s since 1970"),
    "folder": Column("path of the run", is_text=True),
}


@dataclass(frozen=True)
class Row:
    """A run of the table."""

    values: Mapping[str, Any]  # by column; None: unknown
    planned: Mapping[str, Any]  # the recipe in its plan; empty: it has none
    notes: tuple[str, ...] = ()

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """All fields, nested as in a recipe file: those of the plan, or of recipe.yaml if the run ended before it was
        planned."""
        try:
            return self.planned or read_yaml(Path(self.values["folder"]) / "recipe.yaml")
        except UserError:
            return {}

    def value(self, name: str) -> Any:
        """The value of a column, or of the field of the recipe with this dotted name; None: unknown, or null."""
        if name in COLUMNS:
            return self.values[name]
        value: Any = self.recipe
        for part in path_of(name):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_rows(roots: Sequence[Path], note: Callable[[str], None]) -> list[Row]:
    """The rows of all runs in these folders and below, each once, ordered by name in each folder.

    `note` is called with a line for each folder that is skipped, and for problems in the files of the others.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for root in roots:
        for folder in run_folders(root, note):
            name = folder.relative_to(root).as_posix()
            found.setdefault(folder.resolve(), (folder, folder.resolve().name if name == "." else name))
    count = Counter(name for _, name in found.values())
    rows = []
    for folder, name in found.values():
        try:
            row = read_row(folder, name if count[name] == 1 else str(folder), time.time())
        except UserError as problem:
            note(f"{problem.lines[0]}: skipped")
            continue
        for line in row.notes:
            note(line)
        rows.append(row)
    return rows


def run_folders(root: Path, note: Callable[[str], None]) -> Iterator[Path]:
    """Yield the folders of runs at `root` and below, ordered by name, those behind links at the end, each once.
    Checkpoints and earlier attempts inside the folder of a run are not visited, nor are hidden folders."""
    seen: set[str] = set()
    waiting, links = [root], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        if (place := os.path.realpath(folder)) in seen:
            continue
        seen.add(place)
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
            folders = [entry for entry in inside if not entry.name.startswith(".") and entry.is_dir()]
        except OSError as problem:
            note(f"{folder}: {problem.strerror}: skipped")
            continue
        if any(entry.name in _FILES for entry in inside):
            yield folder
            folders = [entry for entry in folders if not any(fnmatch(entry.name, pattern) for pattern in _NOT_RUNS)]
        links += [folder / entry.name for entry in folders if entry.is_symlink()]
        waiting += [folder / entry.name for entry in reversed(folders) if not entry.is_symlink()]


def read_row(folder: Path, name: str, now: float) -> Row:
    """The row of the run in a folder; `now` in s since 1970. Raises UserError if it is not the folder of a run, or
    cannot be read."""
    try:
        run = _read(folder)
        if not run.records and not run.plan and run.status.get("state") not in STATES:
            raise UserError(f"{folder}: not the folder of a run")
        return Row(_values(run, folder, name, now), run.plan.get("recipe") or {}, run.notes)
    except OSError as problem:
        raise UserError(f"{problem.filename or folder}: {problem.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        # written by another version of hfbsz, or by another program
        raise UserError(f"{folder}: cannot be read: {type(problem).__name__}: {problem}") from None


def _read(folder: Path) -> RunData:
    """The run of a folder, without records if it ended before it wrote any."""
    if (folder / "records.jsonl").is_file():
        return read_run(folder)
    plan = folder / "plan.json"
    text = plan.read_text(encoding="utf-8", errors="replace") if plan.is_file() else ""
    return RunData(folder.resolve(), (), parse_plan(text) or {}, read_status(folder), "")


def _values(run: RunData, folder: Path, name: str, now: float) -> dict[str, Any]:
    status, batches = run.status, run.batches
    result, noise, updated = final_result(run), noise_of(run.records), _updated(run, folder)
    tokens, seconds = run.largest(TOKENS), run.largest(SECONDS)
    rate = (run.plan.get("learning_rate") or {}).get("largest_batch") or run.largest("train/learning_rate")
    clock, planned = run.largest(CLOCK), run.plan.get("sequences")
    default = _DEFAULT_FOLDER.fullmatch(run.folder.name)
    loss = None if result is None else _finite(result.loss)
    return {
        "name": name,
        "state": state_of(run),
        "cause": status.get("cause"),
        "why": status.get("why"),
        "done": min(1.0, clock / planned) if clock is not None and planned else None,
        "recipe": status.get("recipe") or (default[1] if default else None),
        "batch": int(max(batches)) if batches else None,
        "first_batch": int(batches[0]) if batches else None,
        "rate": _finite(rate),
        "tokens": None if tokens is None else int(tokens),
        "steps": None if (steps := run.largest(STEPS)) is None else int(steps),
        "loss": loss,
        "loss_part": None if result is None or loss is None else "full" if result.measured_at_end else "eval",
        "time": seconds,
        "speed": tokens / seconds if tokens and seconds else None,
        "noise": None if noise is None else _finite(noise.scale),
        "noise_error": None if noise is None else _finite(noise.error),
        "age": max(0.0, now - updated),
        "updated": updated,
        "folder": str(folder),
    }


def state_of(run: RunData) -> str:
    """The state in `status.json`; `stale` if that is running but no process holds the folder's lock, `unknown` if there
    is none. A lock that this user may not try counts as held."""
    state = run.status.get("state")
    if state not in STATES:
        return UNKNOWN
    lock = run.folder / ".lock"
    if state == "running" and not is_held(run.folder) and (not lock.exists() or os.access(lock, os.W_OK)):
        return STALE
    return str(state)


def _updated(run: RunData, folder: Path) -> float:
    """When the run wrote its last record or status, s since 1970; for files without times, when they changed."""
    times = [*run.values("time")[-1:], run.status.get("updated")]
    known = [value for value in times if is_number(value) and math.isfinite(value)]
    paths = [path for name in _FILES if (path := folder / name).is_file()]
    return float(max(known)) if known else max(path.stat().st_mtime for path in paths)


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) and math.isfinite(value) else None
