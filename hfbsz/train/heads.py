"""A classifier's head: kept where its labels are those of the data, else its output layer is new, and that is told."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.errors import UserError

_SHOWN = 12


def heads_of(model: Any) -> list[str]:
    """Names of the parts that a classifier has beside the model that it stands on."""
    beside = ((name, part) for name, part in model.named_children() if name != model.base_model_prefix)
    return [name for name, part in beside if next(part.parameters(), None) is not None]


@dataclass(frozen=True)
class Head:
    """The head of a classifier that was trained before, by its configuration."""

    labels: tuple[str, ...]  # in the order of their numbers; () where it does not name them
    count: int
    problem: str | None  # what it was trained as, in transformers' words

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Head | None":
        """By a config.json; None where that is of no classifier."""
        if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
            return None
        named = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # a configuration by default is saved without
        try:
            numbered = {int(number): str(label) for number, label in dict(named).items()}
        except (TypeError, ValueError):
            numbered = {}
        labels = tuple(label for _, label in sorted(numbered.items()))
        unnamed = all(label == f"LABEL_{number}" for number, label in numbered.items())
        whole = sorted(numbered) == list(range(len(labels))) and len(set(labels)) == len(labels)
        return cls(() if unnamed or not whole else labels, len(named), config.get("problem_type"))

    def check_order(self, field: str, labels: Sequence[str]) -> None:
        """Raise UserError where `labels` are the head's in another order: every answer would mean another label."""
        if self.labels != tuple(labels) and sorted(self.labels) == sorted(labels):
            raise UserError(
                f"data.labels: the trained head of {field} has the order {_listed(self.labels)}, not "
                f"{_listed(labels)}: write data.labels=[{','.join(self.labels)}], or leave it out"
            )

    def settle(self, field: str, model: Any, labels: Sequence[str], fresh: Iterable[str]) -> list[str]:
        """Keep the trained head, or make the output layer of `model` new where its labels are others; returns what a
        person should know. `fresh`: names of weights that the checkpoint did not hold."""
        output = _output_weights(model)
        missing = not set(fresh).isdisjoint(output)
        if self.labels == tuple(labels) or (not self.labels and self.count == len(labels)):
            if missing:  # no head is there, whatever the configuration says
                return []
            notes = []
            if not self.labels:
                pairs = ", ".join(f"LABEL_{number} is {label}" for number, label in enumerate(labels[:_SHOWN]))
                notes.append(f"{field} does not name its labels: its trained head is kept, {pairs}")
            if self.problem not in (None, "single_label_classification"):
                notes.append(f"{field}: its head was trained for {self.problem}; here a row has one label")
            return notes
        if not missing:
            _renew(model, output)
        theirs = _listed(self.labels) if self.labels else f"{self.count} unnamed labels"
        return [f"{field} tells {theirs} apart, the data {_listed(labels)}: the head's output layer is new"]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_SHOWN]) + (", …" if len(labels) > _SHOWN else "")


def _output_weights(model: Any) -> list[str]:
    """Names of the weights whose shape follows from the number of labels."""
    import torch

    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        wider = {name: weight.shape for name, weight in type(model)(config).named_parameters()}
    return [name for name, weight in model.named_parameters() if wider[name] != weight.shape]


def _renew(model: Any, names: Sequence[str]) -> None:
    spread = getattr(model.config, "initializer_range", None) or 0.02
    for name in names:
        weight = model.get_parameter(name).data
        weight.normal_(0, spread) if weight.ndim > 1 else weight.zero_()
