"""Critical sharpness during training: the learning rate at which the step that was made would have raised the loss."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from hfbsz.data.batches import Batch
from hfbsz.data.rows import Rows, sample
from hfbsz.measure.hessian import NotFinite, Objective, Tensors, largest_eigenvalues
from hfbsz.measure.sharpness import adaptive_sam
from hfbsz.plan.plan import Plan, PlannedStep
from hfbsz.records.metrics import ADAPTIVE_RADIUS
from hfbsz.records.record import Clock
from hfbsz.train.device import free, is_out_of_memory, to_device
from hfbsz.train.fsdp import local, release
from hfbsz.train.loop import Collector
from hfbsz.train.tasks import Task

_PASSES = 6  # of the line search
_STRIDE = 4.0  # until it has a bracket
_LEAST_ROWS = 4  # of a device
_FORWARD = 0.4  # time of a row in a forward pass of an evaluation ÷ in a training step, as measured on a CPU
_SHARE = 0.02  # of the training that measurements may take


def bracket(loss_at: Callable[[float], float], start: float = 1.0) -> tuple[float, float]:
    """The two factors between which a step along an update begins to raise the loss, by a line search of six passes.

    `loss_at(factor)`: the loss where the weights have moved by `factor` times the update; at 0, before it. The search
    multiplies or divides `start` by four until the loss rises or no longer does, and then bisects on a logarithmic
    scale. The lower factor is 0 where no step that was tried lowers the loss, the upper infinite where none raises it.
    """
    base = loss_at(0.0)

    def rises(factor: float) -> bool:
        return not loss_at(factor) < base  # a loss that is not finite counts as risen

    low, high, factor = 0.0, math.inf, start
    for _ in range(_PASSES):
        low, high = (low, factor) if rises(factor) else (factor, high)
        factor = high / _STRIDE if not low else low * _STRIDE if math.isinf(high) else math.sqrt(low * high)
    return low, high


class SharpnessCollector(Collector):
    """The sharpness of a run, measured at logged steps at the interval `measure.sharpness.every`; equal on all ranks.

    The critical learning rate η_c is the least one at which the step's update, made longer or shorter, raises the loss
    of rows of the step itself, in evaluation mode; 2 ÷ η_c is the critical sharpness (arXiv 2601.16979), of a quadratic
    under gradient descent its curvature along the gradient. The update is everything that the step changes: momentum,
    clipping and weight decay included. With further evaluation sets (`measure.sharpness.sets`), it is also found for
    their loss along the same update: the relative critical sharpness.

    The method `hessian` adds, before the update, the largest eigenvalue of the Hessian of the same loss and the rise in
    the worst case of an adaptive ball (measure/sharpness). It needs second derivatives: no `model.compile`, no FSDP2.

    Two more copies of the weights are kept while a step is measured. Where a single process runs out of memory in it,
    the run goes on without the measurement.
    """

    def __init__(
        self,
        plan: Plan,
        model: Any,
        task: Task,
        accelerator: Any,
        sets: Mapping[str, Rows],
        saved: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`model`: prepared by the accelerator, or sharded; `sets`: further evaluation sets by name; `saved`: the
        result of `to_dict` when a run resumes; `warn`: told once if a measurement runs out of memory."""
        self.plan, self.task, saved = plan, task, saved or {}
        self.options, self.world_size = plan.recipe.measure.sharpness, accelerator.num_processes
        self.device = accelerator.device
        self.model = accelerator.unwrap_model(model, keep_torch_compile=True)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.last = Clock(*saved.get("last", ()))  # before the step of the newest measurement
        self.factors = dict(saved.get("factors", {}))  # by set, where the next search starts
        self.rows = self.options.rows or self._affordable()
        self.sets = {name: self._part(rows, accelerator.process_index) for name, rows in sets.items()}
        self.before: list[torch.Tensor] = []  # the weights before the update, on this rank
        self.without_memory, self._warn = False, warn

    def _affordable(self) -> int:
        """Rows of a device whose forward passes take at most a share of the training."""
        measurements = max(1, self.plan.intervals(self.options.every, self.plan.steps, self.plan.total))
        passes = (1 + _PASSES) * (1 + len(self.options.sets)) * measurements * self.world_size
        return max(_LEAST_ROWS, int(_SHARE / _FORWARD * self.plan.total / passes))

    def _part(self, rows: Rows, rank: int) -> Batch:
        """This rank's rows of an evaluation set, evenly spread."""
        tokens = self.plan.recipe.batch.micro_tokens
        fitting = max(1, tokens // int(rows.lengths.max())) if tokens else self.plan.micro_batch or self.rows
        numbers = sample(len(rows), min(self.rows, fitting) * self.world_size)[rank :: self.world_size]
        return self.task.collate([rows[int(number)] for number in numbers] or [None])

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data, for a checkpoint; equal on all ranks."""
        return {"last": list(self.last), "factors": dict(self.factors)}

    def due(self, at: Clock) -> bool:
        """Whether an interval of `measure.sharpness.every` has ended since the newest measurement."""
        every, intervals = self.options.every, self.plan.intervals
        ended = intervals(every, at.step, at.sequences) > intervals(every, self.last.step, self.last.sequences)
        return ended and not self.without_memory

    def before_window(self, model: Any, planned: PlannedStep, at: Clock) -> None:
        """Start the measurement of a step."""
        self.last, self.rate = at, planned.learning_rate

    def after_micro(self, index: int, batch: Batch) -> None:
        """Keep rows of the first micro-batch."""
        if index == 0:
            self.batch = batch.first(self.rows)

    def after_window(self) -> dict[str, float]:
        """Measure the curvature at the weights before the update, and keep them."""
        return self._unless_out_of_memory(self._before_update)

    def after_update(self) -> dict[str, float]:
        """Find the critical rates along the update; returns those that the searches found, by metric name."""
        values = self._unless_out_of_memory(self._along_update)
        self.before = []
        return values

    def _unless_out_of_memory(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The values of a measurement; none from the one on in which a single process runs out of memory."""
        if self.without_memory:
            return {}
        try:
            return measure()
        except (MemoryError, RuntimeError) as problem:
            if self.world_size > 1 or not is_out_of_memory(problem):
                raise
        self.without_memory, self.before = True, []
        free(self.device)
        self._warn("measuring the sharpness ran out of memory: the run goes on without it (measure.sharpness.rows)")
        return {}

    def _before_update(self) -> dict[str, float]:
        values = self._curvature() if self.options.method == "hessian" else {}
        self.before = [local(weight.detach()).clone() for weight in self.trained]
        return values

    @torch.no_grad()
    def _along_update(self) -> dict[str, float]:
        weights = [local(weight.detach()) for weight in self.trained]
        changes = [(weight != one).any() for weight, one in zip(weights, self.before, strict=True)]
        changed = torch.stack(changes).any().int()
        if self.world_size > 1:
            dist.all_reduce(changed, op=dist.ReduceOp.MAX)
        if not changed:
            return {}  # the step was skipped
        after, values = [weight.clone() for weight in weights], dict[str, float]()
        self.model.eval()
        try:
            for name, batch in {"": self.batch, **self.sets}.items():
                values |= self._search(name, batch, weights, after)
        finally:
            for weight, one in zip(weights, after, strict=True):
                weight.copy_(one)
            self.model.train()
        return values

    def _search(self, name: str, batch: Batch, weights: Tensors, after: Tensors) -> dict[str, float]:
        """The critical rate of the step for one loss."""
        on_device = to_device(batch, self.device)

        def loss_at(factor: float) -> float:
            for weight, start, end in zip(weights, self.before, after, strict=True):
                torch.lerp(start, end, factor, out=weight)
            total = self.task.evaluate_batch(self.model, on_device).nll.double().sum()
            release(self.model)
            if self.world_size > 1:
                dist.all_reduce(total)
            return float(total)

        low, high = bracket(loss_at, self.factors.get(name, 1.0))
        found = low > 0 and math.isfinite(high)
        self.factors[name] = math.sqrt(low * high) if found else low or high
        if not found or not self.rate:
            return {}
        factor = self.factors[name]
        prefix = f"sharpness/{name}/" if name else "sharpness/"
        return {
            f"{prefix}critical": 2 / (factor * self.rate),
            f"{prefix}critical_rate": factor * self.rate,
            f"{prefix}rate_ratio": 1 / factor,
        }

    def _curvature(self) -> dict[str, float]:
        task = copy.copy(self.task)
        task.head = None  # type: ignore[attr-defined]  # a fused loss has no second derivatives
        batches = [to_device(self.batch, self.device)]
        try:
            objective = Objective(self.model, task.loss_sum, batches, self.world_size)
            return {
                "sharpness/eigenvalue": largest_eigenvalues(objective)[0],
                "sharpness/adaptive_sam": adaptive_sam(objective, ADAPTIVE_RADIUS),
            }
        except NotFinite:
            return {}  # the step will be skipped
        finally:
            self.model.train()
