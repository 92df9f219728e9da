"""Folders of finished runs whose losses follow a planted model, for tests of advice."""

import json
from pathlib import Path

from hfbsz.advice.progress import Progress
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load

TOTAL = 9375  # sequences of small_batch_pretrain: 1.2M tokens of 128
TRUE = Progress(critical=100.0, total=TOTAL, slope=0.8, offset=11.0)  # the planted model
BASE = ("recipe=small_batch_pretrain",)
SCHEDULES = {  # name: words
    "small": ["batch.size=8seq"],
    "middle": ["batch.size=32seq"],
    "large": ["batch.size=128seq"],
    "ramp": ["batch.size=null", "batch.ramp=0:8 30%:32 60%:64"],
    "late": ["batch.size=null", "batch.ramp=0:8 80%:64"],
}


def write_run(folder: Path, words, noise=(), error: float = 0.0, seed: int = 0, seconds: float = 100.0, **more) -> Path:
    """Write a finished run of a recipe: its loss is that of the planted model + `error`; `noise`: scales over it."""
    plan = resolve(load([*BASE, *words, f"seed={seed}"]).recipe, 1)
    stages = [(float(phase.steps * phase.batch), phase.batch) for phase in plan.phases]
    loss, records, clock, step, done = TRUE.loss(stages) + error, [], 0, 0, []
    for amount, batch in stages:
        for _ in range(4):
            clock, step = clock + amount / 4, step + amount / 4 / batch
            place = {"train/sequences": clock, "train/global_step": round(step),
                     "train/num_input_tokens_seen": clock * 128, "train/seconds": seconds * clock / TOTAL}  # fmt: skip
            done.append((amount / 4, batch))
            records.append({"event": "step", "batch/global": batch, "batch/micro": 8, "train/loss": 5.0, **place})
            if noise:
                scale = noise[min(len(noise) - 1, round(clock / TOTAL * len(noise)))]
                records[-1] |= {"noise/scale": scale, "noise/scale_error": scale / 10}
            records.append({"event": "eval", "eval/loss": TRUE.loss(done) + error, "eval/rows": 100, **place})
    records.append({"event": "final", "full/loss": loss, "full/rows": 100, "model/step": round(step), **place})
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(f"{json.dumps(record | more)}\n" for record in records))
    (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    (folder / "machine.json").write_text(json.dumps({"device": "cpu"}))
    return folder
