"""The loop: it does what the plan says, step by step, and yields a frozen `Step` for each.

One window of micro-batches is one optimizer step. Each micro-batch backpropagates loss_sum × world_size ÷ N, where N
counts the targets of the whole window over all ranks, so that the gradient is that of the mean over all targets however
the window is split (DDP and FSDP2 average over ranks).
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from hfbsz.data.batches import Batch, Windows, evaluation_batches
from hfbsz.data.rows import Rows
from hfbsz.errors import TrainingError
from hfbsz.optimizers import Optimizers
from hfbsz.plan import Decisions, Plan, PlannedStep
from hfbsz.record import Step
from hfbsz.sharding import exchange, release, whole
from hfbsz.tasks import Task


class Collector(Protocol):
    """Measures gradients inside a logged step; what `after_window` returns goes into the Step."""

    def before_window(self, model: Any, planned: PlannedStep) -> None: ...

    def after_micro(self, index: int, batch: Batch) -> None: ...

    def after_window(self) -> Mapping[str, float]: ...


class Agreement:
    """Sums whole numbers over all ranks on the host, so that no device has to wait."""

    def __init__(self) -> None:
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        own = self.world_size > 1 and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if own else None

    def sum(self, *values: int) -> list[int]:
        if self.world_size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(message, group=self._group)
        return message.tolist()


def seed_of(seed: int, clock: int, rank: int, micro: int) -> int:
    """The generator's seed of one micro-batch: so no state of a generator has to be kept."""
    text = f"{seed}/{clock}/{rank}/{micro}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def train(
    plan: Plan,
    model: Any,
    optimizer: Optimizers,
    task: Task,
    windows: Windows,
    accelerator: Any,
    *,
    collectors: Sequence[Collector] = (),
    decisions: Decisions = (),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Train to the end of the plan's budget, or until `stop()` is true on any rank; yields every optimizer step.

    `model` is prepared by `accelerator`, or sharded. `decisions` may grow between two steps (adaptive ramps); all ranks
    must hold the same. Raises TrainingError for a window without targets and for non-finite gradients in
    `optim.nonfinite_limit` steps in a row (told at the next logged step). The clock advances on a skipped step.
    """
    state = _State(plan, model, optimizer, task, windows, accelerator, Agreement())
    clock = step = 0
    while clock < plan.total:
        started = time.perf_counter()
        planned = plan.step(clock, decisions)
        batches = windows.window(planned)
        counts = [sum(batch.targets for batch in batches), sum(batch.tokens for batch in batches), int(stop())]
        targets, tokens, stopping = state.agreement.sum(*counts)
        if stopping:
            return
        if targets == 0:
            raise TrainingError(
                f"the step at clock {clock} holds no targets: {state.rows_of(planned.clock, planned.next_clock)}"
            )
        step, clock = step + 1, planned.next_clock
        logged = plan.due(plan.recipe.log.every, step, planned.clock, clock)
        collected = state.update(planned, batches, targets, collectors if logged else ())
        yield state.finish(planned, step, targets, tokens, logged, collected, started)


class _State:
    """What the loop carries from step to step, on the device where reading it would cost a synchronisation."""

    def __init__(
        self,
        plan: Plan,
        model: Any,
        optimizer: Any,
        task: Task,
        windows: Windows,
        accelerator: Any,
        agreement: Agreement,
    ) -> None:
        self.plan, self.model, self.optimizer, self.task = plan, model, optimizer, task
        self.windows, self.accelerator, self.agreement = windows, accelerator, agreement
        self.device = accelerator.device
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)  # this rank's sum since the last log
        self.skipped = torch.zeros((), device=self.device)
        self.streak = torch.zeros((), device=self.device)  # non-finite steps in a row
        self.worst = torch.zeros((), device=self.device)  # the longest streak, and the clock that ended it
        self.worst_clock = torch.zeros((), dtype=torch.int64, device=self.device)
        self.norm = torch.zeros((), device=self.device)
        self.tokens = 0
        self.seconds = 0.0
        self.since_log = [0, 0, 0, 0.0]  # targets, tokens, steps, seconds

    def update(
        self, planned: PlannedStep, batches: Sequence[Batch], targets: int, collectors: Sequence[Collector]
    ) -> Mapping[str, float]:
        """One optimizer step over this rank's micro-batches of a window."""
        self.model.train()
        self.optimizer.set(planned)
        for collector in collectors:
            collector.before_window(self.model, planned)
        for index, batch in enumerate(batches):
            torch.manual_seed(seed_of(self.plan.recipe.seed, planned.clock, self.windows.rank, index))
            with exchange(self.model, last=index == len(batches) - 1):
                loss = self.task.loss_sum(self.model, to_device(batch, self.device))
                (loss * (self.agreement.world_size / targets)).backward()
            self.loss += loss.detach()
            for collector in collectors:
                collector.after_micro(index, batch)
        collected = {name: value for collector in collectors for name, value in collector.after_window().items()}
        self._apply(planned)
        return collected

    def _apply(self, planned: PlannedStep) -> None:
        """Clip, and step unless the gradient is not finite."""
        clip = self.plan.recipe.optim.clip
        self.norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if clip is None else clip))
        found = (~torch.isfinite(self.norm)).float()
        self.optimizer.step(found)
        self.skipped += found
        self.streak = (self.streak + found) * found
        self.worst_clock = torch.where(self.streak > self.worst, planned.next_clock, self.worst_clock)
        self.worst = torch.maximum(self.worst, self.streak)

    def finish(
        self,
        planned: PlannedStep,
        step: int,
        targets: int,
        tokens: int,
        logged: bool,
        collected: Mapping,
        started: float,
    ) -> Step:
        """The Step of what was done; only a logged one waits for the device."""
        self.tokens += tokens
        measured = self._read(targets) if logged else {}
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        totals = [total + more for total, more in zip(self.since_log, (targets, tokens, 1, elapsed), strict=True)]
        if logged:
            measured |= {
                "loss": measured["loss"] / totals[0],
                "tokens_per_second": totals[1] / totals[3],
                "step_seconds": totals[3] / totals[2],
            }
        self.since_log = [0, 0, 0, 0.0] if logged else totals
        return Step(
            step=step,
            clock=planned.next_clock,
            tokens=self.tokens,
            seconds=self.seconds,
            global_batch=planned.global_batch,
            micro_batch=planned.micro_batch,
            accumulation=planned.accumulation,
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
        """Bring the device's sums to the host, and end the run where steps failed in a row."""
        total = self.accelerator.reduce(self.loss, reduction="sum") if self.agreement.world_size > 1 else self.loss
        loss, norm, skipped, worst = (float(value) for value in (total, self.norm, self.skipped, self.worst))
        self.loss = torch.zeros_like(self.loss)
        limit = self.plan.recipe.optim.nonfinite_limit
        if worst >= limit:
            end = int(self.worst_clock)
            start = max(0, end - int(worst) * self.plan.batch_at(end - 1))
            raise TrainingError(
                f"{int(worst)} steps in a row had gradients that are not finite (loss sum {loss:g}): "
                f"{self.rows_of(start, end)}: lower optim.lr, lengthen schedule.warmup, or look "
                "at these rows"
            )
        return {"loss": loss, "grad_norm": norm, "skipped": int(skipped)}

    def rows_of(self, start: int, end: int) -> str:
        """The rows between two clocks, for a person to look at."""
        numbers = self.windows.row_numbers(start, end).tolist()
        shown = ", ".join(map(str, numbers[:16])) + (", …" if len(numbers) > 16 else "")
        return f"clock {start} to {end}, training rows {shown}"


@dataclass(frozen=True)
class Sums:
    """What an evaluation added up over all ranks."""

    nll: float  # nats
    targets: int
    text_bytes: float  # bytes of the text that the targets stand for
    seconds: float


@torch.no_grad()
def evaluate(model: Any, task: Task, rows: Rows, numbers: Sequence[int], micro_batch: int, accelerator: Any) -> Sums:
    """ΣNLL and Σtargets over the rows `numbers`, the same for every micro-batch and world size up to rounding."""
    started = time.perf_counter()
    model = accelerator.unwrap_model(model, keep_torch_compile=True)
    model.eval()
    nll = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    targets = 0
    rank, world_size = accelerator.process_index, accelerator.num_processes
    for batch in evaluation_batches(rows, numbers, micro_batch, task.collate, rank, world_size):
        nll += task.loss_sum(model, to_device(batch, accelerator.device))
        targets += batch.targets
    release(model)
    counted = torch.tensor(targets, dtype=torch.int64, device=accelerator.device)
    if world_size > 1:
        nll, counted = accelerator.reduce(nll, reduction="sum"), accelerator.reduce(counted, reduction="sum")
    model.train()
    seconds = time.perf_counter() - started
    return Sums(float(nll), int(counted), float(rows.text_bytes[list(numbers)].sum()), seconds)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, copied without waiting where that is a GPU."""
    if device.type == "cpu":
        return batch
    inputs = {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.inputs.items()}
    labels = batch.labels.pin_memory().to(device, non_blocking=True)
    return Batch(inputs, labels, batch.targets, batch.tokens)
