"""Sends what a run logs to Weights & Biases, and never lets W&B stop or slow the run.

W&B lives in a thread of its own: the run puts rows on a queue, and waits, a bounded time, only at its start and end.
Whatever goes wrong is told once and ends W&B, never the run: `records.jsonl` is the truth.
"""

import os
import queue
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfbsz.record import CLOCK

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "off"]
Row = Mapping[str, float | str]
AXIS = "train/num_input_tokens_seen"  # curves of different batch sizes compare only over tokens
NOT_DRAWN = (*CLOCK, "event", "time")
INIT_SECONDS = 10.0  # for the server to take a new run
FINISH_SECONDS = 10.0  # to upload what is left when a run ends
SLACK_SECONDS = 10.0  # beyond its own limits, before W&B counts as hung
WAITING_ROWS = 10_000


class WandbReporter:
    """Logs a run to W&B: online where the user is logged in, else offline in `folder`/wandb; never asks a question.

    `auto` follows WANDB_MODE. `warn` is called in the caller's thread, once for each fault. A `run_id` that the
    server knows is resumed; offline, every start is a folder of its own with the same id. `sent` names the rows, by
    event and step, that an interrupted start has sent already: they are not sent again.
    """

    def __init__(
        self,
        *,
        folder: Path,
        mode: Mode,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str,
        name: str,
        config: Mapping[str, Any],
        run_id: str,
        warn: Callable[[str], None],
        sent: Collection[tuple[str, int]] = (),
    ) -> None:
        self._warn, self._sent = warn, frozenset(sent)
        self._faults: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting: queue.SimpleQueue[dict[str, Any] | int] = (
            queue.SimpleQueue()
        )  # rows, and at the end the exit code
        self._opened = threading.Event()
        self._on = mode != "off" and not (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")
        if not self._on:
            return
        what: dict[str, Any] = {"dir": str(folder), "id": run_id, "name": name, "config": dict(config)}
        what |= {"project": project, "entity": entity, "group": group, "job_type": job_type}
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

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run; waits a bounded time for what is not yet written or uploaded."""
        if self._on:
            self._waiting.put(exit_code)
            self._thread.join(FINISH_SECONDS + SLACK_SECONDS)
            if self._thread.is_alive():
                self._give_up("it does not end")
            self._on = False
        self._tell()

    def _tell(self) -> None:
        while not self._faults.empty():
            self._warn(self._faults.get())

    def _give_up(self, reason: str) -> None:
        """Switches a hung W&B off, and ends its service process, which Python would wait for at exit."""
        import psutil

        self._switch_off(reason)
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name() == "wandb-core":
                    child.kill()
        self._thread.join(0.3)  # it now meets a closed connection and ends

    def _switch_off(self, reason: str) -> None:
        if self._on:
            self._on = False
            self._faults.put(f"W&B is off for the rest of the run, {reason}; records.jsonl holds every row")

    def _work(self, mode: Mode, what: dict[str, Any]) -> None:
        """The life of the thread: opens the run, sends rows until the exit code comes, ends the run."""
        try:
            run = _open(mode, what, self._faults.put)
            self._opened.set()
            if run is None:
                self._on = False
                return
            known: set[str] = set()
            while not isinstance(item := self._waiting.get(), int):
                for metric in item.keys() - known:
                    _define(run, metric)
                known |= item.keys()
                run.log(item)  # without `step=`: W&B drops what goes back
            self._close(run, item)
        except Exception as fault:  # whatever fails in W&B, the run goes on
            self._switch_off(_line(fault))
            _tear_down()
        finally:
            self._opened.set()

    def _close(self, run: "wandb.Run", exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            folder = Path(run.dir).parent
            self._faults.put(f"W&B took not every row within {FINISH_SECONDS:g} s; send the rest: wandb sync {folder}")


def _open(mode: Mode, what: dict[str, Any], tell: Callable[[str], None]) -> "wandb.Run | None":
    """The run, online if it can be; None where a settings file of W&B disables it."""
    import wandb

    settings = wandb.setup(_settings()).settings
    asked = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    wanted = asked or settings.mode  # W&B reads the environment once a process, so its own answer may be old
    if wanted == "disabled":
        return None
    if wanted not in ("offline", "dryrun"):
        try:
            if _logged_in(settings.base_url):
                return _init(what, mode="online", resume="allow")
            if asked:
                tell("W&B is offline for this run, nobody is logged in (wandb login, or WANDB_API_KEY)")
        except Exception as fault:  # a server that is down, refuses or stalls, a malformed key: the run goes on
            tell(f"W&B is offline for this run, {_line(fault)}; later: wandb sync {what['dir']}/wandb/offline-run-*")
            _tear_down()  # or the service holds the run's id in use
    return _init(what, mode="offline")


def _logged_in(server: str) -> bool:
    """Whether there is a key for the server, found as `wandb.init` finds it, without its prompt."""
    from wandb.sdk.lib import wbauth

    return wbauth.authenticate_session(host=server, source="hfbsz", prompt=False) is not None


def _init(what: dict[str, Any], **how: Any) -> "wandb.Run":
    import wandb

    return wandb.init(**what, **how, reinit="create_new", settings=_settings())


def _define(run: "wandb.Run", name: str) -> None:
    """Gives a metric its axis. By name: wandb 0.31 leaves the matching of globs such as `*` to the server."""
    if name in NOT_DRAWN:
        run.define_metric(name, hidden=True)
    else:
        is_eval_loss = name.startswith("eval/") and name.endswith("/loss")
        run.define_metric(name, step_metric=AXIS, step_sync=False, summary="min,last" if is_eval_loss else None)


def _settings() -> "wandb.Settings":
    """Silent, bounded in time, and without the source code or the git diff, which may hold what is not for others."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )


def _tear_down() -> None:
    """Ends W&B's service process here, for at Python's exit its faults print a traceback."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def _line(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}".splitlines()[0].removesuffix(": ")[:200]
