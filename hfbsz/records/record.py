"""What flows from the loop to records and reports: `Step` and `Reading`. Names of metrics: records/metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One optimizer step as the loop did it. Counts are over all devices; what costs a synchronisation is None
    on a step that is not logged."""

    step: int  # optimizer steps since the start, this one included
    clock: int  # sequences consumed, this step's included
    tokens: int  # input tokens seen, this step's included
    seconds: float  # training time since the start, s
    global_batch: int
    micro_batch: int  # with batch.micro_tokens the largest of this rank, and how many it made
    accumulation: int
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
    padding: float | None = None  # share of the positions computed since the last logged step; None: rows are packed
    collected: Mapping[str, float] = field(default_factory=dict)  # what collectors measured on this step

    def reading(self, rows: int, peak_memory_bytes: int) -> "Reading":
        """The record of a logged step; `rows` are the training rows (an epoch)."""
        values = {
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/weight_decay": self.weight_decay,
            "train/epoch": self.clock / rows,
            "train/skipped": self.skipped,
            "batch/global": self.global_batch,
            "batch/micro": self.micro_batch,
            "batch/accumulation": self.accumulation,
            "batch/tokens": self.step_tokens,
            "batch/padding": self.padding,
            "batch/ratio": self.ratio,
            "perf/tokens_per_second": self.tokens_per_second,
            "perf/step_seconds": self.step_seconds,
            "perf/peak_memory_bytes": peak_memory_bytes,
            **self.collected,
        }
        kept = {name: value for name, value in values.items() if value is not None}
        return Reading("step", self.step, self.clock, self.tokens, self.seconds, kept)


@dataclass(frozen=True)
class Reading:
    """What was measured at one moment of a run: `values` maps metric names to numbers."""

    event: str  # step | eval (fixed parts) | final (whole sets, of the saved model) | measure | lifecycle
    step: int
    clock: int  # sequences
    tokens: int
    seconds: float  # training time, s
    values: Mapping[str, float | str] = field(default_factory=dict)

    def flat(self) -> dict[str, float | str]:
        """One flat object: the four axes and the values."""
        axes = {
            "train/global_step": self.step,
            "train/sequences": self.clock,
            "train/num_input_tokens_seen": self.tokens,
            "train/seconds": round(self.seconds, 4),
        }
        return {"event": self.event, **axes, **self.values}
