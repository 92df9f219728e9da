"""The recipe: its sections (frozen pydantic models), with the type, default and description of every field."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, field_validator, model_validator

from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.data_section import MUCH_MORE, SMALL_CORPUS, Data, EvalSet, Origin
from hfbsz.recipe.hub_section import Hub
from hfbsz.recipe.law_name import LawName
from hfbsz.recipe.model_section import Lora, Model
from hfbsz.recipe.section import AmountField, PathField, Section
from hfbsz.recipe.tasks import TASKS, RowKind
from hfbsz.recipe.training_sections import (
    FINAL_SHARE,
    Batch,
    Checkpoint,
    Eval,
    Log,
    Measure,
    Noise,
    Optim,
    Preference,
    Scaling,
    Schedule,
    Sharpness,
)

__all__ = [
    "FINAL_SHARE", "MUCH_MORE", "PRESETS", "SMALL_CORPUS", "Batch", "Checkpoint", "Data", "Eval", "EvalSet", "Hub",
    "Log", "Lora", "Measure", "Model", "Noise", "Optim", "Origin", "Preference", "Recipe", "Scaling", "Schedule",
    "Sharpness", "code_of", "differences", "fields", "is_script", "is_task_file", "leaves",
]  # fmt: skip
PRESETS = ("model", "data")  # sections that may name a preset, a YAML file in recipes/model or recipes/data
_NOT_IN_DIGEST = ("output_dir", "threads", "log", "eval", "measure", "checkpoint", "hub", "resume")
# those of them that do change it where evaluations select the final weights or stop the run
_SELECTION_FIELDS = ("eval.every", "eval.rows", "eval.patience", "eval.target", "checkpoint.save")
# where the batch follows the noise scale: which steps are measured
_NOISE_FIELDS = ("measure.noise.every", "measure.noise.method", "log.every")
_MICRO_BATCH_FIELDS = ("batch.micro_max", "batch.micro_tokens")


class Recipe(Section):
    """A complete recipe: everything that decides a training run."""

    task: str = Field(
        "language_modeling",
        json_schema_extra={"enum": list(TASKS)},
        description="language_modeling: next-token prediction on text; classification: one label per row; instruction: "
        "conversations, loss on the answers only; preference: pairs of a chosen and a rejected answer (DPO)",
    )
    model: Model = Field(Model(), description="name of a preset in recipes/model, or a mapping of fields")
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto",
        description="bf16: autocast over float32 weights; auto: bf16 if the device supports it, otherwise fp32; fp64: "
        "for tests",
    )
    data: Data = Field(Data(), description="name of a preset in recipes/data, or a mapping of fields")
    duration: AmountField = Field(
        Amount(1, "epochs"), description="length of the training (tokens, sequences, steps or epochs)"
    )
    batch: Batch = Batch()
    optim: Optim = Optim()
    preference: Preference = Preference()
    scaling: Scaling = Scaling()
    schedule: Schedule = Schedule()
    eval: Eval = Eval()
    measure: Measure = Measure()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    hub: Hub = Hub()
    resume: PathField = Field(
        "auto",
        description="auto: resume from the newest complete checkpoint in output_dir, if any; never: start over; or the "
        "path of a checkpoint",
    )
    branch: PathField | None = Field(
        None,
        description="checkpoint of another run to branch from: its weights, optimizer state and position in the data, "
        "then the steps of this recipe; null: from the start",
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights, the order of rows and dropout")
    threads: int | None = Field(None, ge=1, description="CPU threads per process; null: cores ÷ local processes")
    output_dir: PathField | None = Field(None, description="folder of the run; null: runs/<recipe>-<8 hex digits>")

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            *names, last = map(repr, TASKS)
            raise ValueError(f"Input should be {', '.join(names)} or {last}")
        return task

    @property
    def row_kind(self) -> RowKind:
        """What a row of the task is made from."""
        return TASKS[self.task].rows

    @model_validator(mode="before")
    @classmethod
    def _no_packing_when_fine_tuning(cls, values: Any) -> Any:
        """`data.pack` is false by default for fine-tuning tasks: a row is one example."""
        task = TASKS.get(str(values.get("task"))) if isinstance(values, dict) else None
        if task is not None and task.rows is not RowKind.TEXT and isinstance(data := values.get("data", {}), dict):
            return {**values, "data": {"pack": False, **data}}
        return values

    @model_validator(mode="after")
    def _check_task(self) -> "Recipe":
        data, fine_tuning = self.data, self.row_kind is not RowKind.TEXT
        if fine_tuning and (data.pack or data.stream):
            raise ValueError(f"data.pack and data.stream are not supported for {self.task}: a row is one example")
        if fine_tuning and data.validation_unit is not None:
            raise ValueError(f"data.validation_unit is not supported for {self.task}: rows or groups are held out")
        if self.eval.harness.tasks and self.row_kind is RowKind.LABEL:
            raise ValueError(f"eval.harness.tasks does not belong to task={self.task}: tasks score language models")
        if self.row_kind is not RowKind.PREFERENCE and self.preference != Preference():
            raise ValueError(f"preference does not belong to task={self.task}")
        chat_columns, pair = ("messages", "prompt", "response", "system", "tools"), ("chosen", "rejected")
        unsupported = {
            RowKind.LABEL: (*chat_columns, *pair),
            RowKind.CONVERSATION: ("label", "labels", *pair),
            RowKind.PREFERENCE: ("label", "labels", "messages", "response"),
        }.get(self.row_kind, ("label", "labels", *chat_columns, *pair, "group", "rows", "id", "skip"))
        sections = {"data": data} | {f"eval.sets.{name}": eval_set for name, eval_set in self.eval.sets.items()}
        for section, origin in sections.items():
            if names := [name for name in unsupported if getattr(origin, name, None)]:
                raise ValueError(f"{section}.{names[0]} does not belong to task={self.task}")
        return self

    @model_validator(mode="after")
    def _check_sharpness(self) -> "Recipe":
        sharpness = self.measure.sharpness
        if sharpness.method == "hessian" and self.model.compile:
            raise ValueError(
                "measure.sharpness.method=hessian needs second derivatives, which a compiled model does not have: set "
                "model.compile=false, or method=critical"
            )
        if unknown := [name for name in sharpness.sets if name not in self.eval.sets]:
            known = ", ".join(self.eval.sets) or "there are none"
            raise ValueError(f"measure.sharpness.sets: no evaluation set {unknown[0]!r} in eval.sets ({known})")
        return self

    @model_validator(mode="after")
    def _check_artifacts(self) -> "Recipe":
        if self.log.artifacts == "best" and not self.checkpoint.best and self.checkpoint.save != "best":
            raise ValueError("log.artifacts=best needs the weights of the best evaluation: checkpoint.best=true")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The complete recipe as plain data; `from_mapping` turns it into an equal recipe."""
        return self.model_dump(mode="json")

    def uses_law(self) -> bool:
        """Whether the batch size or the learning rate comes from a scaling law, which may need the model's size."""
        return isinstance(self.batch.size, LawName) or isinstance(self.optim.lr, LawName)

    def extendable(self) -> bool:
        """Whether a run with a longer `duration` starts with the same steps, so that it can resume from this one.

        True for a constant learning rate, or WSD before its decay, if nothing is given as a share (%) of the run.
        """
        schedule, ramp = self.schedule, self.batch.ramp
        shares = [schedule.warmup, *([schedule.decay] if schedule.shape == "wsd" else [])]
        mean_batch_matters = ramp is not None and (self.scaling.rule == "sde" or self.scaling.beta2 != "keep")
        return (
            schedule.shape in ("constant", "wsd")
            and all(share.unit != "%" or share.value == 0 for share in shares)
            and (ramp is None or not ("%" in ramp or ramp.startswith(("seesaw", "noise"))))
            and not self.batch.by_length  # the last block of rows depends on the length of the run
            and not (mean_batch_matters or self.uses_law())
        )

    @property
    def follows_noise(self) -> bool:
        """Whether the batch follows the noise scale that the run measures (`batch.ramp=noise`)."""
        return str(self.batch.ramp).startswith("noise")

    @property
    def selects_by_evaluation(self) -> bool:
        """Whether evaluations decide when the run ends (`eval.patience`, `eval.target`) or which weights it saves."""
        ends = self.eval.patience is not None or self.eval.target is not None
        return ends or self.checkpoint.save == "best"

    @property
    def micro_batch_matters(self) -> bool:
        """Whether the micro-batch size changes the batch: a linear ramp grows by micro-batch × processes."""
        return str(self.batch.ramp).startswith("linear")

    def digest(self) -> str:
        """8 hex digits: a hash of the fields that change the result of the run.

        Fields with their default value are left out, so that adding a field to hfbsz does not rename existing runs.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        for name in _NOT_IN_DIGEST:
            fields.pop(name, None)
        if self.selects_by_evaluation:
            fields["chosen"] = [str(self.eval.every), self.eval.rows, self.eval.patience, self.checkpoint.save]
            fields["chosen"] += [] if self.eval.target is None else [self.eval.target]
        if self.follows_noise:
            noise = self.measure.noise
            fields["followed"] = [str(noise.every), noise.method, str(self.log.every)]
        if self.extendable():
            fields.pop("duration", None)
        if not self.micro_batch_matters:
            for name in ("micro_max", "micro_tokens"):
                fields.get("batch", {}).pop(name, None)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def differences(there: Recipe, here: Recipe) -> list[str]:
    """A line for each field that makes the runs of two recipes different: its name and its two values.

    `there` is the recipe of an existing run, `here` the current one. The same fields count as in `Recipe.digest`.
    """
    recipes = (there, here)
    ignored = {*_NOT_IN_DIGEST, *(() if any(recipe.micro_batch_matters for recipe in recipes) else _MICRO_BATCH_FIELDS)}
    ignored |= {"duration"} if all(recipe.extendable() for recipe in recipes) else set()
    selection = {
        *(_SELECTION_FIELDS if any(recipe.selects_by_evaluation for recipe in recipes) else ()),
        *(_NOISE_FIELDS if any(recipe.follows_noise for recipe in recipes) else ()),
    }
    before, after = (dict(leaves(recipe.model_dump(mode="json"))) for recipe in recipes)
    lines = []
    for key in sorted({*before, *after}):
        counts = key in selection or not (key in ignored or key.partition(".")[0] in ignored)
        if counts and before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key)} there, {after.get(key)} here")
    return lines


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every field of a recipe given as plain data (nested mappings)."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_script(metric: str) -> bool:
    """Whether an entry of `eval.metrics` is the path of a script, not the name of a metric."""
    return "/" in metric or os.sep in metric or metric.endswith(".py")


def code_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (field, path) for every file that a recipe names and that may run code: scripts of metrics, task files."""
    yield from (("eval.metrics", metric) for metric in recipe.eval.metrics if is_script(metric))
    yield from (("eval.harness.tasks", task) for task in recipe.eval.harness.tasks if is_task_file(task))


def is_task_file(task: str) -> bool:
    """Whether an entry of `eval.harness.tasks` is the path of a task file, not the name of a task."""
    return "/" in task or os.sep in task or task.endswith((".yaml", ".yml"))


def fields(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, pydantic FieldInfo) for every field of a section and of its sections.

    A section itself is only included where it may be null, such as `model.lora`.
    """
    for name, info in section.model_fields.items():
        options = get_args(info.annotation) or (info.annotation,)
        inner = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not inner or len(options) > 1:
            yield prefix + name, info
        for option in inner:
            yield from fields(option, f"{prefix}{name}.")
