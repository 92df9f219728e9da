"""Where a run's readings go: records.jsonl, W&B, the console, and its page."""

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
from hfbsz.report.wandb.reporter import Identity, WandbReporter, as_launched, config_of, id_of
from hfbsz.system.called import called
from hfbsz.system.files import read_object, write_text


class Reports:
    """Where rank 0's readings go: records.jsonl first, then W&B and the console.

    `name` is the run's in W&B; `wandb_id` and `sent` (event and step of rows) are what an interrupted start has left.
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
        write_text(path / "plan.json", json.dumps(plan.to_dict(), indent=1))
        write_text(path / "machine.json", json.dumps(self._since(machine, path, step), indent=1))
        self.records = JsonLines(path / "records.jsonl")
        own_id = wandb_id or id_of(path.name, os.urandom(3).hex())
        log = recipe.log
        entity = log.entity or os.environ.get("WANDB_ENTITY")  # it may be sent from another shell
        identity = as_launched(Identity(own_id, log.project, entity, log.group, job, name))
        self.wandb_id = identity.id
        identity.write(path)  # whatever the mode: a run can be sent later
        self.wandb = WandbReporter(
            folder=path, mode=log.wandb, identity=identity, config=config_of(path), warn=console.warn, sent=sent
        )

    def _since(self, machine: Mapping[str, Any], path: Path, step: int) -> dict[str, Any]:
        """What this start runs on, from which step, and what earlier starts ran on, each with its step."""
        before = read_object(path / "machine.json") if step else None  # step 0: nothing of an earlier start stays
        earlier = before.pop("earlier", []) if before else []
        if before:
            earlier = [*earlier, before] if isinstance(earlier, list) else [before]
            changed = [name for name in machine if name in before and before[name] != machine[name]]
            if changed:
                told = ", ".join(f"{name} {before[name]} → {machine[name]}" for name in changed)
                self.console.line(f"note      resumed on another machine or version: {told}")
        return {**machine, "step": step, "earlier": earlier}

    def emit(self, reading: Reading) -> None:
        self.wandb.log(self.records.write(reading))
        if reading.event == "eval":
            self.console.evaluation(reading)

    def close(self, state: str, status: Mapping[str, Any] | None = None) -> None:
        """End the records and the W&B run, and write the page; `status` is what status.json is about to say."""
        self.records.close()
        self.wandb.finish(0 if state == "finished" else 1)
        from hfbsz.report.page import page

        try:
            run = read_run(self.path)
            run = run if status is None else replace(run, status=status)
            write_text(self.path / "report.html", page.render([run]))
        except Exception as problem:  # the model and the records are safe: a picture must not fail their run
            again = f"{called('report')} {command(self.path)}"
            self.console.warn(f"no page was drawn ({problem}): {again} tries again")
