"""Measurement of the gradient noise scale during training, as a collector of the loop (train/loop)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from hfbsz.data.batches import Batch
from hfbsz.measure.dual_norms import DualNorm
from hfbsz.measure.gradient_norms import MicroBatchNorms, SequenceNorms, dual_square, squares_of_gradients
from hfbsz.measure.noise_scale import DualMeasurement, Measurement, NoiseScale
from hfbsz.plan.plan import Plan, PlannedStep
from hfbsz.records.metrics import LAYERS, NOISE_LEAST, NOISE_SHARE
from hfbsz.records.noise import NoiseSummary, noise_of
from hfbsz.records.record import Clock
from hfbsz.train.fsdp import is_sharded
from hfbsz.train.loop import Collector

_WITH_DUAL_NORM = ("adamw", "schedule_free", "muon")  # optimizers whose steps have a fixed length in a norm, about


class NoiseCollector(Collector):
    """The noise scale of a run, measured at logged steps at the interval `measure.noise.every`; equal on all ranks.

    The methods of `measure.noise.method`:

    - two_batch compares the gradients of the micro-batches of all ranks with the gradient of the global batch, over all
      trainable weights.
    - per_sequence compares the gradients of single sequences with the gradient of the global batch, over the weights of
      the normalization layers. It needs neither accumulation nor several ranks. Its result is proportional to that of
      two_batch (Gray et al. 2024); the factor is recorded if both are known.
    - auto: both.

    Where a process has two micro-batches of as many rows, two_batch also measures the noise scale in the dual norm of
    AdamW or Muon (measure/dual_norms), except under FSDP2. It is experimental: see `DualMeasurement`.

    The unit is a row, even if rows have different numbers of targets: the gradient of a row is that of its summed loss
    ÷ the mean number of targets of a row.
    """

    def __init__(
        self,
        plan: Plan,
        model: Any,
        world_size: int,
        saved: Mapping[str, Any] | None = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        """`model`: prepared by the accelerator, or sharded; `saved`: the result of `to_dict` when a run resumes;
        `optimizers`: those of the run, without which nothing is measured in their norm."""
        noise, saved = plan.recipe.measure.noise, saved or {}
        self.plan, self.world_size = plan, world_size
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        has_dual = (
            noise.dual and bool(optimizers) and plan.recipe.optim.name in _WITH_DUAL_NORM and not is_sharded(model)
        )
        self.dual_norm = DualNorm(optimizers) if has_dual else None
        self.micro_norms = None
        if noise.method in ("auto", "two_batch"):
            self.micro_norms = MicroBatchNorms(model, self.dual_norm)
        per_sequence = noise.method in ("auto", "per_sequence") and not plan.recipe.model.compile
        self.sequence_norms = SequenceNorms(model) if per_sequence else None
        memory = max(NOISE_LEAST, NOISE_SHARE * plan.intervals(noise.every, plan.steps, plan.total))
        self.last = Clock(*saved.get("last", ()))  # before the step of the newest measurement
        self.two_batch = NoiseScale(memory, saved.get("two_batch"))
        self.per_sequence = NoiseScale(memory, saved.get("per_sequence"))
        self.dual = NoiseScale(memory, saved.get("dual"))
        names = self.sequence_norms.layers if self.sequence_norms is not None else ()
        states = saved.get("layers", {})
        self.layers = {name: NoiseScale(memory, states.get(name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data, for a checkpoint; equal on all ranks."""
        return {
            "last": list(self.last),
            "two_batch": self.two_batch.to_dict(),
            "per_sequence": self.per_sequence.to_dict(),
            "dual": self.dual.to_dict(),
            "layers": {name: scale.to_dict() for name, scale in self.layers.items()},
        }

    def due(self, at: Clock) -> bool:
        """Whether an interval of `measure.noise.every` has ended since the newest measurement."""
        every = self.plan.recipe.measure.noise.every
        return self.plan.intervals(every, at.step, at.sequences) > self.plan.intervals(
            every, self.last.step, self.last.sequences
        )

    def before_window(self, model: Any, planned: PlannedStep, at: Clock) -> None:
        """Start the measurement of a step that begins at `at`."""
        self.last = at
        self.rows = planned.next_clock - planned.clock
        device = self.trained[0].device
        single = planned.accumulation is not None and planned.accumulation * self.world_size == 1
        self.measures_micro = self.micro_norms is not None and not single
        self.micro = torch.zeros(3, dtype=torch.float64, device=device)  # Σ|g|², Σ 1 ÷ rows, number of micro-batches
        self.dual_noise = torch.zeros(2, dtype=torch.float64, device=device)  # Σ N², number of ranks
        self.first_rows = 0
        self.sequences = torch.zeros(len(self.layers), dtype=torch.float64, device=device)  # by layer, Σ|g|² over rows
        if self.micro_norms is not None and self.measures_micro:
            self.micro_norms.open(with_difference=planned.accumulation != 1)
        if self.sequence_norms is not None:
            self.sequence_norms.open()

    def after_micro(self, index: int, batch: Batch) -> None:
        """Add the norms of one micro-batch and of its sequences, after its backward pass."""
        rows = len(batch.labels) if batch.targets else 0
        factor = (
            self.rows / self.world_size
        ) ** 2  # converts a share of the mean over the step to the mean over one row
        if self.micro_norms is not None and self.measures_micro:
            squares = self.micro_norms.take().double()
            if rows:
                one = torch.ones_like(squares)
                self.micro += torch.stack([squares * (factor / rows**2), one / rows, one])
            if index == 0:
                self.first_rows = rows
            elif index == 1 and rows and rows == self.first_rows and self.dual_norm is not None:
                squares = self.micro_norms.take_difference().double()
                self.dual_noise += torch.stack([squares * (factor / rows**2) * rows / 2, torch.ones_like(squares)])
        if self.sequence_norms is not None:
            squares_by_layer, unknown = (
                self.sequence_norms.take(rows, batch.sequences_per_row),
                self.sequences.new_tensor(torch.nan),
            )
            sums = [
                squares_by_layer[name].double().sum() if name in squares_by_layer else unknown for name in self.layers
            ]
            if rows and sums:
                self.sequences += torch.stack(sums) * factor

    def after_window(self) -> dict[str, float]:
        """End the measurement of a step and add it to the estimates; returns the estimates by metric name. All ranks
        call it."""
        for norms in (self.micro_norms, self.sequence_norms):
            if norms is not None:
                norms.close()
        if self.world_size > 1:
            dist.all_reduce(self.micro)
            dist.all_reduce(self.sequences)
            dist.all_reduce(self.dual_noise)
        if self.measures_micro:
            total, inverse, count = self.micro.tolist()
            large = float(squares_of_gradients(self.trained).double().sum())
            self.two_batch.add(Measurement(total / count, large, inverse / count, 1 / self.rows))
            noise, ranks = self.dual_noise.tolist()
            if self.dual_norm is not None and ranks:
                large = dual_square(self.trained, self.dual_norm)
                self.dual.add(DualMeasurement(noise / ranks, large, 1 / self.rows))
        if self.sequence_norms is not None:
            self._add_layers(self.sequence_norms)
        return self.values()

    def cancel(self) -> None:
        """Drop the measurement of a step."""
        for norms in (self.micro_norms, self.sequence_norms):
            if norms is not None:
                norms.close()

    def _add_layers(self, norms: SequenceNorms) -> None:
        parts = [(name, weight) for name, layer in norms.layers.items() for weight in layer.parameters(recurse=False)]
        if not parts:
            return
        squares = squares_of_gradients([weight for _, weight in parts]).tolist()
        large = dict.fromkeys(norms.layers, 0.0)
        for (name, weight), value in zip(parts, squares, strict=True):
            large[name] += value * weight.requires_grad
        measured = {
            name: Measurement(small, large[name], 1.0, 1 / self.rows)
            for name, small in zip(norms.layers, (self.sequences / self.rows).tolist(), strict=True)
            if math.isfinite(small)
        }
        for name, measurement in measured.items():
            self.layers[name].add(measurement)
        small, total = (sum(getattr(one, size) for one in measured.values()) for size in ("small", "large"))
        self.per_sequence.add(Measurement(small, total, 1.0, 1 / self.rows))

    def summary(self) -> NoiseSummary | None:
        """The newest estimate, with the batch of its step; None if there is no estimate."""
        batch = self.plan.batch_at(max(0, self.last.sequences - 1))
        return noise_of([{**self.values(), "batch/global": batch}])

    def values(self) -> dict[str, float]:
        """The estimates by metric name, without those that the measurements do not determine."""
        scale, norm_scale = self.two_batch.scale, self.per_sequence.scale
        values = {
            "noise/scale": scale,
            "noise/scale_error": self.two_batch.error,
            "noise/scale_tokens": scale and scale * self.plan.tokens_per_row,
            "noise/variance": self.two_batch.noise,
            "noise/gradient_square": self.two_batch.signal,
            "noise/dual_scale": self.dual.scale,
            "noise/dual_scale_error": self.dual.error,
            "noise/norm_scale": norm_scale,
            "noise/norm_scale_error": self.per_sequence.error,
            "noise/norm_ratio": scale / norm_scale if scale is not None and norm_scale is not None else None,
            **{f"{LAYERS}{name}": layer.scale for name, layer in self.layers.items()},
        }
        return {name: value for name, value in values.items() if value is not None}
