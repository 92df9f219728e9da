"""`Step` and `Reading`: what the loop passes to records and reports. The names of metrics are in records/metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Clock(NamedTuple):
    """A moment of a run, on the axes of its figures."""

    step: int = 0  # optimizer steps since the start
    sequences: int = 0  # trained on since the start; the schedule and the ramp follow it
    tokens: int = 0  # input tokens since the start, without padding
    seconds: float = 0.0  # training time since the start, without evaluations
    device_seconds: float = 0.0  # the same, times the devices that trained


@dataclass(frozen=True)
class Step:
    """One optimizer step. Counts are over all devices. Values that need a synchronization with the device are None on
    steps that are not logged."""

    at: Clock  # after the step
    global_batch: int
    micro_batch: int  # with batch.micro_tokens: the largest micro-batch of this rank
    accumulation: int  # micro-batches of a device in this step
    ratio: float  # κ
    learning_rate: float
    weight_decay: float
    step_tokens: int
    targets: int
    logged: bool = False
    loss: float | None = None  # nats per target, over the steps since the last logged one
    grad_norm: float | None = None
    skipped: int | None = None  # steps skipped since the start
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)  # parts of step_seconds by name, such as `forward`
    padding: float | None = (
        None  # share of padding among the positions since the last logged step; None: rows are packed
    )
    collected: Mapping[str, float] = field(default_factory=dict)  # measurements of the collectors, by metric name

    def reading(self, rows: int, peak_memory_bytes: int, peak_tokens_per_second: float | None = None) -> "Reading":
        """The record of a logged step, without metrics that are None; `rows`: number of training rows (one epoch),
        `peak_tokens_per_second`: at the peak FLOP/s of all devices."""
        speed, peak = self.tokens_per_second, peak_tokens_per_second
        values = {
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/weight_decay": self.weight_decay,
            "train/epoch": self.at.sequences / rows,
            "train/skipped": self.skipped,
            "batch/global": self.global_batch,
            "batch/micro": self.micro_batch,
            "batch/accumulation": self.accumulation,
            "batch/tokens": self.step_tokens,
            "batch/padding": self.padding,
            "batch/ratio": self.ratio,
            "perf/tokens_per_second": self.tokens_per_second,
            "perf/step_seconds": self.step_seconds,
            "perf/mfu": speed / peak if speed is not None and peak else None,
            **{f"perf/{part}_seconds": seconds for part, seconds in self.parts.items()},
            "perf/peak_memory_bytes": peak_memory_bytes,
            **self.collected,
        }
        return Reading("step", self.at, {name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class Reading:
    """The measurements at one moment of a run; `values` maps metric names to numbers."""

    event: str  # step | eval (fixed parts) | final (whole sets, of the saved model) | measure | lifecycle
    at: Clock
    values: Mapping[str, float | str] = field(default_factory=dict)

    def flat(self) -> dict[str, float | str]:
        """The event, the axes and the values in one flat dictionary."""
        axes = {
            "train/global_step": self.at.step,
            "train/sequences": self.at.sequences,
            "train/num_input_tokens_seen": self.at.tokens,
            "train/seconds": round(self.at.seconds, 4),
            "train/device_seconds": round(self.at.device_seconds, 4),
        }
        return {"event": self.event, **axes, **self.values}

    def to_dict(self) -> dict[str, Any]:
        """The reading as plain data, for a checkpoint."""
        step, clock, tokens, seconds, device_seconds = self.at
        axes = {"step": step, "clock": clock, "tokens": tokens, "seconds": seconds, "device_seconds": device_seconds}
        return {"event": self.event, **axes, "values": dict(self.values)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Reading":
        """A reading from the result of `to_dict`."""
        seconds = data["seconds"]
        at = Clock(data["step"], data["clock"], data["tokens"], seconds, data.get("device_seconds", seconds))
        return cls(data["event"], at, data["values"])
