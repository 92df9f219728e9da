"""Sends W&B what it lacks of a run: of one that was offline, or whose rows did not all arrive.

`wandb sync` cannot do that for a run that was interrupted: each offline start is a folder that counts its rows from 0,
and rows that were trained again lie in two of them. `records.jsonl` holds every row once, and what W&B has already is
asked of W&B, row by row. A count would not do: a run that was killed online and resumed has lost rows in its middle.
"""

import math
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.errors import UserError
from hfbsz.records.folder import claim, read_status
from hfbsz.records.run_data import read_run
from hfbsz.report.wandb.reporter import (
    Identity,
    Row,
    Rows,
    config_of,
    has_lowest,
    quiet_settings,
    read_identity,
    session,
    start,
)

if TYPE_CHECKING:
    import wandb
    from wandb.apis.public import Run as ServersRun

Show = Callable[[str, float, float, str], None]  # label, done, total, state
AGAIN = "the same command goes on from there"
QUIET_SECONDS = 600.0  # without a record, after which a run on another machine counts as killed
FINISH_SECONDS = 60.0  # and 1 s for every 100 rows, for the server to take what is still on its way to it
SETTLE_SECONDS = 60.0  # for the server to show all rows that it has taken


@dataclass(frozen=True)
class Unsent:
    """A run's folder, as much of it as W&B is told."""

    folder: Path
    identity: Identity
    config: Mapping[str, Any]
    records: Sequence[Row]
    exit_code: int


def sync(folders: Sequence[Path], show: Show, tell: Callable[[str], None]) -> None:
    """Send W&B the rows that it lacks of each run, and tell how many those were.

    Raises UserError where a folder is not that of a run, or a run is at work in it, before anything is sent; and where
    nobody is logged in, the server cannot be reached, or it does not take everything.
    """
    with ExitStack() as held:
        runs: list[Unsent] = []
        errors: list[str] = []
        for folder in {folder.resolve(): folder for folder in folders}.values():
            try:
                runs.append(_read(folder, held))
            except UserError as problem:
                errors += problem.lines
        if errors:
            raise UserError(errors)
        with session() as api:
            for run in runs:
                sent = _sync(api, run, show)
                tell(f"{run.folder}: {sent:,} of {len(run.records):,} rows sent" if sent else f"{run.folder}: complete")


def _read(folder: Path, held: ExitStack) -> Unsent:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    read_run(folder)  # before the lock makes a file in what may be no run's folder
    held.callback(claim(folder, "sync it once that has ended", "its lock must be held").release)
    _refuse_at_work(folder)
    run = read_run(folder)
    if not run.records:
        raise UserError(f"{folder}: records.jsonl holds nothing yet")
    code = 0 if run.status.get("state") == "finished" else 1
    return Unsent(folder, read_identity(folder), config_of(folder), run.records, code)


def _refuse_at_work(folder: Path) -> None:
    """The lock tells of runs on this machine; not every file system carries it to others."""
    status, quiet = read_status(folder), time.time() - (folder / "records.jsonl").stat().st_mtime
    host = status.get("host")
    if status.get("state") == "running" and host != socket.gethostname() and quiet < QUIET_SECONDS:
        raise UserError(
            f"{folder}: a run on {host} wrote a record {quiet:.0f} s ago: sync it once that has ended, or, "
            f"if it was killed, {QUIET_SECONDS / 60:g} minutes after its last record"
        )


def _sync(api: "wandb.Api", run: Unsent, show: Show) -> int:
    """Send what W&B lacks of a run; gives the number of rows."""
    there = _rows_there(api, run.identity)
    missing = lacking(run.records, there)
    if missing:
        _send(run, missing, 1 + max((row["_step"] for row in there), default=-1), show)
        _see_arrive(api, run, len(there), len(missing))
    return len(missing)


def lacking(records: Sequence[Row], there: Sequence[Row]) -> list[Row]:
    """Those of the records that are not there.

    A row that was trained again has other times there: rows are told apart by event, step and state. A run that was
    resumed twice from one checkpoint has two rows that are alike in these: they are counted.
    """
    have = Counter(map(_key, there))
    missing = []
    for record in records:
        if have[_key(record)]:
            have[_key(record)] -= 1
        else:
            missing.append(record)
    return missing


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("event"), row.get("train/global_step"), row.get("state")


def _rows_there(api: "wandb.Api", identity: Identity) -> list[dict[str, Any]]:
    """All rows that W&B has of a run.

    A server shows rows some time after it has taken them, but counts them at once: until it shows as many as it
    counts, its answer is not to be trusted. Raises UserError where it never does.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while (run := _find(api, identity)) is not None:
        rows = list(run.scan_history(use_cache=False))
        if len(rows) >= run.historyLineCount:
            return rows
        if time.monotonic() > deadline:
            raise UserError(
                f"W&B counts {run.historyLineCount:,} rows of {identity.id} and shows {len(rows):,}: try again later"
            )
        time.sleep(1)
    return []


def _see_arrive(api: "wandb.Api", run: Unsent, before: int, sent: int) -> None:
    """Raises UserError where W&B does not count what it was sent: it ends a run without a fault of rows it refused."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = _find(api, run.identity)
        arrived = found.historyLineCount - before if found is not None else 0
        if arrived >= sent:
            return
        if time.monotonic() > deadline:
            raise UserError(f"{run.folder}: W&B has taken {arrived:,} of {sent:,} rows: {AGAIN}")
        time.sleep(1)


def _find(api: "wandb.Api", identity: Identity) -> "ServersRun | None":
    """The run as W&B has it now; None where it has none."""
    from wandb.apis.public import RunNotFoundError

    try:
        run = api.run("/".join(filter(None, (identity.entity, identity.project, identity.id))))
    except Exception as fault:
        if isinstance(getattr(fault, "exc", fault), RunNotFoundError):
            return None
        raise
    run.load(force=True)
    return run


def _send(run: Unsent, rows: Sequence[Row], first: int, show: Show) -> None:
    """Log rows to the run in W&B, made or resumed; they become its history from `first` on."""
    settings = quiet_settings(
        x_disable_machine_info=True,  # this machine is not the one that trained
        finish_timeout=FINISH_SECONDS + len(rows) / 100,
    )
    # a folder for the copy that W&B keeps of what it is sent: nobody needs it
    with tempfile.TemporaryDirectory(prefix="hfbsz-", ignore_cleanup_errors=True) as scratch:
        what = {**asdict(run.identity), "config": dict(run.config), "dir": scratch, "settings": settings}
        opened = start(what, mode="online", resume="allow")
        if opened.starting_step < first:
            raise UserError(f"{run.folder}: W&B has not yet sorted what it was sent last: try again in a minute")
        log, label = Rows(opened), f"sending {run.folder.name}"
        for number, row in enumerate(rows):
            log.log(row)
            show(label, number + 1, len(rows), f"{number + 1:,} of {len(rows):,} rows")
        opened.summary.update(_summary(run.records))
        show(label, len(rows), len(rows), "W&B takes the rest")
        try:
            opened.finish(run.exit_code)
        except TimeoutError:
            raise UserError(f"{run.folder}: W&B took not every row: {AGAIN}") from None


def _summary(records: Sequence[Row]) -> dict[str, Any]:
    """Of all records in their order. That which W&B makes begins anew with each resume, and follows what comes last."""
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record
    for name in filter(has_lowest, list(summary)):
        known = [float(record[name]) for record in records if name in record]
        lowest = min((value for value in known if math.isfinite(value)), default=math.nan)
        summary[name] = {"min": lowest, "last": summary[name]}
    return summary
