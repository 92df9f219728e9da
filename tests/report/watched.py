"""Folders of made-up runs that watch their training rows: what fine-tuning writes, without training."""

import json
import math
from pathlib import Path
from typing import Any

from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records.run_data import CLOCK, SECONDS, STEPS, TOKENS
from hfbsz.system.yaml import write_yaml

ROWS = 512
WORDS = ["data.pack=false", "batch.size=16seq", "batch.micro_max=16", "optim.lr=5e-5", "data.validation=20%"]


def plan_of(*words: str, epochs: int = 10) -> Plan:
    recipe = load([*WORDS, f"duration={epochs} epochs", *words]).recipe
    return resolve(recipe, 1, Facts(rows=ROWS, tokens_per_row=31.4))


def classification(*words: str, epochs: int = 10) -> Plan:
    return plan_of("task=classification", "data.label=critique", *words, epochs=epochs)


def losses_of(epoch: float, overfits: bool) -> tuple[float, float]:
    """(training, validation) in nats/target: like a small encoder's on 500 reviews, or of rows enough."""
    if overfits:
        return 0.69 * math.exp(-epoch / 1.1) + 0.004, 0.574 + 0.13 * (epoch - 1) ** 2 / (1 + 0.25 * epoch**1.3)
    return 0.3 + 0.39 * math.exp(-epoch / 2.5), 0.36 + 0.34 * math.exp(-epoch / 2.6)


def records_of(
    plan: Plan, overfits: bool, every: int = 16, stop: int | None = None, shift: float = 0.0, save_best: bool = False
) -> list[dict[str, Any]]:
    """Steps and evaluations every `every` steps to the end or step `stop`; the onset is sure 3 evaluations later."""
    records: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    labeled = plan.recipe.task == "classification"
    steps = [*plan.walk()][:stop]
    for number in range(len(steps) + 1):
        planned = steps[number - 1] if number else None
        clock = planned.next_clock if planned else 0
        axes = {STEPS: number, CLOCK: clock, TOKENS: round(clock * plan.tokens_per_row), SECONDS: clock / 37}
        epoch, end = clock / ROWS, number == len(steps)
        train, validation = (loss + shift for loss in losses_of(epoch, overfits))
        if planned is not None and (number % 4 == 0 or end):
            step = {"train/loss": train + 0.05 + 0.04 * math.sin(number), "train/learning_rate": planned.learning_rate}
            step |= {
                "batch/global": 16,
                "batch/accumulation": 1,
                "perf/tokens_per_second": 1160 + 40 * math.sin(number),
            }
            records.append({"event": "step", **axes, **step, "perf/peak_memory_bytes": 1.1 * 2**30})
        if number % every == 0 or end:
            evaluation = {"event": "eval", **axes, **measures(validation, epoch, labeled), "eval/rows": 256}
            evaluation |= watched(train, validation, number, evaluations)
            evaluations.append(evaluation)
            records.append(evaluation)
    best = min(evaluations, key=lambda evaluation: evaluation["eval/loss"])
    kept = best if save_best else evaluations[-1]
    final = {"event": "final", **axes, "model/step": kept[STEPS], **whole("full", kept, 0.015 if save_best else 0.02)}
    return [*records, final | (whole("last", evaluations[-1], 0.02) if kept is not evaluations[-1] else {})]


def whole(part: str, evaluation: dict[str, Any], above: float) -> dict[str, float]:
    """The evaluation of the same weights on all rows of validation."""
    values = {name.replace("eval/", f"{part}/"): value for name, value in evaluation.items() if "eval/" in name}
    return values | {f"{part}/loss": evaluation["eval/loss"] + above, f"{part}/rows": 2000}


def measures(loss: float, epoch: float, labeled: bool) -> dict[str, float]:
    if not labeled:
        return {"eval/loss": loss, "eval/perplexity": math.exp(loss), "eval/bits_per_byte": loss / 2.9}
    accuracy = 0.75 - 0.24 * math.exp(-epoch / 0.4) + 0.006 * math.sin(9 * epoch)
    others = {
        "eval/macro_f1": accuracy - 0.02,
        "eval/matthews": 2 * accuracy - 1,
        "eval/calibration_error": 0.03 * epoch,
    }
    return {"eval/loss": loss, "eval/accuracy": accuracy, **others}


def watched(train: float, validation: float, step: int, before: list[dict[str, Any]]) -> dict[str, float]:
    """`overfit/*` of an evaluation, given those before it."""
    seen = {evaluation[STEPS]: evaluation["eval/loss"] for evaluation in before} | {step: validation}
    best = min(seen, key=lambda at: seen[at])
    values = {"overfit/train_loss": train, "overfit/gap": validation - train, "overfit/rise": validation - seen[best]}
    onset = next(
        (evaluation["overfit/onset_step"] for evaluation in before if "overfit/onset_step" in evaluation), None
    )
    if onset is None and validation > seen[best] + 0.05:
        onset = best
    return {**values, "overfit/best_step": best, **({} if onset is None else {"overfit/onset_step": onset})}


def make(folder: Path, plan: Plan, records: list[dict[str, Any]], state: str = "finished", why: Any = None) -> Path:
    folder.mkdir(parents=True)
    write_yaml(plan.recipe.to_dict(), folder / "recipe.yaml")
    (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "status.json").write_text(json.dumps({"state": state, "why": why}))
    return folder
