"""The trainers that `scripts/bench.py` times: hfbsz's loop, transformers' Trainer, and a plain PyTorch loop."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hfbsz.recipe.load import load
from hfbsz.train.distributed import set_threads
from hfbsz.train.setup import Setup, setup

Timed = Callable[[], float]  # trains a block of steps; returns rows per second


def finetuning(words: Sequence[str], steps: int) -> Mapping[str, Timed]:
    """The trainers of a classifier by name: the Trainer with dynamic padding, in random order and by length."""
    recipe = load(words).recipe
    set_threads(recipe)
    trainers: dict[str, Timed] = {"hfbsz": _ours(setup(recipe), steps)}
    for order in ("random", "group_by_length"):
        bundle = setup(recipe)
        rows = [bundle.data.train[index] for index in range(len(bundle.data.train))]
        features = [
            {"input_ids": row.tokens.tolist(), "attention_mask": [1] * len(row.tokens), "labels": int(row.labels[0])}
            for row in rows
        ]
        collate = DataCollatorWithPadding(bundle.tokenizer)
        trainers[f"Trainer, {order}"] = _trainer(bundle, steps, features, collate, recipe.batch.micro_max, order)
    return trainers


def pretraining(words: Sequence[str], steps: int) -> Mapping[str, Timed]:
    """The trainers of a language model on packed rows by name, each at several micro-batches where it accumulates."""
    trainers: dict[str, Timed] = {}
    largest = setup(load(words).recipe).plan.largest_batch
    micros = [size for size in (4, 8, 16, 32) if largest % size == 0] or [largest]
    for micro in micros:
        recipe = load([*words, f"batch.micro_max={micro}"]).recipe
        set_threads(recipe)
        unfused = load([*words, f"batch.micro_max={micro}", "model.fused_loss=false"]).recipe
        trainers[f"hfbsz, micro {micro}"] = _ours(setup(recipe), steps)
        trainers[f"hfbsz unfused, micro {micro}"] = _ours(setup(unfused), steps)
        bundle = setup(recipe)
        rows = [torch.tensor(bundle.data.train[index][:-1], dtype=torch.int64) for index in range(largest * steps)]
        features = [{"input_ids": row, "labels": row} for row in rows]
        trainers[f"Trainer, micro {micro}"] = _trainer(bundle, steps, features, stacked, micro, "sequential")
        trainers[f"plain loop, micro {micro}"] = _plain(setup(recipe), steps, micro)
    return trainers


def stacked(features: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collate packed rows."""
    return {name: torch.stack([feature[name] for feature in features]) for name in ("input_ids", "labels")}


def _ours(bundle: Setup, steps: int) -> Timed:
    training = bundle.steps()

    def block() -> float:
        started = time.perf_counter()
        assert len(list(islice(training, steps))) == steps, "the recipe's duration is too short for so many steps"
        return bundle.plan.largest_batch * steps / (time.perf_counter() - started)

    return block


def _plain(bundle: Setup, steps: int, micro: int) -> Timed:
    """Forward, backward, clip and fused AdamW, and nothing else."""
    model, optim, rows = bundle.model, bundle.plan.recipe.optim, bundle.data.train
    optimizer = torch.optim.AdamW(
        model.parameters(), optim.lr, optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    batch, device = bundle.plan.largest_batch, bundle.accelerator.device
    taken = 0

    def block() -> float:
        nonlocal taken
        model.train()
        started = time.perf_counter()
        for _ in range(steps):
            for _ in range(batch // micro):
                tokens = torch.stack(
                    [torch.tensor(rows[(taken + index) % len(rows)], dtype=torch.int64) for index in range(micro)]
                ).to(device)
                taken += micro
                logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
                (loss * (micro / batch)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return batch * steps / (time.perf_counter() - started)

    return block


class Clock(TrainerCallback):
    """Measures training time: from the beginning of the first step to the end of the last one, in seconds."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def _trainer(
    bundle: Setup, steps: int, features: Sequence[Mapping[str, Any]], collate: Any, micro: int, order: str
) -> Timed:
    """transformers' Trainer on the same rows, batch and optimizer."""
    optim, batch = bundle.plan.recipe.optim, bundle.plan.largest_batch

    def block() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, train_sampling_strategy=order, optim="adamw_torch_fused", report_to=[],
                learning_rate=optim.lr, weight_decay=optim.weight_decay, max_grad_norm=optim.clip or 0.0,
                disable_tqdm=True,
                per_device_train_batch_size=micro, gradient_accumulation_steps=max(1, batch // micro),
                max_steps=steps, save_strategy="no", logging_strategy="no", use_cpu=not torch.cuda.is_available(),
            )  # fmt: skip
            trainer = Trainer(
                model=bundle.model, args=arguments, train_dataset=features, data_collator=collate, callbacks=[clock]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return batch * steps / clock.seconds

    return block
