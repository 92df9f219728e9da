"""Sends W&B the missing rows of a run that was offline, or whose rows did not all arrive.

`wandb sync` cannot do this for an interrupted run: each offline start is a folder that numbers its rows from 0, and
steps that were repeated after a resume are in two of them. `records.jsonl` holds every row once, and W&B is asked row
by row what it has. Comparing counts is not enough: a run killed online and resumed lacks rows in the middle.
"""

import math
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.errors import UserError
from hfbsz.records.folder import claim, read_status
from hfbsz.records.run_data import read_run
from hfbsz.report.wandb.artifacts import Model, inputs_of, models_of, record_inputs
from hfbsz.report.wandb.identity import Identity, config_of, read_identity, with_parents
from hfbsz.report.wandb.reporter import (
    Row,
    Rows,
    describe,
    has_lowest,
    quiet_settings,
    session,
    start,
)

if TYPE_CHECKING:
    import wandb
    from wandb.apis.public import Run as ServerRun

Show = Callable[[str, float, float, str], None]  # label, done, total, state
RETRY = "the same command sends the rest"
QUIET_SECONDS = 600.0  # a run on another machine without a new record for this long counts as killed
FINISH_SECONDS = 60.0  # plus 1 s per 100 rows and per MB of models: time limit for uploading them
_BYTES_PER_SECOND = 1e6
SETTLE_SECONDS = 60.0  # time limit for the server to show all rows that it has received


@dataclass(frozen=True)
class Unsent:
    """The data of a run's folder that W&B gets."""

    folder: Path
    identity: Identity
    config: Mapping[str, Any]
    records: Sequence[Row]
    exit_code: int
    models: Sequence[Model]


def sync(folders: Sequence[Path], show: Show, tell: Callable[[str], None]) -> None:
    """Send W&B the missing rows of each run. `show` gets the progress, `tell` one line per run with the rows sent.

    Raises UserError, before anything is sent, if a folder is not that of a run or its run is active; and if nobody is
    logged in, the server cannot be reached, or it does not receive all rows.
    """
    with ExitStack() as locks:
        runs: list[Unsent] = []
        errors: list[str] = []
        for folder in {folder.resolve(): folder for folder in folders}.values():
            try:
                runs.append(_read(folder, locks))
            except UserError as problem:
                errors += problem.lines
        if errors:
            raise UserError(errors)
        with session() as api:
            for run in runs:
                parent = run.identity.parent_model if run.identity.artifacts != "off" else None
                if parent is not None and not api.artifact_exists(parent):
                    tell(f"{run.folder}: the model that it started from, {parent}, is not in W&B: send that run first")
                    run = replace(run, identity=replace(run.identity, parent_model=None))
                rows, others = _sync(api, run, show)
                more = f", {', '.join(others)}" if others else ""
                sent = f"{rows:,} of {len(run.records):,} rows sent{more}" if rows or others else "complete"
                tell(f"{run.folder}: {sent}")


def _read(folder: Path, locks: ExitStack) -> Unsent:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    read_run(folder)  # first, since the lock creates a file, which must not happen outside a run's folder
    locks.callback(claim(folder, "sync it once that has ended", "its lock must be held").release)
    _refuse_active(folder)
    run = read_run(folder)
    if not run.records:
        raise UserError(f"{folder}: records.jsonl is empty")
    code, identity = 0 if run.status.get("state") == "finished" else 1, read_identity(folder)
    config = with_parents(config_of(folder), identity)
    return Unsent(folder, identity, config, run.records, code, models_of(run, identity))


def _refuse_active(folder: Path) -> None:
    """Raise UserError if a run on another machine seems active: not every file system shares locks between machines."""
    status, quiet = read_status(folder), time.time() - (folder / "records.jsonl").stat().st_mtime
    host = status.get("host")
    if status.get("state") == "running" and host != socket.gethostname() and quiet < QUIET_SECONDS:
        raise UserError(
            f"{folder}: a run on {host} wrote a record {quiet:.0f} s ago: sync it after the run has ended, or, "
            f"if it was killed, {QUIET_SECONDS / 60:g} minutes after its last record"
        )


def _sync(api: "wandb.Api", run: Unsent, show: Show) -> tuple[int, list[str]]:
    """Send what W&B lacks of a run; returns the number of rows sent, and the names of models and inputs."""
    present = _server_rows(api, run.identity)
    missing = missing_rows(run.records, present)
    models = [model for model in run.models if not _has(api, run.identity, model)]
    inputs = _missing_inputs(api, run)
    if missing or models or inputs:
        _send(run, missing, models, inputs, 1 + max((row["_step"] for row in present), default=-1), show)
        _wait_for_arrival(api, run, len(present), len(missing))
    return len(missing), [f"{model.name}:{model.aliases[0]}" for model in models] + inputs


def _has(api: "wandb.Api", identity: Identity, model: Model) -> bool:
    """Whether W&B has exactly this version of a run's models."""
    path = identity.within(f"{model.name}:{model.aliases[0]}")
    return bool(api.artifact_exists(path)) and api.artifact(path).digest == model.draft().digest


def _missing_inputs(api: "wandb.Api", run: Unsent) -> list[str]:
    """The names of the run's inputs that W&B has not recorded."""
    wanted = inputs_of(run.identity, run.config["plan"])
    if not wanted:
        return []
    on_server = _find(api, run.identity)
    used = on_server.used_artifacts() if on_server is not None else []
    return sorted(wanted - {artifact.name.partition(":")[0] for artifact in used})


def missing_rows(records: Sequence[Row], present: Sequence[Row]) -> list[Row]:
    """The records that are not among the rows present on the server.

    Rows are identified by event, step and state, since a step repeated after a resume has another time. A run resumed
    twice from one checkpoint has two such rows that are equal, so rows are counted.
    """
    available = Counter(map(_key, present))
    missing = []
    for record in records:
        if available[_key(record)]:
            available[_key(record)] -= 1
        else:
            missing.append(record)
    return missing


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("event"), row.get("train/global_step"), row.get("state")


def _server_rows(api: "wandb.Api", identity: Identity) -> list[dict[str, Any]]:
    """All rows that W&B has of a run.

    A server counts rows when it receives them but lists them later, so this waits until it lists as many as it counts.
    Raises UserError if it does not within SETTLE_SECONDS.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while (run := _find(api, identity)) is not None:
        rows = list(run.scan_history(use_cache=False))
        if len(rows) >= run.historyLineCount:
            return rows
        if time.monotonic() > deadline:
            raise UserError(
                f"W&B counts {run.historyLineCount:,} rows of {identity.id} but lists {len(rows):,}: try again later"
            )
        time.sleep(1)
    return []


def _wait_for_arrival(api: "wandb.Api", run: Unsent, before: int, sent: int) -> None:
    """Wait until W&B counts the rows sent; raises UserError if it does not. W&B reports no error for refused rows."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        server_run = _find(api, run.identity)
        arrived = server_run.historyLineCount - before if server_run is not None else 0
        if arrived >= sent:
            return
        if time.monotonic() > deadline:
            raise UserError(f"{run.folder}: W&B has received {arrived:,} of {sent:,} rows: {RETRY}")
        time.sleep(1)


def _find(api: "wandb.Api", identity: Identity) -> "ServerRun | None":
    """The current run on the server; None if there is none."""
    from wandb.apis.public import RunNotFoundError

    try:
        run = api.run(identity.path)
    except Exception as fault:
        if isinstance(getattr(fault, "exc", fault), RunNotFoundError):
            return None
        raise
    run.load(force=True)
    return run


def _send(
    run: Unsent, rows: Sequence[Row], models: Sequence[Model], inputs: Sequence[str], first: int, show: Show
) -> None:
    """Log rows to the W&B run, created or resumed, as its history rows from number `first`; then models and inputs."""
    size = sum(model.size for model in models)
    seconds = FINISH_SECONDS + len(rows) / 100 + size / _BYTES_PER_SECOND
    # this may not be the machine that trained
    settings = quiet_settings(x_disable_machine_info=True, finish_timeout=seconds)
    # W&B writes a local copy of what is sent, which is not needed
    with tempfile.TemporaryDirectory(prefix="hfbsz-", ignore_cleanup_errors=True) as scratch:
        init = {**run.identity.arguments, "config": dict(run.config), "dir": scratch, "settings": settings}
        wandb_run = start(init, mode="online", resume="allow")
        describe(wandb_run, run.identity)
        if wandb_run.starting_step < first:
            raise UserError(f"{run.folder}: W&B is still processing rows sent earlier: try again in a minute")
        log, label = Rows(wandb_run), f"sending {run.folder.name}"
        for number, row in enumerate(rows):
            log.log(row)
            show(label, number + 1, len(rows), f"{number + 1:,} of {len(rows):,} rows")
        wandb_run.summary.update(_summary(run.records))
        show(label, len(rows), len(rows), "uploading to W&B")
        sent = [wandb_run.log_artifact(model.draft(), aliases=list(model.aliases)) for model in models]
        for artifact in sent:
            artifact.wait(math.ceil(seconds))
        record_inputs(wandb_run, run.identity, run.config["plan"], inputs)
        try:
            wandb_run.finish(run.exit_code)
        except TimeoutError:
            raise UserError(f"{run.folder}: W&B did not receive everything in time: {RETRY}") from None


def _summary(records: Sequence[Row]) -> dict[str, Any]:
    """The summary over all records in order. W&B's own restarts at each resume and depends on the order of arrival."""
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record
    for name in filter(has_lowest, list(summary)):
        values = [float(record[name]) for record in records if name in record]
        lowest = min((value for value in values if math.isfinite(value)), default=math.nan)
        summary[name] = {"min": lowest, "last": summary[name]}
    return summary
