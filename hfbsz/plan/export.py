"""The numbers of a plan in the words of other trainers, and what these cannot express.

Names of options were checked against transformers 5.23.0, TRL 1.16.0, Axolotl 0.19.0, torchtitan 0.3.0, LitGPT 0.5.13
and Megatron-LM (main of 2026).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hfbsz.errors import UserError, did_you_mean
from hfbsz.plan.plan import Phase, Plan
from hfbsz.recipe.amounts import short
from hfbsz.recipe.tasks import RowKind

Settings = dict[str, Any]


@dataclass(frozen=True)
class _Numbers:
    """The numbers of one phase of a plan, over the whole run: what a trainer without a ramp can take."""

    plan: Plan
    phase: Phase

    @property
    def batch(self) -> int:
        return self.phase.batch

    @property
    def micro(self) -> int:
        share = self.batch // self.plan.world_size
        return self.plan.micro_batch or share

    @property
    def accumulation(self) -> int:
        return max(1, self.batch // (self.micro * self.plan.world_size))

    @property
    def rate(self) -> float:
        return self.plan.peak_rate(self.batch)

    @property
    def weight_decay(self) -> float:
        return self.plan.step(self.phase.clock).weight_decay

    @property
    def steps(self) -> int:
        return math.ceil(self.plan.total / self.batch)

    @property
    def warmup(self) -> int:
        """Steps of warmup."""
        return math.ceil(self.plan.shape.warmup / self.batch)

    @property
    def decay(self) -> int:
        """Steps of the decay at the end of WSD."""
        return math.ceil(self.plan.shape.decay / self.batch)


@dataclass(frozen=True)
class Exported:
    """Settings of a trainer, as text in its own form, and what it cannot express."""

    text: str
    missing: list[str]

    def lines(self) -> Iterator[str]:
        """The settings, after comments on what is missing."""
        for line in self.missing:
            yield f"# not expressed: {line}"
        yield self.text


def export(plan: Plan, peer: str) -> Exported:
    """The plan for a peer: trainer, trl, axolotl, torchtitan, megatron or litgpt.

    A trainer without a ramp gets the largest batch for the whole run. Raises UserError for another name, and for
    preference pairs, which are exported to TRL only.
    """
    if peer not in _PEERS:
        raise UserError(f"export={peer}: none of {', '.join(_PEERS)}{did_you_mean(peer, _PEERS)}")
    if peer != "trl":
        refuse_pairs(plan, f"export={peer}")
    numbers = _Numbers(plan, max(plan.phases, key=lambda phase: phase.batch))
    return _PEERS[peer](numbers)


def refuse_pairs(plan: Plan, what: str) -> None:
    """Raise UserError for a plan of preference pairs, whose loss `what` does not have."""
    if plan.recipe.row_kind is RowKind.PREFERENCE:
        raise UserError(
            f"{what}: task={plan.recipe.task} would train there as a language model: export=trl writes a DPOConfig"
        )


def training_arguments(plan: Plan) -> tuple[Settings, list[str]]:
    """The plan as arguments of transformers' TrainingArguments, and what these cannot express."""
    numbers = _Numbers(plan, max(plan.phases, key=lambda phase: phase.batch))
    missing = [*_ramp(numbers), *_common(numbers), *_optimizer(numbers, _TRAINER_OPTIMIZERS)]
    if plan.shape.name == "quarter_cosine":
        missing.append("schedule.shape=quarter_cosine: here a half cosine")
    if plan.shape.name == "wsd" and plan.shape.floor and plan.shape.warmup:
        missing.append(f"a warmup from 0: that of warmup_stable_decay starts at {plan.shape.floor:g} of the peak")
    return _trainer_settings(numbers), missing


def _trainer_settings(numbers: _Numbers) -> Settings:
    plan, recipe = numbers.plan, numbers.plan.recipe
    settings: Settings = {
        "per_device_train_batch_size": numbers.micro,
        "gradient_accumulation_steps": numbers.accumulation,
        "max_steps": numbers.steps,
        "learning_rate": numbers.rate,
        "weight_decay": numbers.weight_decay,
        "max_grad_norm": recipe.optim.clip or 0.0,
        "warmup_steps": numbers.warmup,
        "seed": recipe.seed,
        **_trainer_schedule(numbers),
    }
    if recipe.optim.name in _TRAINER_OPTIMIZERS:
        settings["optim"] = _TRAINER_OPTIMIZERS[recipe.optim.name]
    if recipe.optim.name == "adamw":
        settings |= dict(zip(("adam_beta1", "adam_beta2"), plan.betas, strict=True)) | {"adam_epsilon": plan.eps}
    if recipe.precision in ("bf16", "fp32"):
        settings["bf16"] = recipe.precision == "bf16"
    if recipe.batch.by_length:
        settings["train_sampling_strategy"] = "group_by_length"
    return settings


# Adafactor, schedule-free and SGD with momentum are other algorithms there: with another rate or without the betas
_TRAINER_OPTIMIZERS = {"adamw": "adamw_torch_fused"}


def _trainer_schedule(numbers: _Numbers) -> Settings:
    shape = numbers.plan.shape
    match shape.name:
        case "constant":
            return {"lr_scheduler_type": "constant_with_warmup"}
        case "wsd":
            more = {"num_decay_steps": numbers.decay, "min_lr_ratio": shape.floor, "decay_type": "linear"}
            return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": more}
        case "cosine" if shape.floor:
            return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": shape.floor}}
        case "quarter_cosine":  # which it cannot express
            return {"lr_scheduler_type": "cosine"}
        case "linear" if shape.floor:
            more = {"lr_end": shape.floor * numbers.rate, "power": 1.0}
            return {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": more}
        case name:
            return {"lr_scheduler_type": name}


def _trainer(numbers: _Numbers) -> Exported:
    settings, missing = training_arguments(numbers.plan)
    return Exported(_call("TrainingArguments", settings), missing)


def _trl(numbers: _Numbers) -> Exported:
    settings, missing = training_arguments(numbers.plan)
    data = numbers.plan.recipe.data
    settings["max_length"] = data.sequence_length
    if numbers.plan.recipe.row_kind is RowKind.PREFERENCE:
        preference = numbers.plan.recipe.preference
        loss = "sigmoid_norm" if preference.length_normalized else "sigmoid"
        settings |= {"loss_type": loss, "beta": preference.beta, "precompute_ref_log_probs": True}
        return Exported(_call("DPOConfig", settings), missing)
    return Exported(_call("SFTConfig", {**settings, "packing": data.pack}), missing)


_AXOLOTL = {  # names that differ from TrainingArguments; empty: none
    "per_device_train_batch_size": "micro_batch_size",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler",
    "train_sampling_strategy": "",
}


def _axolotl(numbers: _Numbers) -> Exported:
    plan, recipe = numbers.plan, numbers.plan.recipe
    settings, missing = training_arguments(plan)
    ours = {_AXOLOTL.get(name, name): value for name, value in settings.items() if _AXOLOTL.get(name, name)}
    if settings["lr_scheduler_type"] == "cosine_with_min_lr":
        ours |= {"lr_scheduler": "cosine", "cosine_min_lr_ratio": plan.shape.floor}
        del ours["lr_scheduler_kwargs"]
    if recipe.optim.name == "muon":
        ours["optimizer"], missing = "muon", [line for line in missing if not line.startswith("optim.name")]
    ours |= {"sequence_len": recipe.data.sequence_length, "sample_packing": recipe.data.pack}
    return Exported("\n".join(_yaml(ours)), missing)


def _torchtitan(numbers: _Numbers) -> Exported:
    plan, recipe, shape = numbers.plan, numbers.plan.recipe, numbers.plan.shape
    missing = [*_ramp(numbers), *_common(numbers), *_optimizer(numbers, {"adamw": "AdamW"})]
    kinds = {"linear": "linear", "cosine": "cosine", "wsd": "linear", "constant": "linear"}
    if shape.name not in kinds:
        missing.append(f"schedule.shape={shape.name}: its decays are linear, sqrt and cosine")
    schedule: Settings = {"warmup_steps": numbers.warmup, "decay_type": kinds.get(shape.name, "cosine")}
    if shape.name == "wsd":
        schedule["decay_ratio"] = round(shape.decay / plan.total, 6)
    schedule["min_lr_factor"] = 1.0 if shape.name == "constant" else shape.floor
    training = {
        "local_batch_size": numbers.micro, "global_batch_size": numbers.batch, "seq_len": recipe.data.sequence_length,
        "max_norm": recipe.optim.clip or math.inf, "steps": numbers.steps,
    }  # fmt: skip
    arguments = {"pattern": ".*", "optimizer_name": "AdamW"}
    kwargs = {"lr": numbers.rate, "betas": plan.betas, "eps": plan.eps, "weight_decay": numbers.weight_decay}
    groups = f"[{_call('ParamGroupConfig', {**arguments, 'optimizer_kwargs': kwargs}, ' ')}]"
    parts = [
        f"training={_call('TrainingConfig', training)},",
        f"optimizer=OptimizersContainer.Config(param_groups={groups}),",
        f"lr_scheduler={_call('LRSchedulersContainer.Config', schedule)},",
    ]
    missing.append("weight decay of matrices alone: the pattern .* decays biases and norms too")
    return Exported("\n".join(parts), missing)


def _litgpt(numbers: _Numbers) -> Exported:
    plan, recipe, shape = numbers.plan, numbers.plan.recipe, numbers.plan.shape
    missing = [*_ramp(numbers), *_common(numbers), *_optimizer(numbers, {"adamw": "AdamW"})]
    if shape.name != "cosine":
        missing.append(f"schedule.shape={shape.name}: its only schedule is a cosine")
    train = {
        "global_batch_size": numbers.batch, "micro_batch_size": numbers.micro, "lr_warmup_steps": numbers.warmup,
        "max_tokens": round(plan.total * plan.tokens_per_row), "max_seq_length": recipe.data.sequence_length,
        "max_norm": recipe.optim.clip, "min_lr": shape.floor * numbers.rate,
    }  # fmt: skip
    init = {"lr": numbers.rate, "weight_decay": numbers.weight_decay, "betas": list(plan.betas), "eps": plan.eps}
    lines = ["train:", *("  " + line for line in _yaml(train)), "optimizer:", "  class_path: torch.optim.AdamW"]
    lines += ["  init_args:", *("    " + line for line in _yaml(init)), *_yaml({"seed": recipe.seed})]
    missing.append("weight decay of matrices alone: torch.optim.AdamW decays all weights")
    return Exported("\n".join(lines), missing)


def _megatron(numbers: _Numbers) -> Exported:
    plan, recipe, shape = numbers.plan, numbers.plan.recipe, numbers.plan.shape
    missing = [*_common(numbers), *_optimizer(numbers, {"adamw": "adam"})]
    missing += _ramp(numbers) if plan.recipe.follows_noise else []
    styles = {"linear": "linear", "cosine": "cosine", "constant": "constant", "wsd": "WSD"}
    if shape.name not in styles:
        missing.append(f"schedule.shape={shape.name}: its decays are linear, cosine, inverse-square-root and WSD")
    flags: Settings = {
        "micro-batch-size": numbers.micro,
        **_megatron_batch(numbers),
        "seq-length": recipe.data.sequence_length,
        "train-samples": plan.total,
        "lr": numbers.rate,
        "min-lr": shape.floor * numbers.rate,
        "lr-decay-style": styles.get(shape.name, "cosine"),
        "lr-decay-samples": plan.total,
        "lr-warmup-samples": round(shape.warmup),
    }
    if shape.name == "wsd":
        flags |= {"lr-wsd-decay-style": "linear", "lr-wsd-decay-samples": round(shape.decay)}
    flags |= {"optimizer": "adam", "adam-beta1": plan.betas[0], "adam-beta2": plan.betas[1], "adam-eps": plan.eps}
    flags |= {"weight-decay": numbers.weight_decay, "clip-grad": recipe.optim.clip or 0.0, "seed": recipe.seed}
    if len(plan.phases) > 1 and plan.recipe.batch.lr == "follow":
        rates = ", ".join(f"{plan.peak_rate(phase.batch):.3g} at {phase.batch:,}" for phase in plan.phases)
        missing.append(f"a rate that follows the batch ({rates} sequences): --lr is that of the largest batch")
    return Exported(" \\\n".join(f"--{name} {_word(value)}" for name, value in flags.items()), missing)


def _megatron_batch(numbers: _Numbers) -> Settings:
    """The batch, or the phases as thresholds in tokens and batches in sequences."""
    plan = numbers.plan
    if len(plan.phases) == 1 or plan.recipe.follows_noise:
        return {"global-batch-size": numbers.batch}
    phases = (f"{round(phase.clock * plan.tokens_per_row)}:{phase.batch}" for phase in plan.phases)
    return {"step-batch-size-schedule": " ".join(phases)}


def _ramp(numbers: _Numbers) -> Iterator[str]:
    """What is lost of a ramp by a trainer with one batch."""
    plan, ramp = numbers.plan, f"batch.ramp={numbers.plan.recipe.batch.ramp}"
    if plan.recipe.follows_noise:
        yield f"{ramp}: the batch follows a measurement; here it is {numbers.batch:,} throughout"
    elif len(plan.phases) > 1:
        phases = (
            f"{phase.batch:,} from {short(phase.clock * plan.tokens_per_row)} tokens at rate "
            f"{plan.peak_rate(phase.batch):.3g}"
            for phase in plan.phases
        )
        yield f"{ramp} ({', '.join(phases)}): the largest batch is taken throughout"


def _common(numbers: _Numbers) -> Iterator[str]:
    """What no peer expresses."""
    recipe = numbers.plan.recipe
    if recipe.batch.micro_tokens is not None:
        yield f"batch.micro_tokens={recipe.batch.micro_tokens}: micro-batches of a number of tokens"
    if recipe.optim.average is not None:
        yield f"optim.average={recipe.optim.average:g}: the power function average of the weights"
    if recipe.precision == "fp64":
        yield "precision=fp64"


def _optimizer(numbers: _Numbers, known: dict[str, str]) -> Iterator[str]:
    name = numbers.plan.recipe.optim.name
    if name not in known:
        yield f"optim.name={name}: only {', '.join(known)}; its rate and decay do not fit another optimizer"


def _call(name: str, arguments: Settings, separator: str = "\n    ") -> str:
    """A Python call with keyword arguments."""
    inner = f",{separator}".join(f"{key}={_number(value)}" for key, value in arguments.items())
    return f"{name}({inner})" if separator == " " else f"{name}({separator}{inner},\n)"


def _yaml(settings: Settings) -> Iterator[str]:
    for name, value in settings.items():
        yield f"{name}: {_yaml_value(value)}"


def _yaml_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, float):
        return _decimal(value)
    return str(value)


def _number(value: Any) -> str:
    """A Python literal."""
    if isinstance(value, float):
        return 'float("inf")' if math.isinf(value) else _decimal(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_number(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_number, value)) + ")"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _decimal(value: float) -> str:
    """A float with its exact digits, and a point, which YAML 1.1 needs beside an exponent."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else text


def _word(value: Any) -> str:
    """The value of a flag, for a shell."""
    if isinstance(value, float):
        return _decimal(value)
    return f'"{value}"' if " " in str(value) else str(value)


_PEERS: dict[str, Callable[[_Numbers], Exported]] = {
    "trainer": _trainer,
    "trl": _trl,
    "axolotl": _axolotl,
    "torchtitan": _torchtitan,
    "megatron": _megatron,
    "litgpt": _litgpt,
}
