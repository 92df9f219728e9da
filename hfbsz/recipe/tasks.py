"""The tasks that a recipe can name. A further task is a module with `build` (see `hfbsz/train/tasks`) and an entry here."""

from dataclasses import dataclass
from typing import Literal

TEXT, LABEL, CONVERSATION = "text", "label", "conversation"


@dataclass(frozen=True)
class TaskInfo:
    """What the rest of the package has to know of a task without importing torch."""

    rows: Literal["text", "label", "conversation"]  # what a row is made from; it decides data, metrics and model card
    module: str  # gives `build(recipe, model, tokenizer) -> Task`
    auto_class: str = "AutoModelForCausalLM"  # class of transformers that the model is built and loaded by


TASKS = {
    "language_modeling": TaskInfo(TEXT, "hfbsz.train.tasks.language_modeling"),
    "classification": TaskInfo(LABEL, "hfbsz.train.tasks.classification", "AutoModelForSequenceClassification"),
    "instruction": TaskInfo(CONVERSATION, "hfbsz.train.tasks.language_modeling"),
}
