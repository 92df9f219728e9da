"""The trainers that `scripts/bench.py` times: hfbsz's loop, transformers' Trainer, and a plain PyTorch loop.

On a CPU each has a process of its own, so that what one sets or keeps (threads, memory) does not affect another.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hfbsz.errors import UserError
from hfbsz.recipe.load import load
from hfbsz.train.distributed import precision_of, set_threads
from hfbsz.train.setup import Setup, setup

Timed = Callable[[], float]  # trains a block of steps; returns input tokens, padding not counted, per second


def finetuning(words: Sequence[str], steps: int) -> Mapping[str, Timed]:
    """The trainers of a classifier by name: the Trainer with dynamic padding, in random order and by length."""
    trainers: dict[str, Callable[[], Timed]] = {"hfbsz": partial(_ours_of, words, steps)}
    for order in ("random", "group_by_length"):
        trainers[f"Trainer, {order}"] = partial(_padding_trainer_of, words, steps, order)
    return _placed(trainers)


def _padding_trainer_of(words: Sequence[str], steps: int, order: str) -> Timed:
    """The Trainer on the recipe's labelled rows."""
    bundle = _setup(words)
    rows = [bundle.data.train[index] for index in range(len(bundle.data.train))]
    features = [
        {"input_ids": row.tokens.tolist(), "attention_mask": [1] * len(row.tokens), "labels": int(row.labels[0])}
        for row in rows
    ]
    collate, micro = DataCollatorWithPadding(bundle.tokenizer), bundle.plan.recipe.batch.micro_max
    return _trainer(bundle, steps, features, collate, micro, order)


def pretraining(words: Sequence[str], steps: int) -> Mapping[str, Timed]:
    """The trainers of a language model on packed rows by name: on a CPU each at several micro-batches, on a GPU each
    with its options for speed, at the micro-batch of the recipe."""
    trainers: dict[str, Callable[[], Timed]] = {}
    on_gpu, plan = torch.cuda.is_available(), setup(load(words).recipe).plan
    largest = plan.largest_batch
    micros = [size for size in (4, 8, 16, 32) if largest % size == 0] or [largest]
    for micro in [plan.micro_batch or largest] if on_gpu else micros:
        given = [*words, f"batch.micro_max={micro}"]
        ours = {"hfbsz": []} if on_gpu else {"hfbsz": [], "hfbsz unfused": ["model.fused_loss=false"]}
        theirs: dict[str, tuple[int, dict[str, Any]]] = {"Trainer": (micro, {})}
        if on_gpu:
            ours["hfbsz compiled"] = ["model.compile=true"]
            theirs["Trainer default"] = min(8, largest), {}
            theirs["Trainer compiled"] = micro, {"torch_compile": True}
            if find_spec("liger_kernel") is not None:
                theirs["Trainer liger"] = micro, {"use_liger_kernel": True}
        for name, more in ours.items():
            trainers[f"{name}, micro {micro}"] = partial(_ours_of, [*given, *more], steps)
        for name, (size, options) in theirs.items():
            trainers[f"{name}, micro {size}"] = partial(_trainer_of, given, steps, size, options)
        trainers[f"plain loop, micro {micro}"] = partial(_plain_of, given, steps, micro)
    return _placed(trainers)


def _placed(trainers: Mapping[str, Callable[[], Timed]]) -> Mapping[str, Timed]:
    """The trainers where they are timed: in this process on a GPU, else each in its own."""
    place = Watched if torch.cuda.is_available() else Apart
    return {name: place(create) for name, create in trainers.items()}


def _setup(words: Sequence[str]) -> Setup:
    recipe = load(words).recipe
    set_threads(recipe)
    return setup(recipe)


def _ours_of(words: Sequence[str], steps: int) -> Timed:
    return _ours(_setup(words), steps)


def _plain_of(words: Sequence[str], steps: int, micro: int) -> Timed:
    return _plain(_setup(words), steps, micro)


def _trainer_of(words: Sequence[str], steps: int, micro: int, options: Mapping[str, Any]) -> Timed:
    """The Trainer on the recipe's packed rows."""
    bundle = _setup(words)
    rows, count = bundle.data.train, bundle.plan.largest_batch * steps
    tokens = [torch.tensor(rows[index % len(rows)][:-1]).long() for index in range(count)]
    features = [{"input_ids": row, "labels": row} for row in tokens]
    return _trainer(bundle, steps, features, stacked, micro, "sequential", **options)


def stacked(features: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collate packed rows."""
    return {name: torch.stack([feature[name] for feature in features]) for name in ("input_ids", "labels")}


def _ours(bundle: Setup, steps: int) -> Timed:
    training = bundle.steps()

    def block() -> float:
        started = _now()
        tokens = [step.step_tokens for step in islice(training, steps)]
        if len(tokens) < steps:
            raise UserError(f"duration: the run ends after {bundle.plan.steps:,} steps: take more, or fewer repeats=")
        return sum(tokens) / (_now() - started)

    return block


def _plain_model(bundle: Setup) -> Any:
    """The model as transformers builds it, without what hfbsz changes in it, and with the same weights. That of the
    bundle goes to the host, so that it takes no GPU memory. Raises UserError for LoRA."""
    if bundle.plan.recipe.model.lora is not None:
        raise UserError("model.lora: the benchmark compares full fine-tuning: leave it out")
    changed = bundle.model.cpu()
    model = type(changed)._from_config(changed.config, attn_implementation=bundle.plan.recipe.model.attention)
    model.load_state_dict(changed.state_dict())
    return model.to(bundle.accelerator.device)


def _plain(bundle: Setup, steps: int, micro: int) -> Timed:
    """Forward, backward, clip and fused AdamW, and nothing else."""
    model, optim, rows = _plain_model(bundle), bundle.plan.recipe.optim, bundle.data.train
    optimizer = torch.optim.AdamW(
        model.parameters(), optim.lr, optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    batch, device = bundle.plan.largest_batch, bundle.accelerator.device
    taken, low = 0, precision_of(bundle.plan.recipe) == "bf16"

    def block() -> float:
        nonlocal taken
        model.train()
        started = _now()
        for _ in range(steps):
            for _ in range(batch // micro):
                tokens = torch.stack(
                    [torch.tensor(rows[(taken + index) % len(rows)], dtype=torch.int64) for index in range(micro)]
                ).to(device)
                taken += micro
                with torch.autocast(device.type, torch.bfloat16, enabled=low):
                    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
                (loss * (micro / batch)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
        return batch * steps * bundle.plan.tokens_per_row / (_now() - started)

    return block


class Clock(TrainerCallback):
    """Measures training time: from the beginning of the first step to the end of the last one, in seconds."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.started = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.seconds = _now() - self.started


def _now() -> float:
    """The clock once a GPU has done its work, in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Apart:
    """A trainer in a process of its own, which ends with this one."""

    def __init__(self, create: Callable[[], Timed]) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, create), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self) -> float:
        """Train a block. Raises the trainer's error, and EOFError if its process ended."""
        self._connection.send(None)
        answer = self._connection.recv()
        if isinstance(answer, float):
            return answer
        self._process.terminate()
        raise answer


def _serve(connection: Any, create: Callable[[], Timed]) -> None:
    """Train a block, created at first, whenever the other end asks, and send its speed or its error."""
    block: Timed | None = None
    with suppress(EOFError):
        while True:
            connection.recv()
            try:
                block = block or create()
                connection.send(block())
            except Exception as problem:  # raised by `Apart`
                connection.send(problem)


class Watched:
    """A trainer whose memory on a GPU is watched: its weights, gradients, optimizer and activations."""

    def __init__(self, create: Callable[[], Timed]) -> None:
        before = torch.cuda.memory_allocated()
        self.block = create()
        self.kept, self.peak = torch.cuda.memory_allocated() - before, 0  # bytes

    def __call__(self) -> float:
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        speed = self.block()
        self.peak = max(self.peak, self.kept + torch.cuda.max_memory_allocated() - before)
        gc.collect()
        self.kept += torch.cuda.memory_allocated() - before
        return speed


def _trainer(
    bundle: Setup, steps: int, features: Sequence[Mapping[str, Any]], collate: Any, micro: int, order: str, **more: Any
) -> Timed:
    """transformers' Trainer on the same rows, batch, optimizer and precision; `more`: further training arguments."""
    optim, batch, model = bundle.plan.recipe.optim, bundle.plan.largest_batch, _plain_model(bundle)

    def block() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, train_sampling_strategy=order, optim="adamw_torch_fused", report_to=[],
                learning_rate=optim.lr, weight_decay=optim.weight_decay, max_grad_norm=optim.clip or 0.0,
                disable_tqdm=True,
                per_device_train_batch_size=micro, gradient_accumulation_steps=max(1, batch // micro),
                max_steps=steps, save_strategy="no", logging_strategy="no", use_cpu=not torch.cuda.is_available(),
                bf16=precision_of(bundle.plan.recipe) == "bf16", include_num_input_tokens_seen="non_padding",
                **more,
            )  # fmt: skip
            trainer = Trainer(
                model=model, args=arguments, train_dataset=features, data_collator=collate, callbacks=[clock]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return trainer.state.num_input_tokens_seen / clock.seconds

    return block
