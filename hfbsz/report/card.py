"""The model card of a run: what it is, what became of its batch, how it was trained, how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfbsz.plan.explain import explain
from hfbsz.plan.plan import Plan
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.evaluations import FinalResult
from hfbsz.records.run_data import RunData
from hfbsz.report.batch_story import batch_story
from hfbsz.report.card_metadata import metadata
from hfbsz.system.yaml import yaml_text


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
{metadata}
---
# {name}

A {kind.what} ({model}) trained by [hfbsz](#how-it-was-trained) on `{data}`. {state}

## What was reached
| | |
| --- | --- |
{table}
{story}
## How to load it
```python
from transformers import {kind.model}, AutoTokenizer

model = {kind.model}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
{kind.use}
```

## The recipe
What differs from the defaults of hfbsz:
```yaml
{recipe}```

## How it was trained
```
{plan}
```
{machine}Every number is in `plan.json`, every measurement in `records.jsonl`, the recipe in `recipe.yaml`.
"""
PICTURE = "batch.png"  # beside the card
_NOT_IN_CARD = ("output_dir", "threads", "log", "hub", "resume")  # how it ran, not what it is


def model_card(
    name: str,
    model: str,
    data: str,
    folder: str,
    state: str,
    reached: Mapping[str, str],
    plan: Plan,
    run: RunData | None = None,
    result: FinalResult | None = None,
    has_picture: bool = False,
) -> str:
    """The text of the run's README.md. `folder`: what the model is loaded from. `run`: its records and machine; None:
    not known. `result`: the evaluation of the weights; None: they were not evaluated. `has_picture`: beside it."""
    kind = _KINDS[plan.recipe.row_kind]
    return _TEMPLATE.format(
        metadata=metadata(name, data, kind.tag, plan.recipe, result).to_yaml(),
        name=name,
        model=model,
        data=data,
        folder=folder,
        state=state,
        table="\n".join(f"| {key} | {value} |" for key, value in reached.items()),
        story=_story(run, has_picture),
        recipe=recipe_text(plan.recipe.model_dump(mode="json", exclude_defaults=True)),
        plan=explain(plan),
        machine=_machine(run),
        kind=kind,
    )


def recipe_text(changed: Mapping[str, Any]) -> str:
    """The YAML text in the card, of the fields that differ from the defaults."""
    return yaml_text({name: value for name, value in changed.items() if name not in _NOT_IN_CARD})


def _story(run: RunData | None, has_picture: bool) -> str:
    """The section about the batch; empty if no step was recorded."""
    if run is None or not (story := batch_story(run)):
        return ""
    picture = f"![Loss, batch and noise scale over tokens]({PICTURE})\n\n" if has_picture else ""
    return f"\n## The batch\n{picture}{story}\n"


def _machine(run: RunData | None) -> str:
    """A line about software and hardware; empty if they are not known."""
    known = {} if run is None else run.machine
    software = [f"{name} {known[name]}" for name in ("hfbsz", "torch", "transformers") if known.get(name)]
    if not software:
        return ""
    return f"With {', '.join(software)}, on {known.get('processes')} × {known.get('device')}.\n\n"
