"""Translate an option of another tool, with its value: the words to type in hfbsz, or why it has no such option."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hfbsz.display import command
from hfbsz.errors import number_of
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.presets import looks_like_data
from hfbsz.recipe.values import why_invalid

_YES, _NO = ("true", "1", "yes", "on", ""), ("false", "0", "no", "off", "none", "null", "never")


@dataclass(frozen=True)
class Option:
    """An option of another tool: its value (empty for a flag), and the values of all options of the command line.

    The keys of `options` are the last parts of dotted names, with underscores.
    """

    value: str
    options: Mapping[str, str]

    @property
    def number(self) -> float | None:
        """The value as a number; None if it is not one."""
        try:
            return float(self.value)
        except ValueError:
            return None

    @property
    def is_no(self) -> bool:
        """Whether the value means false or none."""
        return self.value.lower() in _NO

    @property
    def is_yes(self) -> bool:
        """Whether the value means true; a flag without a value does."""
        return self.value.lower() in _YES

    def other(self, *names: str) -> float | None:
        """The number given by the first of some other options of the command line; None if none gives one."""
        for name in names:
            try:
                return float(self.options[name])
            except (KeyError, ValueError):
                continue
        return None


Answer = Callable[[Option], str]


def to_type(*words: str) -> str:
    """`write WORD …`, quoted for a shell."""
    return f"write {command(*words)}"


def write(*words: str, why: str = "") -> str:
    """`write WORD … (why)`, quoted for a shell; if a value is invalid for its field, what the field takes."""
    for word in words:
        key, _, value = word.partition("=")
        if (problem := why_invalid(key, value)) is not None:
            return no_field(f"the field is {key}, and {value!r} is not valid for it: {problem}")
    return f"{to_type(*words)}{f' ({why})' if why else ''}"


def no_field(reason: str) -> str:
    """Say that hfbsz has no such field, and why or what to do instead."""
    return f"there is no such field: {reason}"


def _g(value: float) -> str:
    return f"{value:.10g}"


def _is_amount(text: str) -> bool:
    try:
        Amount.parse(text)
    except ValueError:
        return False
    return True


def renamed(field: str, example: str, why: str = "") -> Answer:
    """The same value under another name; `example` if the option has no value."""

    def answer(option: Option) -> str:
        is_none = option.value in ("None", "none", "null") and why_invalid(field, "null") is None
        return write(f"{field}={'null' if is_none else option.value or example}", why=why)

    return answer


def unsupported(reason: str) -> Answer:
    """The same answer for every value: there is no such field, for this reason."""
    return lambda option: no_field(reason)


def switch(yes: str, no: str, why: str = "") -> Answer:
    """A flag: the word to type for true, and the one for false."""

    def answer(option: Option) -> str:
        word = no if option.is_no else yes
        return write(word, why=why) if "=" in word else no_field(word)

    return answer


def count(field: str, unit: str, example: str, share: bool = False) -> Answer:
    """An amount in `unit`: a number of steps, epochs or rows; with `share`, a number below 1 is a share of the run."""

    def answer(option: Option) -> str:
        number = option.number
        if number is None:
            return write(f"{field}={option.value if _is_amount(option.value) else example}")
        if number < 0:
            return no_field(f"{_g(number)} means none: leave the option out")
        if share and 0 < number < 1:
            return write(f"{field}={_g(100 * number)}%")
        return write(f"{field}={_g(number)}{unit}")

    return answer


def percent(field: str, example: str, factor: float) -> Answer:
    """An amount in %: the number multiplied by `factor`."""

    def answer(option: Option) -> str:
        number = option.number
        return write(f"{field}={example}" if number is None else f"{field}={_g(factor * number)}%")

    return answer


def per_device(option: Option) -> str:
    """The batch size per device: the global batch size follows from accumulation and processes."""
    rows, processes = option.number, number_of("WORLD_SIZE", 1)
    accumulation = option.other("gradient_accumulation_steps", "accumulation", "grad_accum_steps") or 1
    if rows is None:
        return write("batch.size=64seq", "batch.micro_max=8", why="batch.size is the global batch")
    product = f"{_g(rows)} × accumulation {_g(accumulation)} × {processes} process{'es' if processes > 1 else ''}"
    words = f"batch.size={_g(rows * accumulation * processes)}seq", f"batch.micro_max={_g(rows)}"
    return write(*words, why=f"batch.size is the global batch: {product}")


def accumulation(option: Option) -> str:
    """Gradient accumulation: hfbsz computes it from the global batch size and the micro-batch size."""
    rows = option.other("per_device_train_batch_size", "train_batch_size", "micro_batch_size", "device_batch_size")
    rows = rows or option.other("batch_size")
    why = "accumulation is batch.size ÷ batch.micro_max ÷ processes"
    if rows is None or option.number is None:
        return no_field(f"{why}; set the global batch, such as batch.size=64seq")
    batch = _g(rows * option.number * number_of("WORLD_SIZE", 1))
    return no_field(f"{why}; here batch.size={batch}seq batch.micro_max={_g(rows)}")


def betas(option: Option) -> str:
    """Adam's betas, whichever of the two is set."""
    first = option.other("adam_beta1", "beta1") or 0.9
    second = option.other("adam_beta2", "beta2") or 0.999
    return write(f"optim.betas=[{_g(first)},{_g(second)}]")


def clip(option: Option) -> str:
    """Maximum gradient norm: 0 means no clipping in other tools."""
    return write(f"optim.clip={'null' if option.number == 0 else option.value or '1.0'}")


_SHAPES = {
    "linear": ("linear", "0"), "cosine": ("cosine", "0"), "cosine_with_min_lr": ("cosine", "0.1"),
    "constant": ("constant", ""), "constant_with_warmup": ("constant", ""), "warmup_stable_decay": ("wsd", "0"),
    "wsd": ("wsd", "0"),
}  # fmt: skip


def shape(option: Option) -> str:
    """A learning-rate schedule by its name in other tools, with the final rate that it has there."""
    known = _SHAPES.get(option.value.lower())
    if known is None:
        return write("schedule.shape=cosine", why="or constant, linear, quarter_cosine, wsd")
    shape, floor = known
    return write(f"schedule.shape={shape}", *([f"schedule.floor={floor}"] if floor else []))


def floor(option: Option) -> str:
    """A minimum learning rate: hfbsz takes it as a fraction of the peak."""
    peak = option.other("learning_rate", "lr", "max_lr")
    if option.number is None or not peak:
        return write("schedule.floor=0.1", why="the final rate as a fraction of the peak, optim.lr")
    return write(f"schedule.floor={_g(option.number / peak)}", why="the final rate as a fraction of the peak")


_PRECISIONS = {
    "no": "fp32", "fp32": "fp32", "float32": "fp32", "32": "fp32", "32_true": "fp32", "bf16": "bf16",
    "bfloat16": "bf16", "bf16_mixed": "bf16", "bf16_true": "bf16", "float64": "fp64", "fp64": "fp64", "auto": "auto",
}  # fmt: skip


def precision(option: Option) -> str:
    """A precision or dtype by its name in other tools; fp16 becomes bf16."""
    name = option.value.lower().removeprefix("torch.").replace("-", "_")
    if name in ("fp16", "float16", "16", "16_mixed", "half"):
        return write("precision=bf16", why="fp16 is not supported: it needs loss scaling")
    return write(f"precision={_PRECISIONS.get(name, 'auto')}", why="weights and optimizer state are float32")


def optimizer(option: Option) -> str:
    """An optimizer by its name in other tools."""
    name = option.value.lower()
    known = ("adamw", "sgd", "lamb", "muon", "adafactor", "schedule_free")
    default = "adamw" if name.startswith("adam") else None
    match = next((candidate for candidate in known if name.startswith(candidate)), default)
    if match is None or "8bit" in name or "4bit" in name:
        return write(f"optim.name={match or 'adamw'}", why=f"available: {', '.join(known)}")
    return write(f"optim.name={match}")


def intervals(field: str) -> Answer:
    """The Trainer's eval_strategy, save_strategy and logging_strategy: no, steps or epoch."""

    def answer(option: Option) -> str:
        name = option.value.lower()
        if name in _NO:
            return write(f"{field}=100%", why="it always happens at the end")
        return write(f"{field}={'1epochs' if name.startswith('epoch') else '500steps'}")

    return answer


def tracker(option: Option) -> str:
    """Experiment trackers: W&B, or none."""
    if option.is_no:
        return write("log.wandb=off")
    if "wandb" in option.value or option.is_yes or option.value == "all":
        return write("log.wandb=auto", why="the default: online if you are logged in, otherwise offline")
    return no_field(
        "every number is in records.jsonl in the run's folder and is plotted in report.html; W&B: log.wandb=auto"
    )


def resume(option: Option) -> str:
    """Whether, or from which checkpoint, to resume."""
    if option.is_yes:
        return write("resume=auto", why="the default")
    return write(f"resume={'never' if option.is_no else option.value}")


def weights(option: Option) -> str:
    """The weights to load; nanoGPT's init_from also takes scratch and resume."""
    if option.value.lower() == "scratch":
        return no_field("model.shape of a recipe, or a preset such as model=tiny, is a new model")
    return resume(Option("", {})) if option.value == "resume" else write(f"model.path={option.value or 'FOLDER'}")


def dataset(option: Option) -> str:
    """A data set: files if the value looks like a path to data, else a Hub id."""
    text = option.value or "NAME"
    return write(f"data.{'files' if looks_like_data(text) else 'hub'}={text}")


def targets(option: Option) -> str:
    """The layers that LoRA adapts."""
    text = option.value.strip("[]") or "q_proj,v_proj"
    if text in ("all-linear", "all_linear", "all"):
        return write("model.lora.targets=all-linear")
    return write(f"model.lora.targets=[{','.join(text.replace(',', ' ').split())}]")


def share(option: Option) -> str:
    """The share of the data that is held out for validation."""
    number = option.number
    if number is None:
        return write("data.validation=5%")
    if number >= 1:
        return no_field(
            "validation is a share of the data, such as data.validation=5%, or files: data.validation_files=…"
        )
    return write(f"data.validation={_g(100 * number)}%")


def split(option: Option) -> str:
    """`validation_split`: a number is a share (Keras), anything else the name of a split."""
    if option.number is not None:
        return share(option)
    return hub_field("data.validation_split", "test")(option)


def hub_field(field: str, example: str) -> Answer:
    """A field that is only valid with a Hub data set: data.hub is suggested too if the command line does not set it."""

    def answer(option: Option) -> str:
        name = option.options.get("dataset_name") or option.options.get("dataset") or "NAME"
        words = [] if "hub" in option.options else [f"data.hub={name}"]
        return write(*words, f"{field}={option.value or example}")

    return answer


def processes(option: Option) -> str:
    """The number of processes, which is set by the launcher."""
    number = f" --num_processes {option.value}" if option.value.isdigit() else ""
    return no_field(
        f"the launcher sets it: accelerate launch --config_file accelerate_configs/ddp.yaml{number} scripts/…"
    )


def sharded(option: Option) -> str:
    """FSDP or DeepSpeed, which is set by the launcher."""
    return no_field("the launcher sets it: accelerate launch --config_file accelerate_configs/fsdp2.yaml scripts/…")


def epochs(option: Option) -> str:
    """A number of epochs as the duration."""
    return count("duration", "epochs", "3epochs")(option)
