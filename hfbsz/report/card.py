"""The model card of a run: what it is, how it was trained, how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass

from hfbsz.plan.explain import explain
from hfbsz.plan.plan import Plan
from hfbsz.recipe.tasks import RowKind


@dataclass(frozen=True)
class _Kind:
    """What a task makes of a model, and how such a one is used."""

    tag: str  # the Hub's name of the task
    what: str
    model: str  # class of transformers
    use: str


_ANSWER = """turns = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)[0]))"""
_KINDS = {
    RowKind.TEXT: _Kind(
        "text-generation",
        "causal language model",
        "AutoModelForCausalLM",
        """inputs = tokenizer("def main(", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)[0]))""",
    ),
    RowKind.CONVERSATION: _Kind(
        "text-generation",
        "causal language model that answers",
        "AutoModelForCausalLM",
        _ANSWER,
    ),
    RowKind.PREFERENCE: _Kind(
        "text-generation",
        "causal language model tuned on preferences between answers",
        "AutoModelForCausalLM",
        _ANSWER,
    ),
    RowKind.LABEL: _Kind(
        "text-classification",
        "classifier of texts",
        "AutoModelForSequenceClassification",
        """inputs = tokenizer("I would see it again.", return_tensors="pt", truncation=True)
print(model.config.id2label[model(**inputs).logits.argmax().item()])""",
    ),
}

_TEMPLATE = """---
library_name: transformers
pipeline_tag: {kind.tag}
tags:
- hfbsz
---
# {name}

A {kind.what} ({model}) trained by [hfbsz](#how-it-was-trained) on `{data}`. {state}

## What was reached
| | |
| --- | --- |
{table}

## How to load it
```python
from transformers import {kind.model}, AutoTokenizer

model = {kind.model}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
{kind.use}
```

## How it was trained
```
{plan}
```
Every number is in `plan.json`, every measurement in `records.jsonl`, the recipe in `recipe.yaml`.
"""


def model_card(
    name: str, model: str, data: str, folder: str, state: str, reached: Mapping[str, str], plan: Plan
) -> str:
    """The text of the run's README.md."""
    table, kind = "\n".join(f"| {key} | {value} |" for key, value in reached.items()), _KINDS[plan.recipe.row_kind]
    return _TEMPLATE.format(
        name=name, model=model, data=data, folder=folder, state=state, table=table, plan=explain(plan), kind=kind
    )
