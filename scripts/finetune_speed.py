"""The trainers that `scripts/bench.py finetune` times on a classifier: hfbsz's loop and transformers' Trainer."""

import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from hfbsz.recipe.load import load
from hfbsz.train.distributed import set_threads
from hfbsz.train.setup import Setup, setup


def ways(words: list[str], steps: int) -> Mapping[str, Callable[[], float]]:
    """Return, by name, functions that train `steps` steps and return the rows per second."""
    recipe = load(words).recipe
    set_threads(recipe)
    bundle = setup(recipe)
    ours = bundle.steps()

    def hfbsz() -> float:
        started, rows = time.perf_counter(), bundle.plan.largest_batch * steps
        assert len(list(islice(ours, steps))) == steps, "the recipe's duration is too short for so many steps"
        return rows / (time.perf_counter() - started)

    trainers: dict[str, Callable[[], float]] = {"hfbsz": hfbsz}
    for order in ("random", "group_by_length"):
        trainers[f"Trainer, {order}"] = _Trainer(setup(recipe), order, steps)
    return trainers


class _Clock(TrainerCallback):
    """Measures training time: from the beginning of the first step to the end of the last one, in seconds."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started


class _Trainer:
    """transformers' Trainer with dynamic padding on the same rows, batch and optimizer."""

    def __init__(self, bundle: Setup, order: str, steps: int) -> None:
        self.plan, self.model, self.tokenizer = bundle.plan, bundle.model, bundle.tokenizer
        self.order, self.steps = order, steps
        rows = [bundle.data.train[index] for index in range(len(bundle.data.train))]
        self.rows = [
            {"input_ids": row.tokens.tolist(), "attention_mask": [1] * len(row.tokens), "labels": int(row.labels[0])}
            for row in rows
        ]

    def __call__(self) -> float:
        optim, clock = self.plan.recipe.optim, _Clock()
        micro = self.plan.recipe.batch.micro_max
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, train_sampling_strategy=self.order, optim="adamw_torch_fused", report_to=[],
                learning_rate=optim.lr, weight_decay=optim.weight_decay, max_grad_norm=optim.clip, disable_tqdm=True,
                per_device_train_batch_size=micro, gradient_accumulation_steps=max(1, self.plan.largest_batch // micro),
                max_steps=self.steps, save_strategy="no", logging_strategy="no", use_cpu=not torch.cuda.is_available(),
            )  # fmt: skip
            collate = DataCollatorWithPadding(self.tokenizer)
            trainer = Trainer(
                model=self.model, args=arguments, train_dataset=self.rows, data_collator=collate, callbacks=[clock]
            )
            trainer.train()
        return self.plan.largest_batch * self.steps / clock.seconds
