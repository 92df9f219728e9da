"""The optimizer of a run, from torch or pytorch_optimizer, behind one small interface for the loop."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hfbsz.plan.plan import Plan, PlannedStep
from hfbsz.train.average import WeightAverage
from hfbsz.train.fsdp import shard_like
from hfbsz.train.muon import Muon

Group = dict[str, Any]
_AVERAGE = "average"  # takes the place of an optimizer index in the names of tensors


class Optimizers:
    """One or more torch optimizers that step together, and the average of the weights, if there is one.

    Every parameter group has a key `decays`: whether weight decay applies to it.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer], average_age: float | None = None) -> None:
        """`average_age`: the mean age of the averaged weights (train/average); None: weights are not averaged."""
        self.parts = tuple(parts)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._average = None if average_age is None else WeightAverage(weights, average_age)
        self._span = (0, 0)  # of the step, in sequences
        self._waits = not all(isinstance(part, torch.optim.AdamW) and part.defaults["fused"] for part in self.parts)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.param_groups[0]["params"][0].device

    @property
    def param_groups(self) -> list[Group]:
        """The parameter groups of all optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def set(self, planned: PlannedStep) -> None:
        """Set the learning rate and weight decay of a planned step."""
        self._span = (planned.clock, planned.next_clock)
        for group in self.param_groups:
            group["lr"] = planned.learning_rate
            group["weight_decay"] = planned.weight_decay if group["decays"] else 0.0

    def step(self, found_inf: torch.Tensor) -> None:
        """Update the weights and clear the gradients; if `found_inf` (a scalar on the device) is not 0, weights and
        moments stay unchanged. Fused AdamW reads it on the device; for the others the host waits for its value."""
        skipped = self._waits and bool(found_inf)
        for part in self.parts:
            if not self._waits:
                part.found_inf = found_inf  # type: ignore[attr-defined]  # where fused AdamW looks for it
            if not skipped:
                part.step()
            part.zero_grad(set_to_none=True)
        if self._average is not None and not skipped:
            self._average.update(*self._span)

    def clear(self) -> None:
        """Clear the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self, names: Mapping[int, str]) -> dict[str, torch.Tensor]:
        """The state tensors by `optimizer index/weight name/key`, and the averages by `average/weight name`; `names`
        maps the id() of a weight to its name."""
        averages = self._average.tensors(names) if self._average is not None else {}
        moments = {
            f"{number}/{names[id(weight)]}/{key}": value
            for number, part in enumerate(self.parts)
            for weight, state in part.state.items()
            for key, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        return moments | {f"{_AVERAGE}/{name}": mean for name, mean in averages.items()}

    def scalars(self) -> list[Group]:
        """Numbers that a parameter group carries from step to step (LAMB's step, schedule-free's sums), one dictionary
        per group."""
        names = [group.keys() - {"lr", "weight_decay", "decays"} for group in self.param_groups]
        return [
            {key: group[key] for key in sorted(keys) if isinstance(group[key], bool | int | float)}
            for group, keys in zip(self.param_groups, names, strict=True)
        ]

    def load(
        self,
        weights: Mapping[str, torch.Tensor],
        tensors: Iterable[tuple[str, torch.Tensor]],
        scalars: Sequence[Mapping[str, Any]],
    ) -> None:
        """Restore the results of `tensors` and `scalars`; all ranks call it.

        Averages are skipped if this run does not average its weights.

        Raises LookupError for another number of parameter groups, and for the state of an unknown optimizer or weight.
        """
        if len(scalars) != len(self.param_groups):
            raise LookupError(f"it has {len(scalars)} parameter groups, the optimizer has {len(self.param_groups)}")
        for group, saved in zip(self.param_groups, scalars, strict=True):
            group.update(saved)
        averages: dict[int, torch.Tensor] = {}
        for name, tensor in tensors:
            number, _, rest = name.partition("/")
            if number == _AVERAGE and rest in weights:
                if self._average is not None:
                    averages[id(weights[rest])] = shard_like(tensor, weights[rest])
                continue
            weight_name, _, key = rest.rpartition("/")
            if weight_name not in weights or number not in map(str, range(len(self.parts))):
                raise LookupError(f"{name} is the state of no weight of this model and optimizer")
            weight = weights[weight_name]
            local = shard_like(tensor, weight) if tensor.shape == weight.shape else tensor
            self.parts[int(number)].state[weight][key] = local
        if averages and self._average is not None:
            self._average.load(averages)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has the weights to evaluate and save: their average, if the run or schedule-free
        averages them, else the trained weights."""
        switched = [part for part in self.parts if hasattr(part, "eval")]
        for part in switched:
            part.eval()
        if self._average is not None:
            self._average.swap()
        try:
            yield
        finally:
            if self._average is not None:
                self._average.swap()
            for part in switched:
                part.train()  # type: ignore[attr-defined]


def build_optimizer(model: Any, plan: Plan) -> Optimizers:
    """The recipe's optimizer with the plan's hyperparameters. Weight decay applies to matrices, not to biases and norms
    (the same groups as transformers' Trainer)."""
    return Optimizers(_parts(model, plan), plan.recipe.optim.average)


def _parts(model: Any, plan: Plan) -> list[torch.optim.Optimizer]:
    """The torch optimizers of a plan."""
    optim = plan.recipe.optim
    common: dict[str, Any] = {"lr": plan.rate}
    adam = common | {"betas": plan.betas, "eps": plan.eps}
    groups = _groups(model)
    match optim.name:
        case "adamw":
            return [torch.optim.AdamW(groups, **adam, fused=True)]
        case "sgd":
            return [torch.optim.SGD(groups, **common, momentum=optim.momentum)]
        case "adafactor":
            return [torch.optim.Adafactor(groups, **common)]
        case "muon":
            hidden, rest = _split_hidden(model, groups)
            muon = Muon(hidden, **common, momentum=optim.momentum)
            return [muon, torch.optim.AdamW(rest, **adam, fused=True)]
        case "lamb":
            from pytorch_optimizer import Lamb

            # as in the authors' code, weights without decay have no trust ratio either
            return [Lamb([group | {"adam": not group["decays"]} for group in groups], **adam)]
        case "schedule_free":
            from pytorch_optimizer import ScheduleFreeAdamW

            return [ScheduleFreeAdamW(groups, **adam)]


def _groups(model: Any) -> list[Group]:
    from transformers.trainer_pt_utils import get_parameter_names

    no_decay = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    names = set(get_parameter_names(model, [nn.LayerNorm], no_decay))
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return [
        {"params": [weight for name, weight in trained if (name in names) is decays], "decays": decays}
        for decays in (True, False)
    ]


def _split_hidden(model: Any, groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Groups for Muon, the matrices between embeddings and head, and groups of all other weights."""
    outer = {id(weight) for weight in embeddings(model)}
    hidden = [weight for weight in groups[0]["params"] if weight.ndim == 2 and id(weight) not in outer]
    hidden_ids = {id(weight) for weight in hidden}
    rest = [
        group | {"params": [weight for weight in group["params"] if id(weight) not in hidden_ids]} for group in groups
    ]
    return [{"params": hidden, "decays": True}], rest


def embeddings(model: Any) -> list[torch.Tensor]:
    """The weights of input and position embeddings and of the output head; a tied weight is listed once."""
    weights = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        if head is not None:
            weights.setdefault(id(head.weight), head.weight)
    return list(weights.values())
