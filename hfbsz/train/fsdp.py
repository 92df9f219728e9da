"""FSDP2 with torch's `fully_shard`, on GPUs and on CPU processes (gloo): requested by the launcher, applied here.

Accelerate turns an FSDP configuration into DDP on a CPU, and its own FSDP2 needs model and optimizer together and
rejects tied embeddings. So the request is removed from the environment before accelerate reads it (and transformers,
which would otherwise initialize weights missing from a checkpoint on rank 0 only). Apart from the wrapping, everything
is the same as under DDP.
"""

from collections import Counter
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hfbsz.errors import UserError
from hfbsz.train.layers import layers_of

_RESHARD = {"true": True, "full_shard": True, "false": False, "shard_grad_op": False}
_SUPPORTED = {  # FSDP option: the values (lower case) that are accepted because they change nothing here
    "SHARDING_STRATEGY": ("full_shard",),
    "OFFLOAD_PARAMS": ("false",),
    "ACTIVATION_CHECKPOINTING": ("false",),
    "ACTIVATION_CHECKPOINTING_OFFLOAD": ("false",),
    "AUTO_WRAP_POLICY": ("transformer_based_wrap",),
    "TRANSFORMER_CLS_TO_WRAP": (),
    "IGNORED_MODULES": (),
    "FORWARD_PREFETCH": ("false",),
    "BACKWARD_PREFETCH": ("backward_pre",),
    "USE_ORIG_PARAMS": ("true",),
    "MIN_NUM_PARAMS": ("100000000", "0"),
    "CPU_RAM_EFFICIENT_LOADING": ("true", "false"),  # every rank loads the full model on its host, then keeps its shard
    "SYNC_MODULE_STATES": ("true", "false"),  # not needed: every rank builds or loads the same weights
    "STATE_DICT_TYPE": ("full_state_dict", "sharded_state_dict"),  # for accelerate's save_state, which is never called
}


@dataclass(frozen=True)
class Sharding:
    """How weights, gradients and optimizer state are sharded over the ranks."""

    reshard_after_forward: bool = True  # False: a layer stays unsharded until its backward: faster, more memory


def fsdp_from_env(environment: MutableMapping[str, str]) -> Sharding | None:
    """Read the FSDP request from the launcher's environment, and remove it there; None if FSDP is not requested.

    Raises UserError for version 1 and for options that would be ignored.
    """
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1"):
        return None
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"FSDP version {version} of the launch command or its config is not supported: set fsdp_version: 2 "
            "under fsdp_config, as accelerate_configs/fsdp2.yaml does"
        )
    options = {name: environment.get(f"FSDP_{name}", "").lower() for name in _SUPPORTED}
    lines = [
        f"fsdp_{name.lower()}: {options[name]} of the launch command or its config would be ignored: remove it"
        + (f" (or set {' or '.join(supported)})" if supported else "")
        for name, supported in _SUPPORTED.items()
        if options[name] not in ("", "none", *supported)
    ]
    reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in _RESHARD:
        lines.append(f"fsdp_reshard_after_forward: {reshard} is not supported: set true or false")
    if lines:
        raise UserError(lines)
    del environment["ACCELERATE_USE_FSDP"]
    return Sharding(_RESHARD[reshard])


def shard(model: Any, sharding: Sharding, device: torch.device, precision: str) -> Any:
    """Shard the model: each rank holds an equal part of every weight on `device`. All ranks call it with equal weights.

    Each layer (the model's `_no_split_modules`) is one unit; all other weights belong to the root unit, so that tied
    embeddings stay one weight. With bf16, layers compute in bf16 from float32 weights and gradients are reduced in
    float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=sharding.reshard_after_forward)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that are sharded one by one: those that share no weight with another module."""
    uses = Counter(weight for _, weight in model.named_parameters(remove_duplicate=False))
    return [layer for layer in layers_of(model) if all(uses[weight] == 1 for weight in layer.parameters())]


def gradient_sync(model: Any, last: bool) -> AbstractContextManager:
    """Context for forward and backward of a micro-batch: ranks average gradients only in the `last` one of a window."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else getattr(model, "no_sync", nullcontext)()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a possibly sharded tensor in full on every rank; all ranks call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a possibly sharded tensor; it shares the tensor's memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that every rank holds in full, placed like `target`; all ranks call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(tensor, target.device_mesh, target.placements) if isinstance(target, DTensor) else tensor


def release(model: Any) -> None:
    """Reshard the model: a forward without a backward leaves its weights unsharded."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def full_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """A sharded model's full weights by name, in rank 0's host memory; None for a model that is not sharded.

    A tied weight is listed once. All ranks call it; all but rank 0 get an empty dictionary.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not is_sharded(model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    return {name: weight for name, weight in weights.items() if name not in tied}


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are sharded over the ranks."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def weight_not_finite(model: Any) -> str | None:
    """The name of the first trainable weight with values that are not finite; None if all are finite.

    All ranks call it and get the same answer.
    """
    trained = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]
    flags = torch.stack([torch.isfinite(local(weight)).all().logical_not() for _, weight in trained]).int()
    if is_sharded(model):
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    indices = flags.nonzero()  # the only operation that waits for the device
    return trained[int(indices[0])][0].removeprefix("module.") if len(indices) else None
