"""Where a run's readings go, and on what machine it ran."""

import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator

import hfbsz
from hfbsz import metrics
from hfbsz.files import read_object, write_text
from hfbsz.loop import Evaluation
from hfbsz.plan import Plan
from hfbsz.record import Reading
from hfbsz.report.console import Console
from hfbsz.report.jsonl import JsonLines
from hfbsz.report.runs import read_run
from hfbsz.report.wandb import Identity, WandbReporter, as_launched, config_of, id_of
from hfbsz.sharding import is_sharded
from hfbsz.shown import command


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
        recipe, self.console, self.path, self.task = plan.recipe, console, path, plan.recipe.task
        self.further = [metrics.load(name) for name in recipe.eval.metrics]
        write_text(path / "plan.json", json.dumps(plan.to_dict(), indent=1))
        write_text(path / "machine.json", json.dumps(self._since(machine, path, step), indent=1))
        self.records = JsonLines(path / "records.jsonl")
        self.perplexity, self.bits_per_byte = metrics.load("perplexity"), metrics.load("bits_per_byte")
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

    def measures(self, prefix: str, found: Evaluation) -> dict[str, float]:
        """The metrics of one evaluation set."""
        values = {
            f"{prefix}loss": found.loss,
            f"{prefix}rows": len(found.nll),
            f"{prefix}targets": int(found.targets.sum()),
            f"{prefix}seconds": round(found.seconds, 3),
        }
        if self.task == "classification":
            logits, labels = found.outputs[:, :-1], found.outputs[:, -1].astype(int)
            measured = metrics.classification(logits, labels)
            for metric in self.further:
                measured |= metric.compute(predictions=logits.argmax(axis=1), references=labels)
            return values | {f"{prefix}{name}": float(value) for name, value in measured.items()}
        nll, targets, text_bytes = [float(found.nll.sum())], [int(found.targets.sum())], [found.text_bytes]
        measured = self.perplexity.compute(predictions=nll, references=targets)
        measured |= self.bits_per_byte.compute(predictions=nll, references=text_bytes)
        return values | {f"{prefix}{name}": value for name, value in measured.items()} | extractable(prefix, found)

    def close(self, state: str, status: Mapping[str, Any] | None = None) -> None:
        """End the records and the W&B run, and write the page; `status` is what status.json is about to say."""
        self.records.close()
        self.wandb.finish(0 if state == "finished" else 1)
        from hfbsz.report import html  # matplotlib: only here, at the end

        try:
            run = read_run(self.path)
            run = run if status is None else replace(run, status=status)
            write_text(self.path / "report.html", html.render([run]))
        except Exception as problem:  # the model and the records are safe: a picture must not fail their run
            again = command("python", "scripts/report.py", self.path)
            self.console.warn(f"no page was drawn ({problem}): {again} tries again")


def extractable(prefix: str, found: Evaluation) -> dict[str, float]:
    """The share of rows that a causal model says by heart, of those long enough to be asked; empty where none is."""
    asked = found.outputs[np.isfinite(found.outputs)] if found.outputs.shape[1] == 1 else np.empty(0)
    return {f"{prefix}extractable": float(asked.mean())} if len(asked) else {}


def machine_of(accelerator: Accelerator, model: Any) -> dict[str, Any]:
    """Versions, device and commit: what a number may depend on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    device = accelerator.device
    return {
        "hfbsz": hfbsz.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "parallel": "FSDP2" if is_sharded(model) else "DDP" if accelerator.num_processes > 1 else None,
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
    }
