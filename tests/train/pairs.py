"""Preference pairs of real source text, and the words of a recipe that trains on them."""

import json
import sysconfig
from pathlib import Path

from small_models import small_model


def pairs(count: int = 60) -> list[dict[str, str]]:
    """Prompts with two answers of different lengths, all unlike."""
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    rows = []
    for number in range(count):
        start = 400 * number
        sizes = 20 + (number * 7919) % 60, 10 + (number * 104729) % 70, 15 + (number * 1299709) % 65
        parts, place = [], start
        for size in sizes:
            parts.append(text[place : place + size])
            place += size
        rows.append(dict(zip(("prompt", "chosen", "rejected"), parts, strict=True)))
    return rows


def preference_words(folder: Path, kind: str = "llama", **changed) -> list[str]:
    """A model, data in `folder`, and a recipe of a few steps."""
    if not (folder / "model").exists():
        small_model(folder / "model", kind, **changed)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs())))
    return [
        "recipe=tests/finetune.yaml", "task=preference", f"model.path={folder / 'model'}",
        f"data.files={folder / 'pairs.jsonl'}", "data.prompt=prompt", "data.chosen=chosen", "data.rejected=rejected",
        "data.sequence_length=96", "data.validation=20%", "batch.size=8seq", "batch.micro_max=8", "optim.lr=1e-3",
        "duration=6steps", "schedule.warmup=0%", "log.every=1steps", "log.wandb=off", "log.page=false", "threads=1",
        "measure.noise.every=1step",
    ]  # fmt: skip
