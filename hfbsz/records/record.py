"""All that flows downstream from the loop: `Step` and `Reading`, and the one table of metric names."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# What one evaluation measures: name: (unit, what it is).
MEASURES: dict[str, tuple[str, str]] = {
    "loss": ("nats/target", "loss, ΣNLL ÷ Σtargets"),
    "perplexity": ("", "exp(loss)"),
    "bits_per_byte": ("bits/byte", "ΣNLL ÷ ln 2 ÷ bytes of the text predicted"),
    "accuracy": ("", "share of rows whose likeliest label is right"),
    "macro_f1": ("", "mean of the labels' F1"),
    "matthews": ("", "Matthews correlation of labels, −1 to 1"),
    "calibration_error": ("", "mean distance of confidence and accuracy, over 15 bins of confidence"),
    "extractable": ("", "share of rows whose targets are the likeliest tokens, 16 in a row after the first 16"),
    "rows": ("rows", "rows evaluated"),
    "set_rows": ("rows", "rows of the set that these are of"),
    "targets": ("targets", "targets counted"),
    "seconds": ("s", "time of the evaluation"),
}
# What it is measured on; `<set>/…` behind the prefix: the same of a further evaluation set (`eval/<set>/loss`).
PARTS: dict[str, str] = {
    "eval": "fixed part of validation (eval.rows), the same rows at every evaluation",
    "full": "validation, or rows spread over it (eval.full), once, with the weights that the saved model holds",
    "last": "all of validation, with the last weights, where the saved model holds those of the best evaluation",
}
# name: (unit, what it is). Names follow transformers' Trainer where it has one.
METRICS: dict[str, tuple[str, str]] = {
    "train/loss": ("nats/target", "training loss, mean over the targets of all steps since the last record"),
    "train/grad_norm": ("", "gradient norm of the step before clipping"),
    "train/learning_rate": ("", "learning rate of the step"),
    "train/weight_decay": ("", "weight decay of the step (AdamW's λ)"),
    "train/epoch": ("epochs", "passes over the training rows"),
    "train/global_step": ("steps", "optimizer steps"),
    "train/num_input_tokens_seen": ("tokens", "input tokens seen, padding excluded"),
    "train/sequences": ("sequences", "the clock: sequences consumed"),
    "train/skipped": ("steps", "steps skipped for non-finite gradients since the start"),
    "train/seconds": ("s", "training time since the start, evaluation excluded"),
    "batch/global": ("sequences", "global batch = micro-batch × accumulation × processes"),
    "batch/micro": ("sequences", "sequences of one forward pass on one device (batch.micro_tokens: rank 0's largest)"),
    "batch/accumulation": ("passes", "forward passes per optimizer step on one device (batch.micro_tokens: on rank 0)"),
    "batch/tokens": ("tokens", "input tokens of the step, padding excluded"),
    "batch/padding": ("", "share of padding among the positions computed since the last record"),
    "batch/ratio": ("", "κ: global batch ÷ reference batch"),
    "perf/tokens_per_second": ("tokens/s", "training speed over all devices since the last record"),
    "perf/step_seconds": ("s", "mean time of a step since the last record"),
    "perf/peak_memory_bytes": ("B", "peak memory: of the device, or of the process on a CPU"),
    "perf/checkpoint_seconds": ("s", "time that training stood still for a checkpoint"),
    "perf/checkpoint_bytes": ("B", "size of the checkpoint"),
    **{
        f"{part}/{name}": (unit, f"{what}; {where}")
        for part, where in PARTS.items()
        for name, (unit, what) in MEASURES.items()
    },
    "model/step": ("steps", "step of the weights that the saved model holds"),
    "overfit/train_loss": ("nats/target", "loss on a fixed part of the training rows, in evaluation mode"),
    "overfit/gap": ("nats/target", "validation loss − training loss, each on its fixed part, in evaluation mode"),
    "overfit/change": ("nats/target", "validation loss of the fixed part − that before training; above 0: worse"),
    "overfit/rise": ("nats/target", "validation loss of the fixed part − its lowest so far, before training included"),
    "overfit/best_step": ("steps", "step of the lowest validation loss so far; 0: before training, nothing is better"),
    "overfit/onset_step": (
        "steps",
        "step of the best evaluation, once a later one is surely worse while the training rows fit better",
    ),
    "overfit/train_extractable": ("", "eval/extractable on the fixed part of the training rows"),
}
CLOCK = ("train/num_input_tokens_seen", "train/sequences", "train/global_step", "train/seconds")


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


def unit(name: str) -> str:
    """The unit of a metric; `eval/<set>/loss` has that of `eval/loss`."""
    parts = name.split("/")
    return METRICS.get(f"{parts[0]}/{parts[-1]}", ("", ""))[0]
