"""Wall time to a loss: transformers' Trainer with AdamW, its batch and rate tuned, against a recipe of hfbsz.

Batches and rates a factor of two apart are tried on the first seed, until the best has neighbors on all sides.

Both train the same model on the same rows for the same tokens, in one process, one run at a time. Losses are those of
hfbsz's evaluation on the recipe's validation rows, whose time counts for neither.
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from trainer_speed import Clock, stacked
from transformers import PrinterCallback, Trainer, TrainingArguments

from hfbsz.recipe.load import load
from hfbsz.train.distributed import precision_of, set_threads
from hfbsz.train.setup import Setup, setup

BATCHES, RATES, SEEDS = (4, 8, 16), (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), (0, 1, 2)
_POINTS = 24  # evaluations of a run
Curve = list[tuple[float, float]]  # (seconds of training, validation loss)


def trainer_run(words: Sequence[str], batch: int, rate: float, seed: int) -> tuple[float, float]:
    """Seconds of training and final loss of the Trainer, with a cosine schedule and fused AdamW."""
    bundle = setup(load([*words, f"seed={seed}"]).recipe)
    plan, optim, rows = bundle.plan, bundle.plan.recipe.optim, bundle.data.train
    tensors = [torch.tensor(rows[index][:-1], dtype=torch.int64) for index in range(len(rows))]
    steps, micro = plan.total // batch, min(batch, 16)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, optim="adamw_torch_fused", report_to=[], disable_tqdm=True, seed=seed,
            learning_rate=rate, weight_decay=optim.weight_decay, max_grad_norm=optim.clip or 0.0,
            adam_beta1=optim.betas[0], adam_beta2=optim.betas[1], lr_scheduler_type="cosine", warmup_steps=steps // 50,
            per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro, max_steps=steps,
            save_strategy="no", logging_strategy="no", use_cpu=not torch.cuda.is_available(),
            bf16=precision_of(plan.recipe) == "bf16",
        )  # fmt: skip
        trainer = Trainer(
            model=bundle.model, args=arguments, callbacks=[clock], data_collator=stacked,
            train_dataset=[{"input_ids": row, "labels": row} for row in tensors],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds, _loss(bundle)


def our_run(words: Sequence[str], seed: int) -> Curve:
    """The validation loss of a recipe over its training time."""
    bundle = setup(load([*words, f"seed={seed}"]).recipe)
    curve, due = [(0.0, _loss(bundle))], bundle.plan.total / _POINTS
    for step in bundle.steps():
        if step.at.sequences >= due or step.at.sequences >= bundle.plan.total:
            curve.append((step.at.seconds, _loss(bundle)))
            due += bundle.plan.total / _POINTS
    return curve


def _loss(bundle: Setup) -> float:
    """The loss of all validation rows."""
    bundle.model.eval()
    loss = bundle.evaluate(bundle.data.validation, range(len(bundle.data.validation)), 32).loss
    bundle.model.train()
    return loss


def reached(curve: Curve, target: float) -> float | None:
    """Seconds to the first loss of at most `target`, between two evaluations by a straight line; None: not reached."""
    for (start, before), (end, after) in pairwise(curve):
        if after <= target:
            return end if before <= target else start + (end - start) * (before - target) / (before - after)
    return None


def compare(theirs: Sequence[str], ours: Sequence[str], budget: Sequence[str]) -> tuple[bool, dict[str, Any]]:
    """Tune the Trainer on the first seed, train both with all seeds, and print times to the Trainer's final losses.

    `theirs`, `ours`: the words of the recipes; `budget`: further words for both. Returns whether the mean ratio is
    below 1, and the numbers.
    """
    theirs, ours = [*theirs, *budget], [*ours, *budget]
    set_threads(load(ours).recipe)
    found: dict[tuple[int, float], tuple[float, float]] = {}
    wanted = [(batch, rate) for batch in BATCHES for rate in RATES]
    while wanted:
        for batch, rate in wanted:
            found[batch, rate] = trainer_run(theirs, batch, rate, SEEDS[0])
            seconds, loss = found[batch, rate]
            print(f"Trainer, batch {batch}, rate {rate:g}: {loss:.4f} nats/target after {seconds:.0f} s", flush=True)
        batch, rate = min(found, key=lambda point: found[point][1])
        around = [(batch, rate / 2), (batch, 2 * rate), (2 * batch, rate), (batch // 2, rate)]
        wanted = [point for point in around if point[0] and point not in found]  # until the best is inside
    finals, curves, ratios = {}, {}, {}
    for seed in SEEDS:
        finals[seed] = trainer_run(theirs, batch, rate, seed)  # the first seed again: both beside each other
        curves[seed] = our_run(ours, seed)
        seconds, loss = finals[seed]
        needed = reached(curves[seed], loss)
        ratios[seed] = None if needed is None else needed / seconds
        shown = "not reached" if needed is None else f"{needed:.0f} s, {needed / seconds:.2f} of the Trainer's"
        print(f"seed {seed}: Trainer {loss:.4f} after {seconds:.0f} s; hfbsz reaches it after {shown}; ends at "
              f"{curves[seed][-1][1]:.4f} after {curves[seed][-1][0]:.0f} s", flush=True)  # fmt: skip
    numbers = {
        "trainer": {"batch": batch, "rate": rate, "grid": [[*point, *value] for point, value in found.items()]},
        "finals": finals, "curves": curves, "ratios": ratios,
    }  # fmt: skip
    known = [ratio for ratio in ratios.values() if ratio is not None]
    if known:
        print(f"mean ratio {statistics.mean(known):.2f} ({min(known):.2f} to {max(known):.2f}) of {len(ratios)} seeds")
    return len(known) == len(ratios) and statistics.mean(known) < 1, numbers


def picture(numbers: Mapping[str, Any], path: Path) -> None:
    """Save the curves of hfbsz and the ends of the Trainer over time as PNG."""
    from matplotlib.figure import Figure

    finals, curves = numbers["finals"], numbers["curves"]

    figure = Figure(figsize=(6.4, 4))
    axes: Any = figure.add_subplot()
    for index, (seed, curve) in enumerate(curves.items()):
        axes.plot(*zip(*curve, strict=True), color=f"C{index}", label=f"hfbsz, seed {seed}")
        axes.plot(*finals[seed], "D", color=f"C{index}", label=f"Trainer's end, seed {seed}")
    top = max(loss for _, loss in finals.values())
    axes.set(xlabel="training time (s)", ylabel="validation loss (nats/target)", ylim=(None, top + 1.5))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
