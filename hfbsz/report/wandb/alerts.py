"""Alerts of a run in W&B, which it sends on by e-mail or Slack: each kind at most once in a start of the run."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from hfbsz.records.noise import FAR, noise_of
from hfbsz.records.overfitting import ONSET
from hfbsz.records.record import Reading

WAIT_SECONDS = 600  # in which W&B sends no second alert of the same title, such as that of a run that starts again
Use = Callable[[Callable[[Any], None], str], None]  # queues work on a `wandb.Run`, under the name of its part
_ENDS = {  # state of a run that has ended: title, level
    "diverged": ("Run diverged", "ERROR"),
    "failed": ("Run failed", "ERROR"),
    "preempted": ("Run preempted", "WARN"),
}


class Alerts:
    """Looks for what a user wants to be told of, in the readings of a run and in how it ends."""

    def __init__(self, kinds: Collection[str], name: str, use: Use) -> None:
        """`kinds`: those of log.alerts; `name`: of the run, for the texts; `use`: where alerts are sent."""
        self._kinds, self._name, self._use = set(kinds), name, use

    def read(self, reading: Reading) -> None:
        """Look at a reading that was recorded."""
        where = f"step {reading.at.step:,}"
        if "overfitting" in self._kinds and ONSET in reading.values:
            onset = int(float(reading.values[ONSET]))
            text = f"since step {onset:,} validation loss rises while the loss on training rows falls ({where})"
            self._send("overfitting", "Overfitting began", text, "WARN")
        if "batch" in self._kinds:
            noise = noise_of([reading.flat()])
            if noise is not None and noise.is_surely_exceeded:
                text = (
                    f"the batch of {noise.batch:,} is more than {FAR:g} times the noise scale, {noise.shown} ({where})"
                )
                self._send("batch", "Batch past the noise scale", text, "WARN")

    def end(self, state: str, status: Mapping[str, Any]) -> None:
        """Look at how the run ended; `status`: the contents of its status.json. Its sentence `why` is not sent, since
        it may hold paths and texts of the data."""
        if state in _ENDS:
            title, level = _ENDS[state]
            cause = f"cause: {status['cause']}; " if status.get("cause") else ""
            self._send(state, title, f"{cause}its status.json says why", level)

    def _send(self, kind: str, title: str, text: str, level: str) -> None:
        if kind in self._kinds:
            self._kinds.remove(kind)
            self._use(partial(_alert, title, f"{self._name}: {text}", level), "alerts")


def _alert(title: str, text: str, level: str, run: Any) -> None:
    run.alert(title=title, text=text, level=level, wait_duration=WAIT_SECONDS)
