"""How a recipe trains: batch, optimizer, scaling, schedule; evaluation, logging, checkpoints."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, Tag, WithJsonSchema, model_validator

from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.data_section import EvalSet
from hfbsz.recipe.law_name import LawName
from hfbsz.recipe.section import (
    AmountField,
    LawField,
    NumberOrLaw,
    Section,
    amount_or_law,
    none_from_off,
    off_from_false,
    validate_micro_max,
    validate_ramp,
)

Alert = Literal["overfitting", "batch", "diverged", "preempted", "failed"]
FINAL_SHARE = 0.5  # rows of the final evaluation ÷ sequences of the run: about a sixth of the training time


class Batch(Section):
    """The global batch, its ramp, and how it is split into micro-batches."""

    size: (
        Annotated[Annotated[AmountField, Tag("number")] | LawField, NumberOrLaw, BeforeValidator(amount_or_law)] | None
    ) = Field(
        None,
        description="global batch size, the largest of a ramp (sequences or tokens), or the estimate of a scaling law: "
        "law:power_lines, law:step_law, law:deepseek",
    )
    start: AmountField | None = Field(None, description="ramp: the first global batch size (sequences or tokens)")
    ramp: Annotated[str | None, BeforeValidator(validate_ramp)] = Field(
        None,
        description="how the global batch grows during the run: '0:16 200ktok:32' (threshold:batch …), doubling:75% or "
        "linear:50% (over the first 75% or 50% of the run), linear:8,64,50% (from 8 to 64), or seesaw:2 (grows by this "
        "factor where the schedule would divide the learning rate by it); noise or noise:0.5 (doubles while the batch "
        "is at most this share of the noise scale that the run measures), or 'critical:0:24 400ktok:60' (doubles where "
        "it reaches the critical batch, measured before at these clocks); null: constant",
    )
    lr: Literal["follow", "held"] = Field(
        "follow", description="learning rate during a ramp: follow: rescaled with the batch; held: not rescaled"
    )
    micro_max: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(validate_micro_max)] = Field(
        8,
        description="most sequences per forward pass on one device (micro-batch size); auto: the knee of a probe "
        "before the first step (hfbsz probe)",
    )
    micro_tokens: int | None = Field(
        None, ge=1, description="most tokens per forward pass on one device, padding included, instead of micro_max"
    )
    by_length: bool = Field(
        False,
        description="batches of rows of similar length: blocks of 16 batches are sorted by length and cut into batches "
        "in random order",
    )


class Optim(Section):
    """The optimizer and its hyperparameters at the reference batch size (`scaling.reference`)."""

    name: Literal["adamw", "sgd", "lamb", "muon", "adafactor", "schedule_free"] = Field(
        "adamw", description="optimizer; muon: Muon for hidden weight matrices, AdamW for all other parameters"
    )
    lr: Annotated[
        Annotated[float, Field(gt=0), Tag("number")] | LawField, NumberOrLaw, BeforeValidator(LawName.parse)
    ] = Field(
        3e-3,
        description="peak learning rate at scaling.reference, or the estimate of a scaling law: law:step_law, "
        "law:deepseek",
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="Adam's β1 and β2 at scaling.reference (adamw, lamb, schedule_free, AdamW within muon)"
    )
    eps: float = Field(1e-8, gt=0, description="Adam's ε at scaling.reference")
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of sgd and muon (muon: Nesterov)")
    weight_decay: float = Field(
        0.1, ge=0, description="weight decay λ at scaling.reference; decoupled (sgd: added to the gradient)"
    )
    clip: float | None = Field(1.0, gt=0, description="maximum gradient norm for clipping; null: no clipping")
    average: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="evaluate and save an average of the weights: their mean age as a fraction of the training so far "
        "(0.5: the plain mean over all sequences), the same at every batch; null: the trained weights",
    )
    nonfinite_limit: int = Field(
        5, ge=1, description="stop the run after this many consecutive steps with non-finite gradients"
    )


class Preference(Section):
    """The loss of preference pairs: DPO (Rafailov et al. 2023), with the initial weights as its reference."""

    beta: float = Field(
        0.1,
        gt=0,
        description="β of DPO: the reward of an answer is β × the change of its log-probability since the start; the "
        "larger, the less the model moves from its initial weights",
    )
    length_normalized: bool = Field(
        False,
        description="divide the log-probability of an answer by its number of targets (Lambert et al. 2024, with β=5), "
        "so that long answers do not weigh more",
    )


class Scaling(Section):
    """How the optimizer's hyperparameters change from the reference batch size to the batch size of the run."""

    reference: AmountField | None = Field(
        None,
        description="batch size at which the optim fields were tuned (tokens or sequences); null: the first batch of "
        "this run",
    )
    rule: Literal["none", "linear", "sqrt", "power", "sde", "noise", "surge"] | None = Field(
        None,
        description="how the learning rate scales with the batch size; null: the optimizer's default (adamw: sqrt, "
        "sgd: linear, …)",
    )
    exponent: float | None = Field(
        None,
        gt=0,
        le=1,
        description="exponent of the rules power (null: 0.31) and noise (null: 1 for sgd, 0.5 for the others)",
    )
    noise_scale: AmountField | None = Field(
        None, description="gradient noise scale B_n for the rules noise and surge (sequences or tokens)"
    )
    beta2: Literal["keep", "half_life"] = Field(
        "keep", description="keep: β2 is unchanged; half_life: β2 keeps its half-life in tokens"
    )
    weight_decay: Literal["keep", "timescale"] = Field(
        "timescale", description="keep: λ is unchanged; timescale: λ is rescaled so that B/(ηλ) stays constant"
    )
    warmup: Literal["keep", "steps"] = Field(
        "keep",
        description="keep: schedule.warmup is unchanged; steps: as many warmup steps as at the reference batch, so its "
        "share of the run grows with κ = batch ÷ reference",
    )


class Schedule(Section):
    """The learning-rate schedule."""

    warmup: AmountField = Field(Amount(2, "%"), description="length of the linear learning-rate warmup from 0")
    shape: Literal["constant", "linear", "cosine", "quarter_cosine", "wsd"] = Field(
        "cosine", description="learning-rate decay after the warmup; wsd: constant, then a decay at the end"
    )
    floor: float = Field(0.1, ge=0, le=1, description="final learning rate as a fraction of the peak")
    decay: AmountField = Field(Amount(20, "%"), description="wsd: length of the final decay")


def _globs(value: object) -> object:
    return value if isinstance(value, Mapping | EvalSet) else {"files": value}


EvalSetField = Annotated[EvalSet, BeforeValidator(_globs, json_schema_input_type=str | list[str] | EvalSet)]


class Harness(Section):
    """Scores on tasks of lm-evaluation-harness."""

    tasks: list[str] = Field(
        [],
        description="tasks of lm-evaluation-harness (`pip install 'hfbsz[harness]'`) on which the saved model is "
        "scored: names of its tasks; python_next_line, which needs no network; or, on the command line only, the path "
        "of a YAML task file (./x.yaml), which may run code on this machine",
    )
    every: AmountField | None = Field(
        None, description="interval between scorings during training; null: only the saved model, at the end"
    )
    limit: int | None = Field(None, ge=1, description="examples of each task, the first ones; null: all")

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if not self.tasks and (self.every is not None or self.limit is not None):
            raise ValueError(
                "harness.every and harness.limit are of tasks: name some, such as eval.harness.tasks=[python_next_line]"
            )
        return self


class Eval(Section):
    """Evaluation: when, on which rows, with which metrics, and early stopping."""

    every: AmountField = Field(
        Amount(10, "%"), description="interval between evaluations on a fixed part of the validation rows"
    )
    rows: int = Field(128, ge=1, description="number of rows in the fixed part")
    full: bool | None = Field(
        None,
        description="rows of the final evaluation: true: all; false: only the fixed part; null: as many as "
        f"{FINAL_SHARE:.0%} of the sequences of the run (about a sixth of its time), evenly spaced, or all if there "
        "are fewer",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="rows per evaluation pass on one device; null: batch.micro_max, or as many as fit into "
        "batch.micro_tokens",
    )
    watch: bool | None = Field(
        None,
        description="also evaluate a fixed part of the training rows, to detect overfitting; null: if training rows "
        "are seen more than once",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="early stopping: stop after this many evaluations without improvement; null: never",
    )
    target: float | None = Field(
        None,
        gt=0,
        description="stop at the first evaluation whose validation loss is at most this, in nats/target; null: never",
    )
    metrics: list[str] = Field(
        [],
        description="additional metrics of the `evaluate` library (classification), by Hub name or, on the command "
        "line only, by the path of a script (./x.py, a/b); a metric is code that runs on this machine",
    )
    sets: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], EvalSetField] = Field(
        {},
        description="additional evaluation sets, as NAME: globs, or NAME: a mapping with the fields "
        f"{', '.join(EvalSet.model_fields)}; columns that are not set are those of data, null unsets one",
    )
    harness: Harness = Harness()


class Noise(Section):
    """The gradient noise scale: how large the batch may be before a larger one stops to pay."""

    every: AmountField = Field(
        Amount(10, "steps"), description="interval between measurements, each at a logged step (log.every)"
    )
    method: Annotated[Literal["auto", "two_batch", "per_sequence", "off"], BeforeValidator(off_from_false)] = Field(
        "auto",
        description="two_batch: micro-batches against the whole batch, over all trained weights; per_sequence: single "
        "sequences against the whole batch, over the weights of normalization layers; auto: both, where possible",
    )
    dual: bool = Field(
        True,
        description="measure it in the norm of the optimizer's steps too (experimental; two_batch or auto): a measured "
        "step keeps the gradient of one more micro-batch in memory",
    )


class Sharpness(Section):
    """The sharpness of the loss along the optimizer's updates: how far the learning rate is from one that fails."""

    every: AmountField = Field(
        Amount(10, "%"), description="interval between measurements, each at a logged step (log.every)"
    )
    method: Annotated[Literal["critical", "hessian", "off"], BeforeValidator(off_from_false)] = Field(
        "critical",
        description="critical: the learning rate at which the step would raise the loss of its rows, by seven forward "
        "passes; hessian: also the largest eigenvalue of the Hessian and adaptive SAM, at the cost of some fifty steps "
        "on these rows",
    )
    rows: int | None = Field(
        None,
        ge=1,
        description="rows of the step on each device that are measured, at most a micro-batch; null: as many as keep "
        "critical within 2 % of the training, 4 at least",
    )
    sets: list[str] = Field(
        [],
        description="evaluation sets (eval.sets) whose loss is measured along the updates too: the relative sharpness, "
        "such as of the text of pretraining during fine-tuning",
    )


class Measure(Section):
    """What is measured during training; it does not change the result."""

    noise: Noise = Noise()
    sharpness: Sharpness = Sharpness()


class Log(Section):
    """Logging to records.jsonl, Weights & Biases, Trackio and TensorBoard."""

    every: AmountField = Field(Amount(5, "steps"), description="interval between training log records")
    wandb: Annotated[Literal["auto", "online", "offline", "off"], BeforeValidator(off_from_false)] = Field(
        "auto", description="Weights & Biases mode; auto: online if logged in, otherwise offline"
    )
    project: str | None = Field(None, description="W&B project; null: WANDB_PROJECT, or else hfbsz")
    entity: str | None = Field(None, description="W&B team; null: WANDB_ENTITY, or else that of the login")
    group: str | None = Field(
        None, description="W&B group: the experiment to which the run belongs; null: WANDB_RUN_GROUP, or else none"
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="name of the run in W&B; null: model, data, batch, learning rate and seed (in a comparison: the "
        "fields that it varies)",
    )
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        [], description="W&B tags, in addition to those that the run has in W&B; none: WANDB_TAGS"
    )
    notes: str | None = Field(None, description="W&B notes; null: WANDB_NOTES")
    artifacts: Annotated[Literal["off", "end", "best", "checkpoints"], BeforeValidator(off_from_false)] | None = Field(
        None,
        description="models in W&B, with the data set and the model that the run started from as inputs: end: the "
        "saved model of a finished run; best: that, and the weights of the best evaluation; checkpoints: that, and "
        "the weights of every checkpoint; null: what WANDB_LOG_MODEL says, or else off",
    )
    alerts: Annotated[
        list[Alert],
        BeforeValidator(none_from_off),
        WithJsonSchema({"anyOf": [{"const": "off"}, {"type": "array", "items": {"enum": [*get_args(Alert)]}}]}),
    ] = Field(
        [],
        description="alerts in W&B, each at most once in a start of the run: overfitting: its onset is detected; "
        "batch: the batch is more than four times the noise scale; diverged, preempted, failed: the run ended so; "
        "off: none",
    )
    trackio: bool = Field(
        False, description="also log to Trackio, in its local database (`pip install 'hfbsz[trackio]'`)"
    )
    tensorboard: bool = Field(
        False, description="also write TensorBoard events to the run's folder (`pip install 'hfbsz[tensorboard]'`)"
    )
    page: bool = Field(True, description="draw report.html at the end of the run; the command `report` draws it later")


class Checkpoint(Section):
    """Checkpoints: how often they are saved, how many are retained, and which weights the final model has."""

    every: AmountField = Field(
        Amount(25, "%"), description="interval between checkpoints; one is always saved at the end"
    )
    keep: int = Field(2, ge=1, description="number of newest checkpoints to retain")
    save: Literal["last", "best"] = Field(
        "last", description="weights of the final model: those of the last step, or those of the best evaluation"
    )
    best: bool = Field(
        True, description="save a checkpoint at each new best evaluation and retain it besides the newest ones"
    )


# fields that do not change the result of a run
