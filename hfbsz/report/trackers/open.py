"""Opens the trackers of a run that its recipe asks for, and writes runs that have ended to them later."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfbsz.display import command
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Log
from hfbsz.records.folder import claim
from hfbsz.records.jsonl import from_json
from hfbsz.records.run_data import read_run
from hfbsz.report.trackers.tensorboard import TensorBoardStore
from hfbsz.report.trackers.tracker import Row, Store, ThreadedTracker, Tracker, reason_of
from hfbsz.report.trackers.trackio import TrackioStore
from hfbsz.report.wandb.identity import Identity, config_of, read_identity
from hfbsz.system.command_name import command_name
from hfbsz.system.extras import require

NAMES = {"trackio": "Trackio", "tensorboard": "TensorBoard"}
FOLDER = "tensorboard"  # in a run's folder: its event files
_REMEDY = "records.jsonl holds every row; to write the missing rows after the run has ended: {}"


def open_trackers(folder: Path, log: Log, identity: Identity, warn: Callable[[str], None]) -> list[Tracker]:
    """The trackers of a recipe besides W&B, opened; records.jsonl holds the records of earlier starts, if any."""
    trackers: list[Tracker] = []
    for name, title in NAMES.items():
        if getattr(log, name):
            remedy = _REMEDY.format(f"{command_name('sync')} {command(folder, f'to={name}')}")
            opener = _opener(name, folder, identity, _rows(folder))
            trackers.append(ThreadedTracker(title, opener, warn, remedy))
    return trackers


def send(folder: Path, name: str) -> int:
    """Write the records of a run that has ended to Trackio or TensorBoard (`name`), unless they are there; returns
    their number. Raises UserError for a folder that is not a run, one at work, and for faults of the tracker."""
    require(f"to={name}", name, name)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    read_run(folder)  # first, since the lock creates a file
    identity, lock = read_identity(folder), claim(folder, "sync it once that has ended", "its lock must be held")
    try:
        rows = _rows(folder)
        _opener(name, folder, identity, rows)().close()
    except Exception as fault:  # of a package
        raise UserError(f"{folder}: {NAMES[name]}: {reason_of(fault)}") from None
    finally:
        lock.release()
    return len(rows)


def _opener(name: str, folder: Path, identity: Identity, earlier: Sequence[Row]) -> Callable[[], Store]:
    if name == "tensorboard":
        return lambda: TensorBoardStore(folder / FOLDER, earlier)
    run = f"{identity.name}-{identity.id[-6:]}"  # Trackio tells runs apart by their names
    config: Mapping[str, Any] = config_of(folder)
    return lambda: TrackioStore(identity.project, run, identity.group, config, earlier)


def _rows(folder: Path) -> list[Row]:
    """The records of a run as they were logged; empty if there are none."""
    path = folder / "records.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows: list[Row] = []
    for line in lines:
        try:
            rows.append({name: from_json(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError, RecursionError):
            continue  # a line that a crash left incomplete
    return rows
