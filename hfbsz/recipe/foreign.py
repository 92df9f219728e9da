"""How a value of another tool's word becomes ours: what is to be typed, or why there is nothing to type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hfbsz.display import command
from hfbsz.errors import number_of
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.presets import seems_data
from hfbsz.recipe.values import misfit

_YES, _NO = ("true", "1", "yes", "on", ""), ("false", "0", "no", "off", "none", "null", "never")


@dataclass(frozen=True)
class Asked:
    """A word of another tool: its value (empty for a flag), and all words of the command by their last names."""

    value: str
    given: Mapping[str, str]

    @property
    def number(self) -> float | None:
        try:
            return float(self.value)
        except ValueError:
            return None

    @property
    def is_no(self) -> bool:
        return self.value.lower() in _NO

    @property
    def is_yes(self) -> bool:
        return self.value.lower() in _YES

    def other(self, *names: str) -> float | None:
        """The number that another word of the command gives."""
        for name in names:
            try:
                return float(self.given[name])
            except (KeyError, ValueError):
                continue
        return None


Answer = Callable[[Asked], str]


def to_type(*words: str) -> str:
    return f"write {command(*words)}"


def write(*words: str, why: str = "") -> str:
    """The words to type, safe in a shell; where a value does not fit its field, what that takes."""
    for word in words:
        key, _, value = word.partition("=")
        if (wrong := misfit(key, value)) is not None:
            return leave(f"it is {key} here, which {value!r} does not fit: {wrong}")
    return f"{to_type(*words)}{f' ({why})' if why else ''}"


def leave(reason: str) -> str:
    return f"there is no such field: {reason}"


def _g(value: float) -> str:
    return f"{value:.10g}"


def _is_amount(text: str) -> bool:
    try:
        Amount.parse(text)
    except ValueError:
        return False
    return True


def same(field: str, example: str, why: str = "") -> Answer:
    """The same value under another name; `example` stands where none was given."""

    def say(asked: Asked) -> str:
        is_none = asked.value in ("None", "none", "null") and misfit(field, "null") is None
        return write(f"{field}={'null' if is_none else asked.value or example}", why=why)

    return say


def has_none(reason: str) -> Answer:
    return lambda asked: leave(reason)


def switch(yes: str, no: str, why: str = "") -> Answer:
    """A flag: what is typed for true and for false."""

    def say(asked: Asked) -> str:
        wished = no if asked.is_no else yes
        return write(wished, why=why) if "=" in wished else leave(wished)

    return say


def count(field: str, unit: str, example: str, share: bool = False) -> Answer:
    """A number of steps, epochs or rows, or (`share`) a part of the run where it is below 1."""

    def say(asked: Asked) -> str:
        number = asked.number
        if number is None:
            return write(f"{field}={asked.value if _is_amount(asked.value) else example}")
        if number < 0:
            return leave(f"{_g(number)} stands for none: leave it out")
        if share and 0 < number < 1:
            return write(f"{field}={_g(100 * number)}%")
        return write(f"{field}={_g(number)}{unit}")

    return say


def percent(field: str, example: str, factor: float) -> Answer:
    def say(asked: Asked) -> str:
        number = asked.number
        return write(f"{field}={example}" if number is None else f"{field}={_g(factor * number)}%")

    return say


def per_device(asked: Asked) -> str:
    rows, processes = asked.number, number_of("WORLD_SIZE", 1)
    accumulation = asked.other("gradient_accumulation_steps", "accumulation", "grad_accum_steps") or 1
    if rows is None:
        return write("batch.size=64seq", "batch.micro_max=8", why="batch.size is the global batch")
    whole = f"{_g(rows)} × accumulation {_g(accumulation)} × {processes} process{'es' if processes > 1 else ''}"
    words = f"batch.size={_g(rows * accumulation * processes)}seq", f"batch.micro_max={_g(rows)}"
    return write(*words, why=f"batch.size is the global batch: {whole}")


def accumulation(asked: Asked) -> str:
    rows = asked.other("per_device_train_batch_size", "train_batch_size", "micro_batch_size", "device_batch_size")
    rows = rows or asked.other("batch_size")
    why = "accumulation is batch.size ÷ batch.micro_max ÷ processes"
    if rows is None or asked.number is None:
        return leave(f"{why}; the global batch is batch.size, such as batch.size=64seq")
    whole = _g(rows * asked.number * number_of("WORLD_SIZE", 1))
    return leave(f"{why}; here batch.size={whole}seq batch.micro_max={_g(rows)}")


def betas(asked: Asked) -> str:
    first = asked.other("adam_beta1", "beta1") or 0.9
    second = asked.other("adam_beta2", "beta2") or 0.999
    return write(f"optim.betas=[{_g(first)},{_g(second)}]")


def clip(asked: Asked) -> str:
    return write(f"optim.clip={'null' if asked.number == 0 else asked.value or '1.0'}")


_SHAPES = {
    "linear": ("linear", "0"), "cosine": ("cosine", "0"), "cosine_with_min_lr": ("cosine", "0.1"),
    "constant": ("constant", ""), "constant_with_warmup": ("constant", ""), "warmup_stable_decay": ("wsd", "0"),
    "wsd": ("wsd", "0"),
}  # fmt: skip


def shape(asked: Asked) -> str:
    found = _SHAPES.get(asked.value.lower())
    if found is None:
        return write("schedule.shape=cosine", why="or constant, linear, quarter_cosine, wsd")
    shape, floor = found
    return write(f"schedule.shape={shape}", *([f"schedule.floor={floor}"] if floor else []))


def floor(asked: Asked) -> str:
    peak = asked.other("learning_rate", "lr", "max_lr")
    if asked.number is None or not peak:
        return write("schedule.floor=0.1", why="the last rate as a share of the peak, optim.lr")
    return write(f"schedule.floor={_g(asked.number / peak)}", why="the last rate as a share of the peak")


_PRECISIONS = {
    "no": "fp32", "fp32": "fp32", "float32": "fp32", "32": "fp32", "32_true": "fp32", "bf16": "bf16",
    "bfloat16": "bf16", "bf16_mixed": "bf16", "bf16_true": "bf16", "float64": "fp64", "fp64": "fp64", "auto": "auto",
}  # fmt: skip


def precision(asked: Asked) -> str:
    name = asked.value.lower().removeprefix("torch.").replace("-", "_")
    if name in ("fp16", "float16", "16", "16_mixed", "half"):
        return write("precision=bf16", why="fp16 is not offered: it needs loss scaling")
    return write(f"precision={_PRECISIONS.get(name, 'auto')}", why="weights and optimizer stay in float32")


def optimizer(asked: Asked) -> str:
    name = asked.value.lower()
    known = ("adamw", "sgd", "lamb", "muon", "adafactor", "schedule_free")
    ours = next((own for own in known if name.startswith(own)), "adamw" if name.startswith("adam") else None)
    if ours is None or "8bit" in name or "4bit" in name:
        return write(f"optim.name={ours or 'adamw'}", why=f"there are {', '.join(known)}")
    return write(f"optim.name={ours}")


def intervals(field: str) -> Answer:
    """eval_strategy, save_strategy, logging_strategy."""

    def say(asked: Asked) -> str:
        name = asked.value.lower()
        if name in _NO:
            return write(f"{field}=100%", why="the end always has one")
        return write(f"{field}={'1epochs' if name.startswith('epoch') else '500steps'}")

    return say


def tracker(asked: Asked) -> str:
    if asked.is_no:
        return write("log.wandb=off")
    if "wandb" in asked.value or asked.is_yes or asked.value == "all":
        return write("log.wandb=auto", why="which is the default: online where you are logged in, else offline")
    return leave("records.jsonl in the run's folder holds every number, report.html draws them; W&B: log.wandb=auto")


def resume(asked: Asked) -> str:
    if asked.is_yes:
        return write("resume=auto", why="which is the default")
    return write(f"resume={'never' if asked.is_no else asked.value}")


def weights(asked: Asked) -> str:
    if asked.value.lower() == "scratch":
        return leave("a recipe's shape, or a preset such as model=tiny, is a new model")
    return resume(Asked("", {})) if asked.value == "resume" else write(f"model.path={asked.value or 'FOLDER'}")


def dataset(asked: Asked) -> str:
    text = asked.value or "NAME"
    return write(f"data.{'files' if seems_data(text) else 'hub'}={text}")


def targets(asked: Asked) -> str:
    text = asked.value.strip("[]") or "q_proj,v_proj"
    if text in ("all-linear", "all_linear", "all"):
        return write("model.lora.targets=all-linear")
    return write(f"model.lora.targets=[{','.join(text.replace(',', ' ').split())}]")


def share(asked: Asked) -> str:
    number = asked.number
    if number is None:
        return write("data.validation=5%")
    if number >= 1:
        return leave("validation is a share of the data, such as data.validation=5%, or files: data.validation_files=…")
    return write(f"data.validation={_g(100 * number)}%")


def split(asked: Asked) -> str:
    """`validation_split`: a share (Keras), else the name of a split."""
    number = asked.number
    if number is not None:
        return share(asked)
    return of_hub("data.validation_split", "test")(asked)


def of_hub(field: str, example: str) -> Answer:
    """A field that belongs to a Hub data set: typed with that where the command names none."""

    def say(asked: Asked) -> str:
        name = asked.given.get("dataset_name") or asked.given.get("dataset") or "NAME"
        words = [] if "hub" in asked.given else [f"data.hub={name}"]
        return write(*words, f"{field}={asked.value or example}")

    return say


def processes(asked: Asked) -> str:
    number = f" --num_processes {asked.value}" if asked.value.isdigit() else ""
    return leave(
        f"the launcher says that: accelerate launch --config_file accelerate_configs/ddp.yaml{number} scripts/…"
    )


def sharded(asked: Asked) -> str:
    return leave("the launcher says that: accelerate launch --config_file accelerate_configs/fsdp2.yaml scripts/…")


def epochs(asked: Asked) -> str:
    return count("duration", "epochs", "3epochs")(asked)
