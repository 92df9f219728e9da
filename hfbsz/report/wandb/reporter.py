"""Sends what a run logs to Weights & Biases, and never lets W&B stop or slow the run.

W&B lives in a thread of its own: the run puts rows on a queue, and waits, a bounded time, only at its start and end.
Whatever goes wrong is told once and ends W&B, never the run: `records.jsonl` is the truth.
"""

import json
import os
import queue
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfbsz.display import command, one_line
from hfbsz.errors import UserError
from hfbsz.records.metrics import CLOCK
from hfbsz.system.called import called
from hfbsz.system.files import read_object, write_text

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "off"]
Row = Mapping[str, float | str]
Work = Callable[["wandb.Run"], None]
AXIS = "train/num_input_tokens_seen"  # curves of different batch sizes compare only over tokens
NOT_DRAWN = (*CLOCK, "event", "time", "record")
INIT_SECONDS = 10.0  # for the server to take a new run
FINISH_SECONDS = 10.0  # to upload what is left when a run ends
SLACK_SECONDS = 10.0  # beyond its own limits, before W&B counts as hung
WAITING_ROWS = 10_000
REMEDY = "records.jsonl holds every row; to send what is missing, once the run has ended: {}"
ANSWER_SECONDS = 20  # for one question to the server
NOT_IN_AN_ID = re.compile("[^\\w.-]")  # W&B refuses a run whose id has one of :;,#?/'


@dataclass(frozen=True)
class Identity:
    """What tells a run from others in W&B; `wandb.json` keeps it, for a run may be sent later."""

    id: str
    project: str
    entity: str | None
    group: str | None
    job_type: str
    name: str

    def write(self, folder: Path) -> None:
        write_text(folder / "wandb.json", json.dumps(asdict(self), indent=1))


def id_of(name: str, tail: str) -> str:
    """A run's id: as much of the name as W&B takes, and a tail that no other has."""
    return f"{NOT_IN_AN_ID.sub('-', name)[-100:]}-{tail}"


def as_launched(identity: Identity) -> Identity:
    """The agent's, where the agent of a W&B sweep launches the run: `wandb.init` takes that over any other."""
    if not os.environ.get("WANDB_SWEEP_ID"):
        return identity
    given = {"id": "WANDB_RUN_ID", "project": "WANDB_PROJECT", "entity": "WANDB_ENTITY"}
    return replace(identity, **{field: os.environ[name] for field, name in given.items() if os.environ.get(name)})


def read_identity(folder: Path) -> Identity:
    """Raises UserError where the run has none, or none that can be read."""
    try:
        identity = Identity(**_read(folder, "wandb.json"))
    except TypeError:
        raise UserError(f"{folder}: wandb.json cannot be read: of another version of hfbsz") from None
    if not all(isinstance(value, str | None) for value in asdict(identity).values()):
        raise UserError(f"{folder}: wandb.json cannot be read: its values are no texts")
    return identity


def config_of(folder: Path) -> dict[str, Any]:
    """A run's config in W&B: recipe, plan and machine. Raises UserError where a file of them cannot be read."""
    plan, machine = _read(folder, "plan.json"), _read(folder, "machine.json")
    return {"recipe": plan.pop("recipe", {}), "plan": plan, "machine": machine}


def _read(folder: Path, name: str) -> dict[str, Any]:
    if (found := read_object(folder / name)) is None:
        reason = "not a JSON object" if (folder / name).is_file() else "no such file"
        raise UserError(f"{folder}: {name} cannot be read: {reason}")
    return found


class WandbReporter:
    """Logs a run to W&B: online where the user is logged in, else offline in `folder`/wandb; never asks a question.

    `auto` follows WANDB_MODE. `warn` is called in the caller's thread, once for each fault. A run whose id the
    server knows is resumed; offline, every start is a folder of its own with the same id. `sent` names the rows, by
    event and step, that an interrupted start has sent already: they are not sent again. `remedy` says what sends it
    once more, None: `hfbsz sync`.
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
    ) -> None:
        self._warn, self._sent, self._remedy = (
            warn,
            frozenset(sent),
            remedy or REMEDY.format(f"{called('sync')} {command(folder)}"),
        )
        self._faults: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting: queue.SimpleQueue[Row | Work | int] = queue.SimpleQueue()  # an exit code ends it
        self._opened = threading.Event()
        self._on = mode != "off" and not (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")
        if not self._on:
            return
        what = {**asdict(identity), "dir": str(folder), "config": dict(config)}
        self._thread = threading.Thread(target=self._work, args=(mode, what), name="wandb", daemon=True)
        self._thread.start()
        if not self._opened.wait(2 * INIT_SECONDS + SLACK_SECONDS):
            self._give_up("it does not start")
        self._tell()

    def log(self, flat: Row) -> None:
        """Sends one line of records.jsonl; returns at once."""
        if self._on and (flat.get("event"), flat.get("train/global_step")) not in self._sent:
            self._waiting.put(dict(flat))  # a copy, for the caller may change its own
            if self._waiting.qsize() > WAITING_ROWS:
                self._give_up(f"it leaves more than {WAITING_ROWS} rows waiting")
        self._tell()

    def use(self, work: Work) -> None:
        """Has `work` done with the open run, in W&B's thread; returns at once."""
        if self._on:
            self._waiting.put(work)

    def finish(self, exit_code: int = 0) -> bool:
        """Ends the W&B run; waits a bounded time for what is not yet written or uploaded. Gives whether all of it is
        in `folder`/wandb at least."""
        whole = False
        if self._on:
            self._waiting.put(exit_code)
            self._thread.join(FINISH_SECONDS + SLACK_SECONDS)
            if self._thread.is_alive():
                self._give_up("it does not end")
            whole, self._on = self._on, False
        self._tell()
        return whole

    def _tell(self) -> None:
        while not self._faults.empty():
            self._warn(self._faults.get())

    def _give_up(self, reason: str) -> None:
        self._switch_off(reason)
        end_service()
        self._thread.join(0.3)  # it now meets a closed connection and ends

    def _switch_off(self, reason: str) -> None:
        if self._on:
            self._on = False
            self._faults.put(f"W&B is off for the rest of the run, {reason}; {self._remedy}")

    def _work(self, mode: Mode, what: dict[str, Any]) -> None:
        """The life of the thread: opens the run, sends rows until the exit code comes, ends the run."""
        try:
            run = _open(mode, what, self._faults.put, self._remedy)
            self._opened.set()
            if run is None:
                self._on = False
                return
            rows = Rows(run)
            while not isinstance(item := self._waiting.get(), int):
                item(run) if callable(item) else rows.log(item)
            self._close(run, item)
        except Exception as fault:  # whatever fails in W&B, the run goes on
            self._switch_off(in_a_line(fault))
            tear_down()
        finally:
            self._opened.set()

    def _close(self, run: "wandb.Run", exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._faults.put(f"W&B took not every row within {FINISH_SECONDS:g} s; {self._remedy}")


def _open(mode: Mode, what: dict[str, Any], tell: Callable[[str], None], remedy: str) -> "wandb.Run | None":
    """The run, online if it can be; None where a settings file of W&B disables it."""
    import wandb

    settings = wandb.setup(quiet_settings()).settings
    asked = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    wanted = asked or settings.mode  # W&B reads the environment once a process, so its own answer may be old
    if wanted == "disabled":
        return None
    if wanted not in ("offline", "dryrun"):
        try:
            if logged_in(settings.base_url):
                return start(what, mode="online", resume="allow")
            if asked:
                tell("W&B is offline for this run, nobody is logged in (wandb login, or WANDB_API_KEY)")
        except Exception as fault:  # a server that is down, refuses or stalls, a malformed key: the run goes on
            tell(f"W&B is offline for this run, {in_a_line(fault)}; {remedy}")
            tear_down()  # or the service holds the run's id in use
    return start(what, mode="offline")


@contextmanager
def session() -> Iterator["wandb.Api"]:
    """W&B, logged in, for work outside a run: silent, and without a prompt. Its faults become a UserError."""
    import wandb

    try:
        settings = wandb.setup(quiet_settings(x_graphql_retry_max=2)).settings
        if not logged_in(settings.base_url):
            raise UserError("nobody is logged in to W&B: wandb login, or set WANDB_API_KEY")
        yield wandb.Api(timeout=ANSWER_SECONDS)
    except BaseException as fault:
        end_service()  # or it goes on sending, and keeps Python waiting
        if isinstance(fault, UserError) or not isinstance(fault, Exception):
            raise
        raise UserError(f"W&B: {in_a_line(fault)}") from None
    finally:
        tear_down()


def logged_in(server: str) -> bool:
    """Whether there is a key for the server, found as `wandb.init` finds it, without its prompt."""
    from wandb.sdk.lib import wbauth

    return wbauth.authenticate_session(host=server, source="hfbsz", prompt=False) is not None


def start(what: Mapping[str, Any], **how: Any) -> "wandb.Run":
    import wandb

    return wandb.init(**{"reinit": "create_new", "settings": quiet_settings(), **what, **how})


class Rows:
    """Logs lines of records.jsonl to an open run, each metric over its axis."""

    def __init__(self, run: "wandb.Run") -> None:
        self._run = run
        self._known: set[str] = set()

    def log(self, row: Row) -> None:
        for metric in row.keys() - self._known:
            _define(self._run, metric)
        self._known |= row.keys()
        when = {"_timestamp": row["time"]} if "time" in row else {}  # it may be sent long after it was measured
        self._run.log({**row, **when})  # without `step=`: W&B drops what goes back


def _define(run: "wandb.Run", name: str) -> None:
    """Gives a metric its axis. By name: wandb 0.31 leaves the matching of globs such as `*` to the server."""
    if name in NOT_DRAWN:
        run.define_metric(name, hidden=True)
    else:
        run.define_metric(name, step_metric=AXIS, step_sync=False, summary="min,last" if has_lowest(name) else None)


def has_lowest(name: str) -> bool:
    """Whether the summary of a run tells a metric's lowest value beside its last."""
    return name.startswith("eval/") and name.endswith("/loss")


def quiet_settings(**more: Any) -> "wandb.Settings":
    """Silent, bounded in time, and without the source code or the git diff, which may hold what is not for others."""
    import wandb

    asked: dict[str, Any] = {"silent": True, "console": "off"}
    asked |= {"disable_git": True, "disable_code": True, "save_code": False}
    asked |= {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    return wandb.Settings(**asked | more)


def end_service() -> None:
    """Kills W&B's service process, which hangs or still has rows to send: Python would wait for it at exit."""
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() == "wandb-core":
                child.kill()


def tear_down() -> None:
    """Ends W&B's service process here, for at Python's exit its faults print a traceback."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def in_a_line(fault: Exception) -> str:
    return one_line(f"{type(fault).__name__}: {fault}".splitlines()[0].removesuffix(": "))[:200]
