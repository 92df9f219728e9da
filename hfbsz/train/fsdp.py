"""FSDP2 by torch's own `fully_shard`, on GPUs and on gloo processes alike; asked for by the launcher, carried out here.

Accelerate makes DDP of an FSDP configuration on a CPU, and its FSDP2 wants model and optimizer together and refuses
tied embeddings. So the wish is taken out of the environment before accelerate can see it (and transformers, which would
then give weights that a checkpoint lacks to rank 0 alone), and everything but the wrapping stays as it is for DDP.
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

_RESHARD = {"true": True, "full_shard": True, "false": False, "shard_grad_op": False}
_HONOURED = {  # FSDP options: the values (in small letters) under which they change nothing; None: whatever it says
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
    "CPU_RAM_EFFICIENT_LOADING": ("true", "false"),  # every rank loads the whole model on its host, then keeps a share
    "SYNC_MODULE_STATES": ("true", "false"),  # needless: every rank builds or loads the same weights
    "STATE_DICT_TYPE": ("full_state_dict", "sharded_state_dict"),  # of accelerate's save_state, never called
}


@dataclass(frozen=True)
class Sharding:
    """How weights, gradients and optimizer state are shared out over the ranks."""

    reshard_after_forward: bool = True  # false: a layer's weights stay whole until its backward: faster, more memory


def fsdp_from_env(environment: MutableMapping[str, str]) -> Sharding | None:
    """What the launcher's environment asks for, taken out of it; None where it does not ask for FSDP.

    Raises UserError for version 1 and for options that would be ignored.
    """
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1"):
        return None
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"FSDP version {version} of the launch command or its config is not offered: set fsdp_version: 2 "
            "under fsdp_config, as accelerate_configs/fsdp2.yaml does"
        )
    given = {name: environment.get(f"FSDP_{name}", "").lower() for name in _HONOURED}
    lines = [
        f"fsdp_{name.lower()}: {given[name]} of the launch command or its config would be ignored: remove it"
        + (f" (or set {' or '.join(known)})" if known else "")
        for name, known in _HONOURED.items()
        if given[name] not in ("", "none", *known)
    ]
    reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if reshard not in _RESHARD:
        lines.append(f"fsdp_reshard_after_forward: {reshard} is not offered: set true or false")
    if lines:
        raise UserError(lines)
    del environment["ACCELERATE_USE_FSDP"]
    return Sharding(_RESHARD[reshard])


def shard(model: Any, sharding: Sharding, device: torch.device, precision: str) -> Any:
    """The model, each rank holding an equal share of every weight on `device`; all ranks call it with equal weights.

    Shared out layer by layer (the model's `_no_split_modules`), the rest with the model itself, so that tied embeddings
    stay one weight. Under bf16 layers compute in bf16 from float32 weights, and gradients are reduced in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=mixed, reshard_after_forward=sharding.reshard_after_forward)
    return fully_shard(model, mesh=mesh, mp_policy=mixed)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that are shared out one by one: those that own all of their weights."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    uses = Counter(weight for _, weight in model.named_parameters(remove_duplicate=False))
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    return [layer for layer in found if all(uses[weight] == 1 for weight in layer.parameters())]


def gradient_sync(model: Any, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: ranks average gradients in the `last` one of a window alone."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else getattr(model, "no_sync", nullcontext)()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be shared out over the ranks, whole on each of them; all ranks call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """This rank's share of a tensor that every rank holds whole, as `target` is shared out; all ranks call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(tensor, target.device_mesh, target.placements) if isinstance(target, DTensor) else tensor


def release(model: Any) -> None:
    """Let go of whole weights that a forward without backward has left: parameters are then the ranks' shares again."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def full_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """A sharded model's weights on rank 0's host, a tied one once; None for a model that every rank holds whole.

    All ranks call it; all but rank 0 get an empty dictionary.
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
    """Whether ranks hold shares of the model's weights."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def weight_not_finite(model: Any) -> str | None:
    """The name of the first trained weight with values that are not finite; None where all are finite.

    All ranks call it, and get the same answer.
    """
    from torch.distributed.tensor import DTensor

    trained = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]
    shares = [weight.to_local() if isinstance(weight, DTensor) else weight for _, weight in trained]
    flags = torch.stack([torch.isfinite(share).all().logical_not() for share in shares]).int()
    if is_sharded(model):
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    places = flags.nonzero()  # the one moment that waits for the device
    return trained[int(places[0])][0].removeprefix("module.") if len(places) else None
