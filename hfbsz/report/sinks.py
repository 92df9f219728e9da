"""Writes the readings of a run to records.jsonl, its trackers and the console, and its page at the end."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hfbsz.display import command
from hfbsz.plan.plan import Plan
from hfbsz.records.folder import read_status
from hfbsz.records.jsonl import JsonLines
from hfbsz.records.record import Reading
from hfbsz.records.run_data import read_run
from hfbsz.report.console import Console
from hfbsz.report.trackers.open import open_trackers
from hfbsz.report.wandb.alerts import Alerts
from hfbsz.report.wandb.artifacts import Artifacts, models_of, unloadable, upload_seconds
from hfbsz.report.wandb.identity import (
    config_of,
    id_of,
    identity_of,
    unknown_log_model,
    with_parents,
)
from hfbsz.report.wandb.reporter import WandbReporter
from hfbsz.system.command_name import command_name
from hfbsz.system.files import read_object, write_text


class Reports:
    """Writes the readings of rank 0 to records.jsonl, then to W&B, the other trackers and the console.

    `name`: of the run in W&B, where the recipe has none; `wandb_id` and `sent` (event and step of records): from an
    interrupted start, to resume; `stop`: called once someone stops the run in W&B.
    """

    def __init__(
        self,
        path: Path,
        console: Console,
        plan: Plan,
        machine: Mapping[str, Any],
        *,
        job: str,
        name: str,
        step: int,
        wandb_id: str | None,
        sent: Collection[tuple[str, int]],
        stop: Callable[[], None],
    ) -> None:
        recipe, self.console, self.path = plan.recipe, console, path
        self.has_page = recipe.log.page
        write_text(path / "plan.json", json.dumps(plan.to_dict(), indent=1))
        write_text(path / "machine.json", json.dumps(self._since(machine, path, step), indent=1))
        self.records = JsonLines(path / "records.jsonl")
        run_id = wandb_id or id_of(path.name, os.urandom(3).hex())
        log = recipe.log
        self.identity = identity = identity_of(recipe, run_id, job, name)
        if (problem := unknown_log_model(log)) is not None:
            console.warn(problem)
        if identity.artifacts in ("best", "checkpoints") and (reason := unloadable(recipe)) is not None:
            console.warn(f"log.artifacts={identity.artifacts}: only the saved model is sent at the end, {reason}")
            self.identity = identity = replace(identity, artifacts="end")
        self.wandb_id = identity.id
        identity.write(path)  # whatever the mode: a run can be sent later
        config = with_parents(config_of(path), identity)
        self.wandb = WandbReporter(
            folder=path, mode=log.wandb, identity=identity, config=config, warn=console.warn, sent=sent, stop=stop
        )
        self.trackers = open_trackers(path, log, identity, console.warn)
        self.alerts = Alerts(log.alerts, identity.name, self.wandb.use)
        self.artifacts = Artifacts(path, identity)
        if identity.artifacts != "off":
            self.wandb.use(partial(self.artifacts.record_inputs, config["plan"]), "lineage")

    def _since(self, machine: Mapping[str, Any], path: Path, step: int) -> dict[str, Any]:
        """The contents of machine.json: the machine and first step of this start, and those of earlier starts."""
        before = read_object(path / "machine.json") if step else None  # step 0: earlier starts are discarded
        earlier = before.pop("earlier", []) if before else []
        if before:
            earlier = [*earlier, before] if isinstance(earlier, list) else [before]
            changed = [name for name in machine if name in before and before[name] != machine[name]]
            if changed:
                changes = ", ".join(f"{name} {before[name]} → {machine[name]}" for name in changed)
                self.console.line(f"note      resumed on another machine or version: {changes}")
        return {**machine, "step": step, "earlier": earlier}

    def emit(self, reading: Reading) -> None:
        """Write a reading to records.jsonl and the trackers; print it if it is an evaluation."""
        record = self.records.write(reading)
        for tracker in (self.wandb, *self.trackers):
            tracker.log(record)
        self.alerts.read(reading)
        if reading.event == "eval":
            self.console.evaluation(reading)

    def checkpoint(self, step: int) -> None:
        """Send the weights of a checkpoint that was saved, if `log.artifacts` asks for it."""
        if self.identity.artifacts == "checkpoints" and self.wandb.is_on:
            held = self.artifacts.hold(step) if self.wandb.is_online else None
            self.wandb.use(partial(self.artifacts.send_checkpoint, step, held), "models")

    def close(self, state: str, status: Mapping[str, Any] | None = None) -> None:
        """End the records and the trackers, and write the page unless `log.page` is false; `status`: what will be
        written to status.json."""
        self.records.close()
        status = status or read_status(self.path)
        self.alerts.end(state, status)
        self.wandb.finish(0 if state == "finished" else 1, self._send_models(status) if state == "finished" else 0.0)
        for tracker in self.trackers:
            tracker.finish(0 if state == "finished" else 1)
        self.artifacts.close()
        if not self.has_page:
            return
        from hfbsz.report.page import page

        try:
            run = replace(read_run(self.path), status=status)
            write_text(self.path / "report.html", page.render([run]))
        except Exception as problem:  # the model and the records are saved: a failed page must not fail the run
            retry = f"{command_name('report')} {command(self.path)}"
            self.console.warn(f"report.html could not be written ({problem}): to retry, run {retry}")

    def _send_models(self, status: Mapping[str, Any]) -> float:
        """Send the models of the finished run that `log.artifacts` asks for; returns the seconds that this may take."""
        if self.identity.artifacts == "off" or not self.wandb.is_on:
            return 0.0
        try:
            models = models_of(replace(read_run(self.path), status=status), self.identity)
            seconds = upload_seconds(sum(model.size for model in models))
        except Exception as problem:  # the model is saved: a failed upload must not fail the run
            retry = f"{command_name('sync')} {command(self.path)}"
            self.console.warn(f"its models were not sent to W&B ({problem}): to retry, run {retry}")
            return 0.0
        self.wandb.use(partial(self.artifacts.send_last, models, seconds), "models")
        return seconds
