"""The tasks that a recipe can name. A further task is a module with `build` (hfbsz/train/tasks) and an entry here."""

from dataclasses import dataclass
from enum import StrEnum, auto


class RowKind(StrEnum):
    """What a row is made from. It decides how data are prepared, which metrics are computed, and the model card."""

    TEXT = auto()  # a document, or a part of one
    LABEL = auto()  # a text and its label
    CONVERSATION = auto()  # a prompt and its answer, or turns


@dataclass(frozen=True)
class TaskInfo:
    """What the rest of the package has to know of a task without importing torch."""

    rows: RowKind
    module: str  # gives `build(recipe, model, tokenizer) -> Task`
    auto_class: str = "AutoModelForCausalLM"  # class of transformers that the model is built and loaded by


TASKS = {
    "language_modeling": TaskInfo(RowKind.TEXT, "hfbsz.train.tasks.language_modeling"),
    "classification": TaskInfo(RowKind.LABEL, "hfbsz.train.tasks.classification", "AutoModelForSequenceClassification"),
    "instruction": TaskInfo(RowKind.CONVERSATION, "hfbsz.train.tasks.language_modeling"),
}
