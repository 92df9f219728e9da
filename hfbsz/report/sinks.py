"""Writes the readings of a run to records.jsonl, its trackers and the console, and its page at the end."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfbsz.display import command
from hfbsz.plan.plan import Plan
from hfbsz.records.jsonl import JsonLines
from hfbsz.records.record import Reading
from hfbsz.records.run_data import read_run
from hfbsz.report.console import Console
from hfbsz.report.trackers.open import open_trackers
from hfbsz.report.wandb.reporter import Identity, WandbReporter, as_launched, config_of, id_of
from hfbsz.system.command_name import command_name
from hfbsz.system.files import read_object, write_text


class Reports:
    """Writes the readings of rank 0 to records.jsonl, then to W&B, the other trackers and the console.

    `name`: of the run in W&B; `wandb_id` and `sent` (event and step of records): from an interrupted start, to resume.
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
    ) -> None:
        recipe, self.console, self.path = plan.recipe, console, path
        self.has_page = recipe.log.page
        write_text(path / "plan.json", json.dumps(plan.to_dict(), indent=1))
        write_text(path / "machine.json", json.dumps(self._since(machine, path, step), indent=1))
        self.records = JsonLines(path / "records.jsonl")
        run_id = wandb_id or id_of(path.name, os.urandom(3).hex())
        log = recipe.log
        entity = log.entity or os.environ.get("WANDB_ENTITY")  # it may be sent from another shell
        identity = as_launched(Identity(run_id, log.project, entity, log.group, job, name))
        self.wandb_id = identity.id
        identity.write(path)  # whatever the mode: a run can be sent later
        self.wandb = WandbReporter(
            folder=path, mode=log.wandb, identity=identity, config=config_of(path), warn=console.warn, sent=sent
        )
        self.trackers = open_trackers(path, log, identity, console.warn)

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
        if reading.event == "eval":
            self.console.evaluation(reading)

    def close(self, state: str, status: Mapping[str, Any] | None = None) -> None:
        """End the records and the trackers, and write the page unless `log.page` is false; `status`: what will be
        written to status.json."""
        self.records.close()
        for tracker in (self.wandb, *self.trackers):
            tracker.finish(0 if state == "finished" else 1)
        if not self.has_page:
            return
        from hfbsz.report.page import page

        try:
            run = read_run(self.path)
            run = run if status is None else replace(run, status=status)
            write_text(self.path / "report.html", page.render([run]))
        except Exception as problem:  # the model and the records are saved: a failed page must not fail the run
            retry = f"{command_name('report')} {command(self.path)}"
            self.console.warn(f"report.html could not be written ({problem}): to retry, run {retry}")
