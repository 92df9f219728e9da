"""A classifier's head: kept if its labels are those of the data, else its output layer is reset, with a note."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.errors import UserError

_SHOWN = 12


def heads_of(model: Any) -> list[str]:
    """Names of a classifier's top-level modules with weights, other than its base model."""
    others = ((name, part) for name, part in model.named_children() if name != model.base_model_prefix)
    return [name for name, part in others if next(part.parameters(), None) is not None]


@dataclass(frozen=True)
class Head:
    """The head of a pretrained classifier, as its configuration describes it."""

    labels: tuple[str, ...]  # in the order of their ids; () if they are unnamed
    count: int  # of labels
    problem: str | None  # transformers' `problem_type`

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Head | None":
        """The head that a config.json describes; None if the model is not a classifier."""
        if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
            return None
        id2label = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # the default is not saved in config.json
        try:
            by_id = {int(number): str(label) for number, label in dict(id2label).items()}
        except (TypeError, ValueError):
            by_id = {}
        labels = tuple(label for _, label in sorted(by_id.items()))
        unnamed = all(label == f"LABEL_{number}" for number, label in by_id.items())
        is_complete = sorted(by_id) == list(range(len(labels))) and len(set(labels)) == len(labels)
        return cls(() if unnamed or not is_complete else labels, len(id2label), config.get("problem_type"))

    def check_order(self, field: str, labels: Sequence[str]) -> None:
        """Raise UserError if `labels` are the head's in another order: its outputs would be read as wrong labels."""
        if self.labels != tuple(labels) and sorted(self.labels) == sorted(labels):
            raise UserError(
                f"data.labels: the pretrained head of {field} has the order {_listed(self.labels)}, not "
                f"{_listed(labels)}: set data.labels=[{','.join(self.labels)}], or leave it out"
            )

    def keep_or_reset(self, field: str, model: Any, labels: Sequence[str], new: Iterable[str]) -> list[str]:
        """Keep the pretrained head, or reset the output layer of `model` if the labels differ; returns notes for the
        user. `new`: names of weights that were not in the checkpoint."""
        output = _output_weights(model)
        is_new = not set(new).isdisjoint(output)
        if self.labels == tuple(labels) or (not self.labels and self.count == len(labels)):
            if is_new:  # the checkpoint has no head, though its configuration names one
                return []
            notes = []
            if not self.labels:
                pairs = ", ".join(f"LABEL_{number} is {label}" for number, label in enumerate(labels[:_SHOWN]))
                notes.append(f"{field} does not name its labels: its pretrained head is kept, {pairs}")
            if self.problem not in (None, "single_label_classification"):
                notes.append(f"{field}: its head was trained for {self.problem}; here every row has a single label")
            return notes
        if not is_new:
            _reset(model, output)
        before = _listed(self.labels) if self.labels else f"{self.count} unnamed labels"
        return [f"{field} has the labels {before}, the data {_listed(labels)}: the head's output layer is new"]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_SHOWN]) + (", …" if len(labels) > _SHOWN else "")


def _output_weights(model: Any) -> list[str]:
    """Names of the weights whose shape depends on the number of labels."""
    import torch

    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        wider = {name: weight.shape for name, weight in type(model)(config).named_parameters()}
    return [name for name, weight in model.named_parameters() if wider[name] != weight.shape]


def _reset(model: Any, names: Sequence[str]) -> None:
    deviation = getattr(model.config, "initializer_range", None) or 0.02
    for name in names:
        weight = model.get_parameter(name).data
        weight.normal_(0, deviation) if weight.ndim > 1 else weight.zero_()
