"""The tasks that a recipe can name. A further task is a module with `build` (hfbsz/train/tasks) and an entry here."""

from dataclasses import dataclass
from enum import StrEnum, auto


class RowKind(StrEnum):
    """What a row is made from. It decides the preparation, the class of the model, the metrics and the model card."""

    TEXT = auto()  # a document, or a part of one
    LABEL = auto()  # a text and its label
    CONVERSATION = auto()  # a prompt and its answer, or turns
    PREFERENCE = auto()  # a prompt with two answers: one chosen, one rejected


@dataclass(frozen=True)
class TaskInfo:
    """What the rest of the package has to know of a task without importing torch."""

    rows: RowKind
    module: str  # has `build(recipe, model, tokenizer, notes) -> Task`


TASKS = {
    "language_modeling": TaskInfo(RowKind.TEXT, "hfbsz.train.tasks.language_modeling"),
    "classification": TaskInfo(RowKind.LABEL, "hfbsz.train.tasks.classification"),
    "instruction": TaskInfo(RowKind.CONVERSATION, "hfbsz.train.tasks.language_modeling"),
    "preference": TaskInfo(RowKind.PREFERENCE, "hfbsz.train.tasks.preference"),
}
