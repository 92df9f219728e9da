"""Logs a run to Weights & Biases without letting W&B stop or slow the run.

W&B runs in its own thread: the run puts rows on a queue and waits only at its start and end, for a bounded time. A
fault is reported once and turns W&B off, never the run; `records.jsonl` holds every row.
"""

import os
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfbsz.display import command, one_line
from hfbsz.errors import UserError
from hfbsz.records.metrics import CLOCK, LAYERS
from hfbsz.report.wandb.identity import Identity
from hfbsz.system.command_name import command_name

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "off"]
Row = Mapping[str, float | str]
Work = Callable[["wandb.Run"], None]
AXIS = "train/num_input_tokens_seen"  # curves of different batch sizes are comparable only over tokens
HIDDEN = (*CLOCK, "event", "time", "record")  # metrics without a panel
INIT_SECONDS = 10.0  # time limit for the server to create or resume a run
FINISH_SECONDS = 10.0  # time limit for the upload of remaining rows when a run ends
SLACK_SECONDS = 10.0  # beyond W&B's own time limits, before it counts as hung
WAITING_ROWS = 10_000  # longest queue before W&B counts as hung
REMEDY = "records.jsonl holds every row; to send what is missing after the run has ended: {}"
API_SECONDS = 20  # time limit for one request to the server


class WandbReporter:
    """Logs a run to W&B: online if the user is logged in, else offline in `folder`/wandb; never prompts.

    `mode`: `auto` follows WANDB_MODE. `warn` is called in the caller's thread, once for each fault. A run whose id
    exists on the server is resumed; offline, each start has its own folder with the same id. `sent`: rows, by event and
    step, that an interrupted start has already sent; they are skipped. `remedy`: ends a warning and says how to send
    the rows again; None: with `hfbsz sync`. `stop` is called in a thread of W&B, within 15 s, once someone stops the
    run in W&B's web interface.
    """

    def __init__(
        self,
        *,
        folder: Path,
        mode: Mode,
        identity: Identity,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
        sent: Collection[tuple[str, int]] = (),
        remedy: str | None = None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._warn, self._sent, self._remedy = (
            warn,
            frozenset(sent),
            remedy or REMEDY.format(f"{command_name('sync')} {command(folder)}"),
        )
        self._faults: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._queue: queue.SimpleQueue[Row | Work | int] = queue.SimpleQueue()  # an exit code ends it
        self._opened = threading.Event()
        self._broken: set[str] = set()  # parts that had a fault
        self.is_online = False
        self._on = mode != "off" and not (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")
        if not self._on:
            return
        self._identity, self._stop = identity, stop
        init = {**identity.arguments, "dir": str(folder), "config": dict(config)}
        self._thread = threading.Thread(target=self._run_thread, args=(mode, init), name="wandb", daemon=True)
        self._thread.start()
        if not self._opened.wait(2 * INIT_SECONDS + SLACK_SECONDS):
            self._abandon("it does not start")
        self._report_faults()

    def log(self, flat: Row) -> None:
        """Queue one line of records.jsonl; returns at once."""
        if self._on and (flat.get("event"), flat.get("train/global_step")) not in self._sent:
            self._queue.put(dict(flat))  # a copy, since the caller may change the row
            if self._queue.qsize() > WAITING_ROWS:
                self._abandon(f"it leaves more than {WAITING_ROWS} rows waiting")
        self._report_faults()

    @property
    def is_on(self) -> bool:
        """Whether the run is open in W&B, online or offline."""
        return self._on

    def use(self, work: Work, part: str | None = None) -> None:
        """Queue a call of `work(run)` in W&B's thread; returns at once. A fault of it turns W&B off; with `part`, such
        as `artifacts`, it ends only the calls of that part."""
        if self._on:
            self._queue.put(work if part is None else partial(self._attempt, work, part))

    def finish(self, exit_code: int = 0, more_seconds: float = 0.0) -> bool:
        """End the W&B run; waits a bounded time for rows not yet written or uploaded, and `more_seconds` for the work
        before. Returns whether all rows are at least in `folder`/wandb."""
        complete = False
        if self._on:
            self._queue.put(exit_code)
            self._thread.join(FINISH_SECONDS + SLACK_SECONDS + more_seconds)
            if self._thread.is_alive():
                self._abandon("it does not end")
            complete, self._on = self._on, False
        self._report_faults()
        return complete

    def _report_faults(self) -> None:
        while not self._faults.empty():
            self._warn(self._faults.get())

    def _abandon(self, reason: str) -> None:
        self._switch_off(reason)
        end_service()
        self._thread.join(0.3)  # its connection is closed now, so it ends

    def _switch_off(self, reason: str) -> None:
        if self._on:
            self._on = False
            self._faults.put(f"W&B is off for the rest of the run, {reason}; {self._remedy}")

    def _attempt(self, work: Work, part: str, run: "wandb.Run") -> None:
        """Call `work(run)` unless its part had a fault before. Raises the faults of a service that has ended."""
        if part in self._broken:
            return
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        try:
            work(run)
        except (ConnectionError, HandleAbandonedError, MailboxClosedError):
            raise
        except Exception as fault:
            self._broken.add(part)
            self._faults.put(f"W&B gets no more {part} of this run, {one_line_fault(fault)}; {self._remedy}")

    def _run_thread(self, mode: Mode, init: dict[str, Any]) -> None:
        """Open the run, send queued rows until an exit code comes, end the run."""
        try:
            init["settings"] = quiet_settings(stop_fn=self._stop)
            run = _open(mode, init, self._faults.put, self._remedy)
            if run is None:
                self._on = False
                return
            self.is_online = not run.offline
            self._opened.set()
            describe(run, self._identity)
            rows = Rows(run)
            while not isinstance(item := self._queue.get(), int):
                item(run) if callable(item) else rows.log(item)
            self._close(run, item)
        except Exception as fault:  # no fault of W&B may end the run
            self._switch_off(one_line_fault(fault))
            tear_down()
        finally:
            self._opened.set()

    def _close(self, run: "wandb.Run", exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            if not self._broken:  # else that is why
                self._faults.put(f"W&B did not receive all rows within {FINISH_SECONDS:g} s; {self._remedy}")


def _open(mode: Mode, init: dict[str, Any], warn: Callable[[str], None], remedy: str) -> "wandb.Run | None":
    """The run, online if possible; None if a W&B settings file disables W&B."""
    import wandb

    settings = wandb.setup(quiet_settings()).settings
    requested = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    effective = requested or settings.mode  # W&B reads the environment once per process: settings may be outdated
    if effective == "disabled":
        return None
    if effective not in ("offline", "dryrun"):
        try:
            if logged_in(settings.base_url):
                return start(init, mode="online", resume="allow")
            if requested:
                warn("W&B is offline for this run, nobody is logged in (wandb login, or WANDB_API_KEY)")
        except Exception as fault:  # server down, refusing or stalled, or an invalid key: the run continues offline
            warn(f"W&B is offline for this run, {one_line_fault(fault)}; {remedy}")
            tear_down()  # otherwise the service keeps the run's id in use
    return start(init, mode="offline")


@contextmanager
def session() -> Iterator["wandb.Api"]:
    """A logged-in W&B API for use outside a run: silent, without prompts. Its faults become a UserError."""
    import wandb

    try:
        settings = wandb.setup(quiet_settings(x_graphql_retry_max=2)).settings
        if not logged_in(settings.base_url):
            raise UserError("nobody is logged in to W&B: wandb login, or set WANDB_API_KEY")
        yield wandb.Api(timeout=API_SECONDS)
    except BaseException as fault:
        end_service()  # otherwise it continues to send, and Python waits for it at exit
        if isinstance(fault, UserError) or not isinstance(fault, Exception):
            raise
        raise UserError(f"W&B: {one_line_fault(fault)}") from None
    finally:
        tear_down()


def logged_in(server: str) -> bool:
    """Whether there is an API key for the server, looked up as `wandb.init` does but without its prompt."""
    from wandb.sdk.lib import wbauth

    return wbauth.authenticate_session(host=server, source="hfbsz", prompt=False) is not None


def start(init: Mapping[str, Any], **options: Any) -> "wandb.Run":
    """A new `wandb.Run`; `init` and `options` are arguments of `wandb.init`."""
    import wandb

    return wandb.init(**{"reinit": "create_new", **init, **options})


def describe(run: "wandb.Run", identity: Identity) -> None:
    """Add tags and notes to an open run, which keeps those that a user gave it in W&B."""
    if missing := [tag for tag in identity.tags if tag not in (run.tags or ())]:
        run.tags = (*(run.tags or ()), *missing)
    if identity.notes and not run.notes:
        run.notes = identity.notes


class Rows:
    """Logs lines of records.jsonl to an open run, and defines each metric's axis."""

    def __init__(self, run: "wandb.Run") -> None:
        self._run = run
        self._defined: set[str] = set()

    def log(self, row: Row) -> None:
        """Log one row."""
        for metric in row.keys() - self._defined:
            _define(self._run, metric)
        self._defined |= row.keys()
        timestamp = {"_timestamp": row["time"]} if "time" in row else {}  # a row may be sent long after it was measured
        self._run.log({**row, **timestamp})  # without `step=`: W&B drops rows whose step decreases


def _define(run: "wandb.Run", name: str) -> None:
    """Set a metric's axis by name, since wandb 0.31 leaves the matching of globs such as `*` to the server."""
    if name in HIDDEN or name.startswith(LAYERS):
        run.define_metric(name, hidden=True)
    else:
        run.define_metric(name, step_metric=AXIS, step_sync=False, summary="min,last" if has_lowest(name) else None)


def has_lowest(name: str) -> bool:
    """Whether a run's summary has the metric's minimum as well as its last value."""
    return name.startswith("eval/") and name.endswith("/loss")


def quiet_settings(**more: Any) -> "wandb.Settings":
    """W&B settings: silent, with time limits, and without uploading source code or git diff, which may be private.
    Without `stop_fn`, a run that is stopped in W&B does not interrupt this process."""
    import wandb

    settings: dict[str, Any] = {"silent": True, "console": "off", "stop_fn": lambda: None}
    settings |= {"disable_git": True, "disable_code": True, "save_code": False}
    settings |= {"run_tags": (), "run_notes": ""}  # instead of those of the environment; see `describe`
    settings |= {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    return wandb.Settings(**settings | more)


def end_service() -> None:
    """Kill W&B's service process, which hangs or still has rows to send: Python would wait for it at exit."""
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() == "wandb-core":
                child.kill()
    ending = threading.Thread(target=tear_down, daemon=True)  # W&B's own end would print that its service is gone
    ending.start()
    ending.join(SLACK_SECONDS)


def tear_down() -> None:
    """End W&B's service process now, since its faults at Python's exit would print a traceback."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def one_line_fault(fault: Exception) -> str:
    """The exception's type and the first line of its message, at most 200 characters."""
    return one_line(f"{type(fault).__name__}: {fault}".splitlines()[0].removesuffix(": "))[:200]
