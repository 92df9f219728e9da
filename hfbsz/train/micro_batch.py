"""Measures throughput and memory at rising micro-batches on the device, for `Probe` (records/probe).

The trials train a model of their own, which is dropped afterwards: the weights and moments of a run are not touched.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from hfbsz.data.batches import Batch, Windows
from hfbsz.data.order import Order
from hfbsz.errors import RankError, UserError
from hfbsz.plan.plan import Plan
from hfbsz.recipe.amounts import counted, short
from hfbsz.records.probe import (
    Checkpointing,
    Probe,
    Trial,
    bytes_per_row,
    common_pace,
    has_certain_knee,
    predicted_bytes,
    shown_bytes,
)
from hfbsz.train.device import free, is_out_of_memory, keep_freed_memory, peak_bytes, reset_peak, to_device
from hfbsz.train.distributed import gathered, precision_of
from hfbsz.train.fsdp import gradient_sync, is_sharded
from hfbsz.train.layers import can_recompute, recomputed
from hfbsz.train.machine import machine_of
from hfbsz.train.memory_limit import limit_of
from hfbsz.train.optimizers import Optimizers
from hfbsz.train.tasks import Task

LARGEST = 4096  # micro-batch, in rows
_MARGIN = 1.05  # on a predicted peak, before a trial risks it
_GAIN = 1.03  # of the throughput, below which a larger micro-batch counts as no faster
_IDLE = 2  # trials in a row that were no faster, after which no larger one is tried
_BLOCK_SECONDS = 0.1  # length of a timed block
_LEAST_ROUNDS, _ROUNDS = 3, 9  # blocks of every micro-batch, in alternation; more while the knee is uncertain
_TIMING_SECONDS = 30.0  # after which no further round begins
_PRICE_ROUNDS = 5  # blocks with and without activation checkpointing
_REPEATS = 5  # of a time that is not compared with others: the least is taken
Show = Callable[[str, int, int], None]


class Parts(NamedTuple):
    """What is trained on: the arguments of `train` (train/loop)."""

    plan: Plan
    model: Any
    optimizer: Optimizers
    task: Task
    windows: Windows
    accelerator: Accelerator


def probe(
    parts: Parts,
    about: dict[str, str],
    *,
    limit: int | None = None,
    share: float | None = None,
    largest: int = LARGEST,
    prices: bool = True,
    show: Show = lambda *_: None,
) -> Probe:
    """Measure forward and backward passes at micro-batches of 1, 2, 4, … rows, until memory or throughput ends them.

    A trial is made only if the line through the trials before predicts that it fits. `limit`: of the peak memory of a
    process, in bytes; None: what it holds and `share` of the memory that is free. `prices`: also measure what
    activation checkpointing costs. The model is trained, and is of no use afterwards.
    All ranks call it. Raises UserError if one row does not fit.
    """
    return _Bench(parts, limit, share, show, prices).probe(about, largest)


class _Bench:
    def __init__(self, parts: Parts, limit: int | None, share: float | None, show: Show, prices: bool = True) -> None:
        self.prices = prices
        self.plan, self.model, self.optimizer, self.task, windows, self.accelerator = parts
        self.show, self.rows, self.device = show, windows.rows, parts.accelerator.device
        self.longest = np.argsort(-self.rows.lengths, kind="stable")[:LARGEST]
        self.typical = Order(len(self.rows), self.plan.recipe.seed).take(0, min(LARGEST, len(self.rows)))
        self.model.train()
        keep_freed_memory(self.device)
        free(self.device)
        self.limit, self.source = limit_of(self.accelerator, share) if limit is None else (limit, "the limit given")

    def probe(self, about: dict[str, str], largest: int) -> Probe:
        """The trials, then the optimizer's step and the communication at the knee, on the longest rows."""
        fits = self._fits(1, step=True)  # gradients and moments exist from now on, as in training
        trials, failed = self._rising(largest) if fits else ([], 1)
        if not trials:
            raise UserError(
                f"batch.micro_max: a single row does not fit into {shown_bytes(self.limit)} ({self.source}): use a "
                "smaller model or data.sequence_length"
            )
        trials = self._timed(trials)
        single = self.accelerator.num_processes == 1
        tokens, sync = self.plan.tokens_per_row, None if single else 0.0
        result = Probe(about, tokens, tuple(trials), 0.0, sync, self.limit, self.source, failed)
        while not self._fits(result.knee, step=True):  # the confirming trial
            smaller = [trial for trial in result.trials if trial.micro_batch < result.knee]
            if not smaller:
                raise UserError("batch.micro_max: an optimizer step of a single row does not fit into the memory")
            result = replace(result, trials=tuple(smaller), failed=result.knee)
        step = self._seconds(self._step)
        sync = None if single else self._sync_seconds(result.knee)
        checkpointing = self._checkpointing(result) if self.prices else None
        return replace(result, step_seconds=step, sync_seconds=sync, checkpointing=checkpointing)

    def _checkpointing(self, result: Probe) -> Checkpointing | None:
        """The price of activation checkpointing at the knee, and on a GPU the memory that a row then takes; None if
        the recipe has it on, or compiles the model, or the model does not support it."""
        spec, knee = self.plan.recipe.model, result.knee
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if spec.activation_checkpointing or spec.compile or not can_recompute(model):
            return None
        ratios, peaks = [], []
        for number in range(_PRICE_ROUNDS):
            self.show("timing activation checkpointing", number, _PRICE_ROUNDS)
            plain = self._block(knee, 1)
            with recomputed(model):
                ratios.append(self._block(knee, 1) / plain)
        if self.device.type == "cuda" and not is_sharded(self.model):  # peaks of a trial; no rank waits for another
            with recomputed(model):
                for size in (max(1, knee // 2), max(2, knee)):
                    reset_peak(self.device)
                    if not self._fits(size):
                        return Checkpointing(statistics.median(ratios), None)
                    peaks.append(Trial(size, 0.0, 0.0, max(gathered(self.accelerator, peak_bytes(self.device)))))
        return Checkpointing(statistics.median(ratios), bytes_per_row(peaks) if peaks else None)

    def _rising(self, largest: int) -> tuple[list[Trial], int | None]:
        """Trials at micro-batches that double, as far as they fit and get faster; and the one that ran out of memory,
        if one did."""
        trials: list[Trial] = []
        fastest, idle, size = 0, 0, 1
        while size <= largest and idle < _IDLE:
            if len(trials) > 1 and predicted_bytes(trials, size) * _MARGIN > self.limit:
                break
            self.show("probing micro-batches", size.bit_length() - 1, LARGEST.bit_length() - 1)
            trial = self._trial(size)
            if trial is None:
                return trials, size
            trials.append(trial)
            if trial.peak_bytes > self.limit:
                return trials[:-1], size
            # the fastest one so far is timed again: the pace of the machine may have changed
            if fastest and size / trial.seconds < _GAIN * fastest / self._block(fastest, 1):
                idle += 1
            else:
                fastest, idle = size, 0
            size *= 2
        return trials, None

    def _trial(self, size: int) -> Trial | None:
        """The peak memory and a first time of a micro-batch; None, on every rank, if one ran out of memory."""
        reset_peak(self.device)
        fits = self._fits(size)
        peak = peak_bytes(self.device)
        if not fits:
            return None
        return Trial(size, self._block(size, 1), 0.0, max(gathered(self.accelerator, peak)))

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials with times of several blocks, in alternation, so that a disturbance meets all alike."""
        measured: list[list[float]] = []
        started = time.perf_counter()
        while (number := len(measured)) < _LEAST_ROUNDS or not (
            self._is_over(started) or (number >= _ROUNDS and has_certain_knee(trials))
        ):
            times = dict[int, float]()
            for trial in trials if number % 2 else reversed(trials):  # so that a drift meets all alike too
                done = number * len(trials) + len(times)
                self.show("timing micro-batches", done, max(done + 1, _ROUNDS * len(trials)))
                passes = max(1, round(_BLOCK_SECONDS / trial.seconds))
                times[trial.micro_batch] = self._block(trial.micro_batch, passes)
            measured.append([times[trial.micro_batch] for trial in trials])
            trials = [
                replace(trial, seconds=seconds, error=error)
                for trial, (seconds, error) in zip(trials, common_pace(measured), strict=True)
            ]
        return list(trials)

    def _is_over(self, started: float) -> bool:
        """Whether the time for timing is over, on the rank that began first."""
        return max(gathered(self.accelerator, time.perf_counter() - started)) > _TIMING_SECONDS

    def _block(self, size: int, passes: int) -> float:
        """The time of a micro-batch of rows of mean length: that of passes over the first rows in the order of
        training, per token."""
        numbers = np.resize(self.typical, max(size * passes, min(len(self.typical), size)))
        batches = [self._batch(numbers[size * index :], size) for index in range(passes)]
        seconds = self._seconds(partial(self._passes, batches), repeats=1)
        return seconds * size * self.plan.tokens_per_row / sum(batch.tokens for batch in batches)

    def _sync_seconds(self, knee: int) -> float:
        """The time that averaging the gradients adds to a pass."""
        batch = self._batch(self.typical, knee)
        alone, synchronized = (self._seconds(partial(self._pass, batch, last=last)) for last in (False, True))
        return max(0.0, synchronized - alone)

    def _seconds(self, work: Callable[[], None], repeats: int = _REPEATS) -> float:
        """The least time of `work` over `repeats`; of the slowest rank."""
        times = []
        for _ in range(repeats):
            self._synchronize()
            started = time.perf_counter()
            work()
            self._synchronize()
            times.append(time.perf_counter() - started)
        return max(gathered(self.accelerator, min(times)))

    def _fits(self, size: int, step: bool = False) -> bool:
        """Whether passes over the longest rows fit into memory on every rank; with `step`, an optimizer step too.

        Where ranks wait for each other inside (averaging gradients, FSDP2), a rank that runs out of memory raises
        RankError: the others cannot go on.
        """

        def passes() -> None:
            for _ in range(2):  # the second with gradients in place, as in a window of several micro-batches
                self._pass(self._batch(self.longest, size))

        def last_pass_and_step() -> None:
            self._pass(self._batch(self.longest, size), last=True)
            self._step()

        single = self.accelerator.num_processes == 1
        fits = all(gathered(self.accelerator, self._try(passes, alone=not is_sharded(self.model))))
        return fits and (not step or self._try(last_pass_and_step, alone=single))

    def _try(self, work: Callable[[], None], alone: bool) -> bool:
        """Whether `work` fits into memory. Raises RankError if it does not and other ranks wait for this one inside
        (not `alone`)."""
        try:
            work()
            return True
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem):
                raise
        free(self.device)
        if not alone:
            raise RankError(
                f"rank {self.accelerator.process_index} ran out of memory in a trial that was predicted to fit: set "
                "batch.micro_max to a number, or lower share or limit of hfbsz probe"
            )
        return False

    def _batch(self, numbers: np.ndarray, size: int) -> Batch:
        """A micro-batch of `size` of the rows `numbers`, repeated if there are fewer."""
        return self.task.collate([self.rows[int(number)] for number in np.resize(numbers, size)])

    def _pass(self, batch: Batch, last: bool = False) -> None:
        with gradient_sync(self.model, last=last):
            loss = self.task.loss_sum(self.model, to_device(batch, self.device))
            (loss / max(1, batch.targets)).backward()

    def _passes(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._pass(batch)

    def _step(self) -> None:
        """Clip, and step the optimizer, with the gradients that are there."""
        parameters = [weight for weight in self.model.parameters() if weight.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, self.plan.recipe.optim.clip or float("inf"))
        kept = [weight.grad for weight in parameters]
        self.optimizer.set(self.plan.step(0))
        self.optimizer.step(torch.zeros((), device=self.device))
        for weight, gradient in zip(parameters, kept, strict=True):
            weight.grad = gradient

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def about(parts: Parts, name: str) -> dict[str, str]:
    """What a probe depends on, for people; `name`: of the recipe."""
    recipe, machine = parts.plan.recipe, machine_of(parts.accelerator, parts.model)
    weights = sum(weight.numel() for weight in parts.model.parameters())
    threads = f" with {counted(machine['threads'], 'thread')}" if machine["device"] == "cpu" else ""
    processes = f" × {machine['processes']} ({machine['parallel']})" if machine["processes"] > 1 else ""
    return {
        "recipe": name,
        "model": f"{short(weights)} weights",
        "length": f"{recipe.data.sequence_length:,} tokens",
        "precision": precision_of(recipe),
        "attention": recipe.model.attention,
        "compiled": "compiled" if recipe.model.compile else "not compiled",
        "optimizer": recipe.optim.name,
        "device": f"{machine['device']}{threads}{processes}",
        "versions": f"torch {machine['torch']}, transformers {machine['transformers']}",
    }
