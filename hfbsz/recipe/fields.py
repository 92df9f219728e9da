"""The recipe classes (frozen pydantic models): the type, default and description of every field."""

import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from hfbsz.recipe.amounts import PATTERN, Amount
from hfbsz.recipe.law_name import NAMES, Named
from hfbsz.recipe.ramp import Ramp
from hfbsz.recipe.tasks import TASKS, RowKind

SMALL_CORPUS = 32_000_000  # bytes; a smaller corpus is always prepared completely (about half a minute)
MUCH_MORE = 8  # a corpus with more than 8 times the text that the budget needs is prepared only in part
FINAL_SHARE = 0.5  # rows of the final evaluation ÷ sequences of the run: about a sixth of the training time

PRESETS = ("model", "data")  # sections that may name a preset, a YAML file in recipes/model or recipes/data

AmountField = Annotated[
    Amount,
    BeforeValidator(Amount.parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{PATTERN}$", "description": "a number and a unit"}),
]
LawField = Annotated[
    Named,
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"enum": [f"law:{name}" for name in NAMES]}),
    Tag("law"),
]
# selects one option of the union, so that an invalid number gives no second error about laws
NumberOrLaw = Discriminator(lambda value: "law" if isinstance(value, Named) else "number")


def _validate_ramp(text: object) -> object:
    if text is not None:
        Ramp.parse(str(text))
    return text


def _amount_or_law(text: object) -> object:
    named = Named.parse(text)
    return named if isinstance(named, Named) else Amount.parse(text)


def _off_from_false(value: object) -> object:
    """`off` for false: YAML reads an unquoted `off` as false."""
    return "off" if value is False else value


def _expand_home(text: object) -> object:
    """Expand `~` and `~name` at the start of a path, or of each path in a list, as a shell does."""
    if isinstance(text, list):
        return [_expand_home(path) for path in text]
    return os.path.expanduser(text) if isinstance(text, str) and text.startswith("~") else text


PathField = Annotated[str, BeforeValidator(_expand_home)]
PathsField = Annotated[str | list[str], BeforeValidator(_expand_home)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), allow_inf_nan=False
    )


_PINNED = r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$"


class Lora(_Section):
    """LoRA adapters: the arguments of peft's LoraConfig."""

    rank: int = Field(16, ge=1, description="rank r of the two LoRA matrices")
    alpha: float = Field(32, gt=0, description="LoRA alpha: the update is scaled by alpha ÷ rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability on the input of the LoRA layers")
    targets: str | list[str] = Field("all-linear", description="names of the layers to adapt, or all-linear")


class Model(_Section):
    """The model: loaded weights (`path` or `package`), or a new one (`shape`)."""

    path: PathField | None = Field(
        None, description="folder or Hub id to load the weights from; null: a new model, built from `shape`"
    )
    package: Annotated[str, Field(pattern=_PINNED)] | None = Field(
        None, description="NAME==VERSION of a package whose wheel contains model.file; the package is never installed"
    )
    file: str | None = Field(None, description="path inside the wheel of model.package: a model folder or a .gguf file")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of model.file (of model.safetensors for a folder), verified before loading"
    )
    lora: Lora | None = Field(
        None, description="train LoRA adapters (peft) instead of the weights; {}: with default settings"
    )
    shape: dict[str, Any] | None = Field(
        None, description="architecture of a new model: model_type and any fields of its transformers config"
    )
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="attention implementation; a model that does not support sdpa uses eager, with a note"
    )
    grow_embeddings: bool = Field(
        False, description="add embedding rows to loaded weights if the tokenizer has more tokens than the model"
    )
    compile: bool = Field(False, description="compile the model with torch.compile")

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        sources = [name for name in ("path", "package", "shape") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"{' and '.join(sources)} are two models: set only one (null unsets a field)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: set both, the package and the path inside its wheel")
        return self


class Origin(_Section):
    """Where rows come from, and which of their columns are read."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("text", "label", "skip", "id", "messages", "prompt", "response", "template", "system", "tools"),
    )
    FORMAT: ClassVar[tuple[str, ...]] = (
        *("format", "delimiter", "quoting", "header", "comment", "skip_lines", "encoding", "json_field", "separator"),
    )
    HUB_FIELDS: ClassVar[tuple[str, ...]]  # fields that are only valid together with hub

    files: PathsField | None = Field(
        None,
        description="paths or globs: text files (one document per file), or .jsonl .ndjson .json .csv .tsv .tab "
        ".parquet (one row per record); all but .parquet also compressed: .gz .bz2 .xz .zst; {stdlib} is the folder "
        "of Python's standard library, whose source is read if data sets no source",
    )
    package: Annotated[str, Field(pattern=_PINNED)] | None = Field(
        None, description="NAME==VERSION of a package whose wheel contains `file`; the package is never installed"
    )
    file: str | None = Field(None, description="path of the data file inside the wheel of `package`")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of `file`, verified before reading"
    )
    hub: PathField | None = Field(
        None, description="Hub id of a data set, or a folder in the Hub's layout or written by save_to_disk"
    )
    hub_config: str | None = Field(None, description="configuration name of the Hub data set")
    split: str = Field("train", description="split of the Hub data set to read")
    revision: str | None = Field(None, description="commit, branch or tag of the Hub data set")
    text: str = Field("text", description="column that contains the text of a row")
    label: str | None = Field(None, description="classification: column that contains the label")
    skip: dict[str, str | list[str]] = Field(
        {}, description="rows to leave out, as column: value or list of values; they are counted (fine-tuning tasks)"
    )
    id: str | None = Field(
        None, description="column that contains a unique row id; duplicate ids are an error (fine-tuning tasks)"
    )
    messages: str | None = Field(
        None, description="instruction: column that contains a conversation (list of messages)"
    )
    prompt: str | None = Field(None, description="instruction: column that contains the prompt; needs `response`")
    response: str | None = Field(None, description="instruction: column that contains the response")
    template: str | None = Field(
        None,
        description="builds the text (instruction: the prompt) from several columns, such as "
        "'{instruction}\\n{input}'; an empty column is omitted, with the text between it and the column before it",
    )
    system: str | None = Field(
        None, description="instruction: column that contains the system message, used together with `prompt`"
    )
    tools: str | None = Field(
        None,
        description="instruction: column that contains the tool definitions passed to the chat template; null: the "
        "column `tools` if there is one",
    )
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = Field(
        "auto", description="format of the files; auto: from the file extension"
    )
    delimiter: str | None = Field(None, description="csv, tsv: field delimiter; null: detected")
    quoting: Literal["auto", "minimal", "none"] = Field(
        "auto",
        description="csv, tsv: minimal: fields may be enclosed in double quotes; none: quotes are ordinary characters; "
        "auto: detected",
    )
    header: bool | list[str] = Field(
        True,
        description="csv, tsv: true: the first line contains the column names; false: there is no header line, the "
        "columns are named 0, 1, …; a list: there is no header line, these are the column names",
    )
    comment: str | None = Field(
        None, description="csv, tsv: lines that start with this text are skipped and counted; null: none"
    )
    skip_lines: int = Field(0, ge=0, description="csv, tsv: number of lines to skip at the start of each file")
    encoding: str | None = Field(
        None, description="text encoding of the files; null: UTF-8, or UTF-16 if there is a byte order mark"
    )
    json_field: str | None = Field(
        None, description="json: key of the top-level object that contains the rows, such as data"
    )
    separator: str | None = Field(
        None,
        description="text files: how a file is split into documents: a literal text between them (\\n is a line "
        "break), lines (one per line), blank (at blank lines), or /regex/ (a document starts at each matching line); "
        "null: one document per file",
    )

    def sources(self) -> list[str]:
        """Names of the source fields that are set: at most one of files, package and hub."""
        return [name for name in ("files", "package", "hub") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len(sources := self.sources()) > 1:
            raise ValueError(f"{' and '.join(sources)} are two sources: set only one (null unsets a field)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: set both, the package and the path inside its wheel")
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        if self.hub is None and any(getattr(self, name) != defaults[name] for name in self.HUB_FIELDS):
            raise ValueError(f"{', '.join(self.HUB_FIELDS[:-1])} and {self.HUB_FIELDS[-1]} belong to hub: set hub too")
        return self


class Data(Origin):
    """The training and validation data: source, columns, tokenizer and rows."""

    HUB_FIELDS = ("validation_split", "hub_config", "revision")

    exclude: list[str] = Field([], description="names of folders to leave out of `files`")
    stream: bool | None = Field(
        None,
        description="true: read (and, from the Hub, download) only as much data as the budget needs; false: prepare "
        f"all of it; null: only as much as needed for files that exceed {SMALL_CORPUS / 1e6:.0f} MB and {MUCH_MORE} "
        "times the budget (language modeling)",
    )
    labels: list[str] | None = Field(
        None, description="class names, in the order of their ids; null: the model's, the data set's, or sorted"
    )
    group: str | None = Field(
        None,
        description="column of group ids: a group is either in training or in validation (fine-tuning tasks)",
    )
    rows: int | None = Field(None, ge=1, description="number of training rows to use, sampled by a hash; null: all")
    answers: Literal["all", "last"] = Field(
        "all",
        description="instruction: which answers of a conversation are trained on; all: every answer, as the chat "
        "template renders it at its own turn",
    )
    date: str = Field(
        "2024-07-26",
        description="instruction: the date (YYYY-MM-DD) that chat templates insert instead of today's, so that rows do "
        "not change from day to day",
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="rows that repeat the text of an earlier row, and training rows whose text is also in validation "
        "(fine-tuning tasks)",
    )
    tokenizer: PathField | None = Field(
        None, description="folder or Hub id of a tokenizer; null: a byte-level BPE tokenizer trained on the corpus"
    )
    vocab_size: int = Field(2048, ge=258, description="vocabulary size of a tokenizer trained on the corpus")
    sequence_length: int = Field(128, ge=1, description="input tokens per row, at most")
    pack: bool = Field(
        True,
        description="true: documents are concatenated and cut into rows of equal length; false: each row holds tokens "
        "of one document, rows vary in length",
    )
    attend: Literal["across", "within"] = Field(
        "across",
        description="across: tokens of a packed row attend to all earlier tokens of the row; within: only to those of "
        "their own document",
    )
    validation: AmountField = Field(
        Amount(5, "%"), description="share of the documents or rows held out for validation, chosen by a hash"
    )
    validation_files: PathsField | None = Field(
        None, description="paths or globs of validation files, instead of holding out a share"
    )
    validation_split: str | None = Field(
        None, description="validation split of the Hub data set, instead of holding out a share"
    )

    @field_validator("date")
    @classmethod
    def _validate_date(cls, value: str) -> str:
        try:
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f"{value!r} is not a date: write it as YYYY-MM-DD, such as 2024-07-26") from None

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        if self.validation_files is not None and self.validation_split is not None:
            raise ValueError("validation_files and validation_split are two validation sets: set only one")
        return self

    def read_as(self, columns: "EvalSet") -> "Data":
        """A copy of this section for reading an evaluation set: the columns that the set names replace those of data,
        and `group` is unset."""
        named = {name: getattr(columns, name) for name in self.COLUMNS if name in columns.model_fields_set}
        if columns.messages is not None:
            named |= {"prompt": None, "response": None}
        elif columns.prompt is not None or columns.response is not None:
            named["messages"] = None
        return self.model_copy(update={**named, "group": None})


class EvalSet(Origin):
    """An additional evaluation set with a source of its own; columns that are not set are those of `data`."""

    HUB_FIELDS = ("hub_config", "split", "revision")

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if not self.sources():
            raise ValueError("no source is set: set files, package with file, or hub")
        if self.messages is not None and (self.prompt or self.response):
            raise ValueError("messages and prompt are two forms of a conversation: set only one (null unsets a field)")
        return self

    @model_serializer(mode="wrap")
    def _only_set_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class Batch(_Section):
    """The global batch, its ramp, and how it is split into micro-batches."""

    size: (
        Annotated[Annotated[AmountField, Tag("number")] | LawField, NumberOrLaw, BeforeValidator(_amount_or_law)] | None
    ) = Field(
        None,
        description="global batch size, the largest of a ramp (sequences or tokens), or the estimate of a scaling law: "
        "law:power_lines, law:step_law, law:deepseek",
    )
    start: AmountField | None = Field(None, description="ramp: the first global batch size (sequences or tokens)")
    ramp: Annotated[str | None, BeforeValidator(_validate_ramp)] = Field(
        None,
        description="how the global batch grows during the run: '0:16 200ktok:32' (threshold:batch …), doubling:75% or "
        "linear:50% (over the first 75% or 50% of the run), linear:8,64,50% (from 8 to 64), or seesaw:2 (grows by this "
        "factor where the schedule would divide the learning rate by it); null: constant",
    )
    lr: Literal["follow", "held"] = Field(
        "follow", description="learning rate during a ramp: follow: rescaled with the batch; held: not rescaled"
    )
    micro_max: int = Field(8, ge=1, description="most sequences per forward pass on one device (micro-batch size)")
    micro_tokens: int | None = Field(
        None, ge=1, description="most tokens per forward pass on one device, padding included, instead of micro_max"
    )
    by_length: bool = Field(
        False,
        description="batches of rows of similar length: blocks of 16 batches are sorted by length and cut into batches "
        "in random order",
    )


class Optim(_Section):
    """The optimizer and its hyperparameters at the reference batch size (`scaling.reference`)."""

    name: Literal["adamw", "sgd", "lamb", "muon", "adafactor", "schedule_free"] = Field(
        "adamw", description="optimizer; muon: Muon for hidden weight matrices, AdamW for all other parameters"
    )
    lr: Annotated[
        Annotated[float, Field(gt=0), Tag("number")] | LawField, NumberOrLaw, BeforeValidator(Named.parse)
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
    nonfinite_limit: int = Field(
        5, ge=1, description="stop the run after this many consecutive steps with non-finite gradients"
    )


class Scaling(_Section):
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


class Schedule(_Section):
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


class Eval(_Section):
    """Evaluation: when, on which rows, with which metrics, and early stopping."""

    every: AmountField = Field(
        Amount(10, "%"), description="interval between evaluations on a fixed sample of the validation rows"
    )
    rows: int = Field(128, ge=1, description="number of rows in the fixed sample")
    full: bool | None = Field(
        None,
        description="rows of the final evaluation: true: all; false: only the fixed sample; null: as many as "
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
        description="also evaluate a fixed sample of the training rows, to detect overfitting; null: if training rows "
        "are seen more than once",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="early stopping: stop after this many evaluations without improvement; null: never",
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


class Log(_Section):
    """Logging to records.jsonl and to Weights & Biases."""

    every: AmountField = Field(Amount(5, "steps"), description="interval between training log records")
    wandb: Annotated[Literal["auto", "online", "offline", "off"], BeforeValidator(_off_from_false)] = Field(
        "auto", description="Weights & Biases mode; auto: online if logged in, otherwise offline"
    )
    project: str = Field("hfbsz", description="W&B project")
    entity: str | None = Field(None, description="W&B team")
    group: str | None = Field(None, description="W&B group: the experiment to which the run belongs")


class Checkpoint(_Section):
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
_NOT_IN_DIGEST = ("output_dir", "threads", "log", "eval", "checkpoint", "resume")
# those of them that do change it where evaluations select the final weights or stop the run
_SELECTION_FIELDS = ("eval.every", "eval.rows", "eval.patience", "checkpoint.save")
_MICRO_BATCH_FIELDS = ("batch.micro_max", "batch.micro_tokens")


class Recipe(_Section):
    """A complete recipe: everything that decides a training run."""

    task: str = Field(
        "language_modeling",
        json_schema_extra={"enum": list(TASKS)},
        description="language_modeling: next-token prediction on text; classification: one label per row; instruction: "
        "conversations, loss on the answers only",
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
    scaling: Scaling = Scaling()
    schedule: Schedule = Schedule()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    resume: PathField = Field(
        "auto",
        description="auto: resume from the newest complete checkpoint in output_dir, if any; never: start over; or the "
        "path of a checkpoint",
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
        chat_columns = ("messages", "prompt", "response", "system", "tools")
        unsupported = {RowKind.LABEL: chat_columns, RowKind.CONVERSATION: ("label", "labels")}.get(
            self.row_kind, ("label", "labels", *chat_columns, "group", "rows", "id", "skip")
        )
        sections = {"data": data} | {f"eval.sets.{name}": eval_set for name, eval_set in self.eval.sets.items()}
        for section, origin in sections.items():
            if names := [name for name in unsupported if getattr(origin, name, None)]:
                raise ValueError(f"{section}.{names[0]} does not belong to task={self.task}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The complete recipe as plain data; `from_mapping` turns it into an equal recipe."""
        return self.model_dump(mode="json")

    def uses_law(self) -> bool:
        """Whether the batch size or the learning rate comes from a scaling law, which may need the model's size."""
        return isinstance(self.batch.size, Named) or isinstance(self.optim.lr, Named)

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
            and (ramp is None or not ("%" in ramp or ramp.startswith("seesaw")))
            and not self.batch.by_length  # the last block of rows depends on the length of the run
            and not (mean_batch_matters or self.uses_law())
        )

    @property
    def selects_by_evaluation(self) -> bool:
        """Whether evaluations decide when the run ends (`eval.patience`) or which weights it saves."""
        return self.eval.patience is not None or self.checkpoint.save == "best"

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
    selection = _SELECTION_FIELDS if any(recipe.selects_by_evaluation for recipe in recipes) else ()
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
