"""The one table of what a run measures. Headings, units, formats, axis labels, W&B panels and docs/metrics.md are made
from it: a new metric is one line here.

Names follow the Trainer of transformers where it has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

QUALITY, AT_END, BATCH, THROUGHPUT, NOISE, SHARPNESS, OVERFITTING, SCORES = (
    "Quality over tokens",
    "Quality at the end",
    "Batch and learning rate",
    "Throughput",
    "Noise",
    "Sharpness",
    "Overfitting",
    "Scores on tasks",
)  # sections of a dashboard


@dataclass(frozen=True)
class Metric:
    """What a number is and how it is shown."""

    heading: str  # of a column or an axis
    unit: str  # empty: no unit
    definition: str
    format: str = ".4g"  # of `format(value, …)`
    range: str = ""  # of a number without a unit: what a reader compares it with
    section: str = ""  # of a dashboard that draws it; empty: none
    logarithmic: bool = False  # its axis

    @property
    def label(self) -> str:
        """Heading and unit, as on an axis."""
        return f"{self.heading} ({self.unit or 'no unit'})"

    @property
    def unit_or_range(self) -> str:
        """What stands under a heading of a table."""
        return self.unit or self.range or "no unit"

    def show(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:{self.format}} {self.unit}".rstrip()


ADAPTIVE_RADIUS = 0.5  # of adaptive SAM, in runs and tables
NOISE_SHARE, NOISE_LEAST = 0.05, 20  # measurements that an estimate of the noise scale averages: a share of the run's

# What one evaluation measures.
MEASURES: dict[str, Metric] = {
    "loss": Metric(
        "loss",
        "nats/target",
        "ΣNLL ÷ Σtargets; a preference pair is one target: NLL = −log of the probability that its chosen answer is "
        "preferred, ln 2 before training",
        ".4f",
    ),
    "accuracy": Metric("accuracy", "", "share of rows whose most likely label is right", ".3f", "share of rows"),
    "macro_f1": Metric("macro F1", "", "mean of the labels' F1 scores", ".3f", "0 to 1"),
    "matthews": Metric(
        "Matthews correlation", "", "Matthews correlation coefficient of labels", ".3f", "−1 to 1, 0 is chance"
    ),
    "calibration_error": Metric(
        "calibration error",
        "",
        "expected calibration error: mean |confidence − accuracy| over 15 bins of confidence",
        ".3f",
        "0 is best",
    ),
    "preference_accuracy": Metric(
        "preference accuracy",
        "",
        "share of pairs whose chosen answer has the higher reward; before training all rewards are 0 up to rounding, "
        "and it says nothing",
        ".3f",
        "share of pairs",
    ),
    "reward_margin": Metric(
        "reward margin",
        "nats",
        "mean reward of the chosen answers − that of the rejected ones; the reward of an answer is β × the change of "
        "its log-probability since the start (÷ its targets with preference.length_normalized)",
        "+.4f",
    ),
    "chosen_reward": Metric(
        "reward of the chosen",
        "nats",
        "mean reward of the chosen answers; below 0, they became less likely than at the start",
        "+.4f",
    ),
    "bits_per_byte": Metric(
        "bits per byte",
        "bits/byte",
        "ΣNLL ÷ ln 2 ÷ UTF-8 bytes of the text predicted: comparable across tokenizers",
        ".4f",
    ),
    "perplexity": Metric("perplexity", "", "exp(loss)", ".4g", "exp(loss)", logarithmic=True),
    "extractable": Metric(
        "extractable",
        "",
        "share of rows whose 17th to 32nd targets are all the most likely tokens (extractable memorization: Carlini et "
        "al. 2023)",
        ".3f",
        "share of rows",
    ),
    "rows": Metric("rows", "rows", "rows evaluated", ",.0f"),
    "set_rows": Metric("rows of the set", "rows", "rows of the set that the evaluated rows are taken from", ",.0f"),
    "targets": Metric("targets", "targets", "targets evaluated", ",.0f"),
    "seconds": Metric("evaluation time", "s", "wall time of the evaluation", ".1f"),
}
# What it is measured on; `<set>/…` behind the prefix: the same of a further evaluation set (`eval/<set>/loss`).
PARTS: dict[str, str] = {
    "eval": "fixed part of validation (eval.rows), the same rows at every evaluation",
    "full": "validation, or rows spread evenly over it (eval.full), measured once, with the weights of the saved model",
    "last": "all of validation, with the last weights, where the saved model holds those of the best evaluation",
}
_SECTIONS = {
    **{f"eval/{name}": QUALITY for name in ("loss", "bits_per_byte", "perplexity")},
    **{f"full/{name}": AT_END for name in ("loss", "bits_per_byte", "accuracy", "preference_accuracy")},
    "last/loss": AT_END,
    **{f"eval/{name}": OVERFITTING for name in ("accuracy", "preference_accuracy", "reward_margin", "extractable")},
}


# What a step spends its time on, in the order of a step: `perf/<part>_seconds`.
PARTS_OF_A_STEP: dict[str, Metric] = {
    part: Metric(heading, "s", f"mean time of a step for {what}, since the last record", ".3g")
    for part, (heading, what) in {
        "data": ("data wait", "reading and collating rows"),
        "forward": ("forward", "forward passes, with the gradient of the logits if the loss is fused"),
        "backward": ("backward", "backward passes, with the averaging of gradients over the processes"),
        "measurement": ("measurement", "measurements such as the noise scale"),
        "optimizer": ("optimizer", "clipping and the optimizer"),
    }.items()
}


# Scores of lm-evaluation-harness, `harness/<task>/<measure>`; others have their own name as heading.
HARNESS: dict[str, Metric] = {
    "acc": Metric("accuracy", "", "share of examples whose right choice is the likeliest", ".3f", "share of examples"),
    "acc_norm": Metric(
        "accuracy by length",
        "",
        "share of examples whose right choice has the highest log-likelihood ÷ length",
        ".3f",
        "share of examples",
    ),
    "exact_match": Metric(
        "exact match", "", "share of examples whose generated answer is the right one", ".3f", "share of examples"
    ),
    "perplexity": Metric("perplexity", "", "exp(loss) of the right continuations", ".4g", "exp(loss)"),
    "word_perplexity": Metric("perplexity of words", "", "exp(ΣNLL ÷ words)", ".4g", "exp(ΣNLL ÷ words)"),
    "byte_perplexity": Metric("perplexity of bytes", "", "exp(ΣNLL ÷ bytes)", ".4g", "exp(ΣNLL ÷ bytes)"),
    "bits_per_byte": Metric("bits per byte", "bits/byte", "ΣNLL ÷ ln 2 ÷ bytes", ".4f"),
    "examples": Metric("examples", "examples", "examples of the task that were scored", ",.0f"),
    "seconds": Metric("scoring time", "s", "wall time of scoring all tasks", ".1f"),
}
_ERROR = "_stderr"  # ends the name of a score's standard error


def _of_evaluations() -> dict[str, Metric]:
    """The measures of each part."""
    return {
        f"{part}/{name}": replace(
            measure, definition=f"{measure.definition}; {rows}", section=_SECTIONS.get(f"{part}/{name}", "")
        )
        for part, rows in PARTS.items()
        for name, measure in MEASURES.items()
    }


METRICS: dict[str, Metric] = {
    "train/loss": Metric(
        "training loss", "nats/target", "mean over the targets of all steps since the last record", ".4f", "", QUALITY
    ),
    "train/grad_norm": Metric(
        "gradient norm", "", "ℓ2 norm of the gradient of the step before clipping", ".4g", "", NOISE
    ),
    "train/learning_rate": Metric("learning rate", "", "learning rate of the step", ".3g", "", BATCH),
    "train/weight_decay": Metric("weight decay", "", "weight decay of the step (AdamW's λ)", ".3g", "", BATCH),
    "train/epoch": Metric("epochs", "epochs", "passes over the training rows", ".2f", "", OVERFITTING),
    "train/global_step": Metric("optimizer steps", "steps", "optimizer steps since the start", ",.0f"),
    "train/num_input_tokens_seen": Metric("input tokens", "tokens", "input tokens seen, without padding", ",.0f"),
    "train/sequences": Metric("sequences", "sequences", "sequences seen: the clock of schedule and ramp", ",.0f"),
    "train/skipped": Metric(
        "skipped steps",
        "steps",
        "steps skipped since the start because their gradient was not finite",
        ",.0f",
        "",
        NOISE,
    ),
    "train/seconds": Metric("training time", "s", "training time since the start, without evaluations", ".1f"),
    "train/device_seconds": Metric(
        "device time", "s", "training time × devices, since the start, without evaluations", ".1f"
    ),
    "batch/global": Metric(
        "global batch", "sequences", "micro-batch × accumulation × processes", ",.0f", "", BATCH, True
    ),
    "batch/micro": Metric(
        "micro-batch",
        "sequences",
        "sequences of one forward pass on one device (batch.micro_tokens: rank 0's largest)",
        ",.0f",
    ),
    "batch/accumulation": Metric(
        "accumulation",
        "passes",
        "forward passes per optimizer step on one device (batch.micro_tokens: on rank 0)",
        ",.0f",
        "",
        BATCH,
        True,
    ),
    "batch/tokens": Metric("batch", "tokens", "input tokens of the step, without padding", ",.0f"),
    "batch/padding": Metric(
        "padding",
        "",
        "share of padding among the positions computed since the last record",
        ".3f",
        "share of positions",
    ),
    "batch/ratio": Metric("batch ratio κ", "", "global batch ÷ reference batch", ".4g", "", BATCH, True),
    "perf/tokens_per_second": Metric(
        "speed", "tokens/s", "training speed over all devices since the last record", ",.0f", "", THROUGHPUT
    ),
    "perf/step_seconds": Metric("step time", "s", "mean time of a step since the last record", ".3g", "", THROUGHPUT),
    "perf/mfu": Metric(
        "utilization",
        "",
        "model FLOP/s ÷ peak FLOP/s of the devices (Chowdhery et al. 2022), since the last record; that of a CPU is "
        "measured at the start",
        ".1%",
        "share of the peak",
        THROUGHPUT,
    ),
    **{f"perf/{part}_seconds": metric for part, metric in PARTS_OF_A_STEP.items()},
    "perf/peak_memory_bytes": Metric(
        "peak memory", "B", "peak memory of the device, or of the process on a CPU", ",.0f", "", THROUGHPUT
    ),
    "perf/checkpoint_seconds": Metric(
        "checkpoint time", "s", "time that training stopped to save a checkpoint", ".3g", "", THROUGHPUT
    ),
    "perf/checkpoint_bytes": Metric("checkpoint size", "B", "size of the checkpoint", ",.0f", "", THROUGHPUT),
    "noise/scale": Metric(
        "noise scale",
        "sequences",
        "gradient noise scale tr Σ ÷ |G|² of all trained weights, from micro-batches (McCandlish et al. 2018), "
        f"averaged over the last {NOISE_SHARE:.0%} of the measurements of the run (at least {NOISE_LEAST})",
        ",.0f",
        "",
        NOISE,
        True,
    ),
    "noise/scale_error": Metric("error of the noise scale", "sequences", "standard error of noise/scale", ",.0f"),
    "noise/scale_tokens": Metric(
        "noise scale in tokens", "tokens", "noise/scale × tokens of a row", ",.0f", "", NOISE, True
    ),
    "noise/variance": Metric(
        "gradient variance", "", "tr Σ: variance of the gradient of one sequence, summed over weights", ".4g"
    ),
    "noise/gradient_square": Metric(
        "squared gradient", "", "|G|²: squared norm of the expected gradient, without the noise of the batch", ".4g"
    ),
    "noise/dual_scale": Metric(
        "noise scale in the optimizer's norm",
        "sequences",
        "experimental: the noise scale in the norm that is dual to the steps of AdamW or Muon, ℓ1 or, for the matrices "
        "of Muon, about the nuclear norm (after Naganuma et al. 2026)",
        ",.0f",
        "",
        NOISE,
        True,
    ),
    "noise/dual_scale_error": Metric(
        "error of the noise scale in the optimizer's norm", "sequences", "standard error of noise/dual_scale", ",.0f"
    ),
    "noise/norm_scale": Metric(
        "noise scale of the norms",
        "sequences",
        "tr Σ ÷ |G|² of the weights of normalization layers, from single sequences (Gray et al. 2024)",
        ",.0f",
        "",
        NOISE,
        True,
    ),
    "noise/norm_scale_error": Metric(
        "error of the noise scale of the norms", "sequences", "standard error of noise/norm_scale", ",.0f"
    ),
    "noise/norm_ratio": Metric("ratio of the noise scales", "", "noise/scale ÷ noise/norm_scale", ".3g", "", NOISE),
    "sharpness/critical": Metric(
        "critical sharpness",
        "1/learning rate",
        "2 ÷ the critical learning rate: the curvature that the optimizer's update meets (Kalra et al. 2026)",
        ".4g",
        "",
        SHARPNESS,
    ),
    "sharpness/critical_rate": Metric(
        "critical learning rate",
        "",
        "the least learning rate at which the step raises the loss of rows of the step, in evaluation mode",
        ".3g",
        "",
        SHARPNESS,
    ),
    "sharpness/rate_ratio": Metric(
        "rate ÷ critical rate",
        "",
        "learning rate ÷ critical learning rate: above 1, the step raised the loss of its own rows",
        ".3f",
        "1: the edge of stability",
        SHARPNESS,
    ),
    "sharpness/eigenvalue": Metric(
        "largest eigenvalue",
        "",
        "largest eigenvalue of the Hessian of the loss of the same rows, at the weights before the step",
        ".4g",
        "",
        SHARPNESS,
    ),
    "sharpness/adaptive_sam": Metric(
        "adaptive SAM",
        "nats/target",
        f"rise of that loss in the worst case of an adaptive ball of radius {ADAPTIVE_RADIUS:g} (Kwon et al. 2021)",
        ".3g",
        "",
        SHARPNESS,
    ),
    **_of_evaluations(),
    "model/step": Metric("step of the weights", "steps", "optimizer step of the weights in the saved model", ",.0f"),
    "overfit/train_loss": Metric(
        "loss on training rows",
        "nats/target",
        "loss on a fixed part of the training rows, in evaluation mode",
        ".4f",
        "",
        OVERFITTING,
    ),
    "overfit/gap": Metric(
        "generalization gap",
        "nats/target",
        "validation loss − loss on training rows, each on its fixed part, in evaluation mode",
        "+.4f",
        "",
        OVERFITTING,
    ),
    "overfit/change": Metric(
        "change since the start",
        "nats/target",
        "validation loss of the fixed part − the same before training; above 0: worse",
        "+.4f",
        "",
        OVERFITTING,
    ),
    "overfit/rise": Metric(
        "rise above the best",
        "nats/target",
        "validation loss of the fixed part − its lowest so far, the evaluation before training included",
        "+.4f",
        "",
        OVERFITTING,
    ),
    "overfit/best_step": Metric(
        "best step", "steps", "step of the lowest validation loss so far; 0: before training", ",.0f", "", OVERFITTING
    ),
    "overfit/onset_step": Metric(
        "onset of overfitting",
        "steps",
        "step of the best evaluation, once a later one is significantly worse while the training rows fit better",
        ",.0f",
        "",
        OVERFITTING,
    ),
    "overfit/train_extractable": Metric(
        "extractable training rows",
        "",
        "eval/extractable on the fixed part of the training rows",
        ".3f",
        "share of rows",
        OVERFITTING,
    ),
    **{f"harness/{name}": entry for name, entry in HARNESS.items()},
}
LAYERS = "noise/layer/"  # noise scale of single normalization layers, in sequences: `noise/layer/<layer>`
CLOCK = (
    "train/num_input_tokens_seen",
    "train/sequences",
    "train/global_step",
    "train/seconds",
    "train/device_seconds",
)


def metric(name: str) -> Metric:
    """The entry of a metric; `eval/<set>/loss` has that of `eval/loss`, and a score's standard error that of the score
    with another heading. A metric that is not in the table (of a collector, or named in `eval.metrics`) has its own
    name as heading, and no unit."""
    if name.startswith(LAYERS):
        layer = name.removeprefix(LAYERS)
        return Metric(f"noise scale of {layer}", "sequences", f"tr Σ ÷ |G|² of the weights of {layer}", ",.0f")
    prefix, _, last = name.rpartition("/")
    if prefix.startswith("harness") and last.endswith(_ERROR):
        score = metric(name.removesuffix(_ERROR))
        return replace(score, heading=f"error of the {score.heading}", definition=f"standard error: {score.definition}")
    return METRICS.get(f"{prefix.split('/')[0]}/{last}", Metric(last.replace("_", " "), "", last))


def section(title: str) -> Mapping[str, Metric]:
    """The metrics of a section of a dashboard, in the order of the table."""
    return {name: entry for name, entry in METRICS.items() if entry.section == title}


_HEAD = """# Metrics

<!-- written by scripts/schema.py from hfbsz/records/metrics.py -->

What a run writes to `records.jsonl` and sends to Weights & Biases. Every record holds the axes
`train/num_input_tokens_seen`, `train/sequences`, `train/global_step`, `train/seconds` and `train/device_seconds`. A
further evaluation set has its own name in its metrics: `eval/<set>/loss`, `full/<set>/loss`. `noise/layer/<layer>` is
the noise scale of a single normalization layer, in sequences; `sharpness/<set>/critical` the critical sharpness of the
loss of an evaluation set (`measure.sharpness.sets`) along the same updates. A score of lm-evaluation-harness has its
task in its name, `harness/<task>/acc`, and its standard error is `harness/<task>/acc_stderr`.
"""


def metrics_page() -> str:
    """The table as a Markdown page."""
    lines = [_HEAD]
    for prefix in dict.fromkeys(name.split("/")[0] for name in METRICS):
        lines += [f"## `{prefix}/`", ""]
        if prefix in PARTS:
            lines += [f"Measured on: {PARTS[prefix]}.", ""]
        lines += ["| metric | unit | definition |", "| --- | --- | --- |"]
        for name, entry in METRICS.items():
            if name.startswith(f"{prefix}/"):
                definition = (
                    MEASURES[name.removeprefix(f"{prefix}/")].definition if prefix in PARTS else entry.definition
                )
                lines.append(f"| `{name}` | {entry.unit or '–'} | {definition.replace('|', '&#124;')} |")
        lines.append("")
    return "\n".join(lines)
