"""The training loop: carries out the plan step by step, and yields a frozen `Step` for each optimizer step.

One window of micro-batches is one optimizer step. Each micro-batch backpropagates loss_sum × world_size ÷ N, where N
counts the targets of the window over all ranks (DDP and FSDP2 average over ranks). So the gradient is that of the mean
over all targets, for any split of the window.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from hfbsz.data.batches import Batch, Windows
from hfbsz.errors import Diverged, TrainingError
from hfbsz.plan.plan import Plan, PlannedStep
from hfbsz.records.record import Clock, Step
from hfbsz.system.signals import AGREEMENT_SECONDS, waiting
from hfbsz.train.device import free, is_out_of_memory, keep_freed_memory, to_device
from hfbsz.train.fsdp import full_tensor, gradient_sync, weight_not_finite
from hfbsz.train.optimizers import Optimizers
from hfbsz.train.progress import NOTHING, Progress
from hfbsz.train.step_timer import StepTimer
from hfbsz.train.tasks import Task


class Collector:
    """Measures gradients and the update of a logged step at which it is due, on every rank; a base class.

    It may read gradients and weights and communicate (every rank makes the same calls in the same order), but whenever
    a method returns, gradients, weights and the state of random number generators are as they were: collectors do not
    change the results of a run, bit for bit.
    """

    def due(self, at: Clock) -> bool:
        """Whether it measures the logged step that ends `at`, if the run has got there; the same on every rank."""
        raise NotImplementedError

    def before_window(self, model: Any, planned: PlannedStep, at: Clock) -> None:
        """Called before the first forward pass of the window; the step ends `at` (its tokens and seconds are not
        counted yet). `model` is prepared by the accelerator (DDP) or sharded (FSDP2); every `.grad` is None."""

    def after_micro(self, index: int, batch: Batch) -> None:
        """Called after the backward pass of micro-batch `index` (from 0) of this rank; `batch` is on the host.

        A weight's `.grad` is the sum over the micro-batches so far, each weighted by world_size ÷ targets of the
        window. Before the last micro-batch it is local to this rank (under FSDP2, of full weights, not of shards);
        after the last, it is the mean over ranks: the gradient of the mean loss over all targets, in nats per target.
        """

    def after_window(self) -> Mapping[str, float]:
        """Called when the gradient of the window is complete, before clipping and the optimizer's step. Returns values
        for `Step.collected` by metric name (`records/metrics`); those of rank 0 are recorded."""
        return {}

    def after_update(self) -> Mapping[str, float]:
        """Called after the optimizer's step, in which the weights change unless the gradient was not finite. Returns
        values as `after_window` does."""
        return {}

    def cancel(self) -> None:
        """Called instead of `after_window` where the step ran out of memory: it is repeated without a measurement."""


class Agreement:
    """Sums integers over all ranks on the host, without a synchronization of the device."""

    def __init__(self) -> None:
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        needs_group = self.world_size > 1 and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if needs_group else None

    def sum(self, *values: int) -> list[int]:
        """The sum of each value over all ranks; every rank calls it."""
        if self.world_size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.int64)
        with waiting(AGREEMENT_SECONDS):
            dist.all_reduce(message, group=self._group)
        return message.tolist()


def seed_of(seed: int, clock: int, rank: int, micro: int) -> int:
    """The random seed of one micro-batch (63 bits); with it, checkpoints need no generator state."""
    text = f"{seed}/{clock}/{rank}/{micro}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def within(planned: PlannedStep, limit: int | None) -> PlannedStep:
    """The step with micro-batches of at most `limit` rows (None: no limit), which divide those of the plan."""
    micro = planned.micro_batch
    if limit is None or micro is None or planned.accumulation is None or micro <= limit:
        return planned
    smaller = max(size for size in range(1, limit + 1) if micro % size == 0)
    return replace(planned, micro_batch=smaller, accumulation=planned.accumulation * (micro // smaller))


def train(
    plan: Plan,
    model: Any,
    optimizer: Optimizers,
    task: Task,
    windows: Windows,
    accelerator: Any,
    *,
    progress: Progress | None = None,
    collectors: Sequence[Collector] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Train to the end of the plan's budget, or until `stop()` is true on any rank; yields every optimizer step.

    `model` is prepared by `accelerator`, or sharded. Training resumes from `progress`, and updates it. The clock
    advances on a skipped step. Raises TrainingError for a window without targets, and Diverged for non-finite gradients
    in `optim.nonfinite_limit` steps in a row (at the next logged step).
    """
    keep_freed_memory(accelerator.device)
    progress = progress or Progress(accelerator.device)
    state = _State(plan, model, optimizer, task, windows, accelerator, Agreement(), progress)
    single, slowest = state.agreement.world_size == 1, math.inf
    while progress.at.sequences < plan.total:
        started = time.perf_counter()
        state.timer.start_step()
        planned = within(plan.step(progress.at.sequences, progress.decisions), progress.micro_limit)
        batches = windows.window(planned)
        state.timer.start(None)
        counts = [sum(getattr(batch, name) for batch in batches) for name in ("targets", "tokens", "positions")]
        *counts, stopping = state.agreement.sum(*counts, int(stop()))
        if stopping:
            return
        if counts[0] == 0:
            raise TrainingError(
                f"the step at clock {planned.clock} holds no targets: "
                f"{state.rows_of(planned.clock, planned.next_clock)}"
            )
        progress.at = progress.at._replace(step=progress.at.step + 1, sequences=planned.next_clock)
        logged = plan.due(plan.recipe.log.every, progress.at.step, planned.clock, planned.next_clock)
        with waiting(math.inf if single else AGREEMENT_SECONDS + 2 * slowest):
            measuring = [collector for collector in collectors if logged and collector.due(progress.at)]
            planned, batches, collected = state.update(planned, batches, counts[0], measuring)
            step = state.finish(planned, batches, counts, logged, collected, started)
        seconds = time.perf_counter() - started
        slowest = seconds if math.isinf(slowest) else max(slowest, seconds)
        yield step


class _State:
    """The arguments of `train`, and the parts of one step."""

    def __init__(
        self,
        plan: Plan,
        model: Any,
        optimizer: Any,
        task: Task,
        windows: Windows,
        accelerator: Any,
        agreement: Agreement,
        progress: Progress,
    ) -> None:
        self.plan, self.model, self.optimizer, self.task = plan, model, optimizer, task
        self.windows, self.accelerator, self.agreement, self.progress = windows, accelerator, agreement, progress
        self.device, self.timer = accelerator.device, StepTimer(accelerator.device)
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]

    def update(
        self, planned: PlannedStep, batches: list[Batch], targets: int, collectors: Sequence[Collector]
    ) -> tuple[PlannedStep, list[Batch], Mapping[str, float]]:
        """One optimizer step over this rank's micro-batches of a window.

        Where a single process runs out of memory in a forward or backward pass, the window is repeated from clean
        gradients with smaller micro-batches, without a measurement, and later steps keep to them: the batch is the
        same. Returns the step and the micro-batches as they were carried out, and what was measured.
        """
        self.model.train()
        self.optimizer.set(planned)
        loss = self.progress.loss.clone()
        while True:
            try:
                self._accumulate(planned, batches, targets, collectors)
                break
            except (MemoryError, RuntimeError) as problem:
                micro = planned.micro_batch or 1
                if self.agreement.world_size > 1 or micro == 1 or not is_out_of_memory(problem):
                    raise
            for collector in collectors:
                collector.cancel()
            collectors = ()
            self.progress.loss = loss.clone()
            self.optimizer.clear()
            free(self.device)
            self.progress.micro_limit = micro // 2
            planned = within(planned, self.progress.micro_limit)
            batches = self.windows.window(planned)
        collected = {name: value for collector in collectors for name, value in collector.after_window().items()}
        self.timer.start("optimizer")
        self._apply(planned)
        if collectors:
            self.timer.start("measurement")
        for collector in collectors:
            collected |= collector.after_update()
        self.timer.start(None)
        return planned, batches, collected

    def _accumulate(
        self, planned: PlannedStep, batches: Sequence[Batch], targets: int, collectors: Sequence[Collector]
    ) -> None:
        """Forward and backward passes over this rank's micro-batches of a window."""
        if collectors:
            self.timer.start("measurement")
        for collector in collectors:
            collector.before_window(self.model, planned, self.progress.at)
        for index, batch in enumerate(batches):
            torch.manual_seed(seed_of(self.plan.recipe.seed, planned.clock, self.windows.rank, index))
            with gradient_sync(self.model, last=index == len(batches) - 1):
                self.timer.start("forward")
                loss = self.task.loss_sum(self.model, to_device(batch, self.device))
                self.timer.start("backward")
                (loss * (self.agreement.world_size / targets)).backward()
            self.progress.loss += loss.detach()
            if collectors:
                self.timer.start("measurement")
            for collector in collectors:
                collector.after_micro(index, batch)

    def _apply(self, planned: PlannedStep) -> None:
        """Clip the gradient; step the optimizer if the gradient is finite."""
        progress, clip = self.progress, self.plan.recipe.optim.clip
        progress.norm = full_tensor(
            torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if clip is None else clip)
        )
        nonfinite = (~torch.isfinite(progress.norm)).float()
        self.optimizer.step(nonfinite)
        progress.skipped += nonfinite
        progress.streak = (progress.streak + nonfinite) * nonfinite
        progress.worst_clock = torch.where(progress.streak > progress.worst, planned.next_clock, progress.worst_clock)
        progress.worst = torch.maximum(progress.worst, progress.streak)

    def finish(
        self,
        planned: PlannedStep,
        batches: Sequence[Batch],
        counts: Sequence[int],
        logged: bool,
        collected: Mapping,
        started: float,
    ) -> Step:
        """Update the progress, and return the Step; only a logged step waits for the device. `counts` are the targets,
        tokens and positions of the window over all ranks."""
        progress, (targets, tokens, _) = self.progress, counts
        measured = self._read(targets) if logged else {}
        elapsed = time.perf_counter() - started
        at = progress.at
        progress.at = at._replace(
            tokens=at.tokens + tokens,
            seconds=at.seconds + elapsed,
            device_seconds=at.device_seconds + elapsed * self.agreement.world_size,
        )
        totals = [total + count for total, count in zip(progress.since_log, (*counts, 1, elapsed), strict=True)]
        if logged:
            measured |= {
                "loss": measured["loss"] / totals[0],
                "tokens_per_second": totals[1] / totals[4],
                "step_seconds": totals[4] / totals[3],
                "parts": self.timer.take(),
                "padding": None if self.plan.recipe.data.pack else 1 - totals[1] / totals[2],
            }
        progress.since_log = list(NOTHING) if logged else totals
        return Step(
            at=progress.at,
            global_batch=planned.global_batch,
            micro_batch=planned.micro_batch or max(len(batch.labels) for batch in batches),
            accumulation=planned.accumulation or len(batches),
            ratio=planned.ratio,
            learning_rate=planned.learning_rate,
            weight_decay=planned.weight_decay,
            step_tokens=tokens,
            targets=targets,
            logged=logged,
            collected=collected,
            **measured,
        )

    def _read(self, targets: int) -> dict[str, Any]:
        """Copy the sums from the device to the host. Raises Diverged if too many steps in a row were not finite."""
        progress = self.progress
        total = (
            self.accelerator.reduce(progress.loss, reduction="sum") if self.agreement.world_size > 1 else progress.loss
        )
        loss, norm, skipped, worst = (
            float(tensor) for tensor in (total, progress.norm, progress.skipped, progress.worst)
        )
        progress.loss = torch.zeros_like(progress.loss)
        limit = self.plan.recipe.optim.nonfinite_limit
        if worst >= limit:
            end = int(progress.worst_clock)
            start = max(0, end - int(worst) * self.plan.batch_at(end - 1))
            values = f"weights ({name})" if (name := weight_not_finite(self.model)) else "gradients"
            raise Diverged(
                f"{int(worst)} steps in a row had {values} that are not finite (loss sum {loss:g}): "
                f"{self.rows_of(start, end)}: lower optim.lr, lengthen schedule.warmup, or inspect these rows"
            )
        return {"loss": loss, "grad_norm": norm, "skipped": int(skipped)}

    def rows_of(self, start: int, end: int) -> str:
        """The training rows between two clocks, as text for an error message."""
        numbers = self.windows.row_numbers(start, end).tolist()
        shown = ", ".join(map(str, numbers[:16])) + (", …" if len(numbers) > 16 else "")
        return f"clock {start} to {end}, training rows {shown}"
