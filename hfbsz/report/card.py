"""The model card of a run: what it is, how it was trained, how to load it."""

from collections.abc import Mapping

from hfbsz.explain import explain
from hfbsz.plan import Plan

_TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- hfbsz
---
# {name}

A causal language model ({model}) trained by [hfbsz](#how-it-was-trained) on `{data}`. {state}

## What was reached
| | |
| --- | --- |
{table}

## How to load it
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer("def main(", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)[0]))
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
    table = "\n".join(f"| {key} | {value} |" for key, value in reached.items())
    return _TEMPLATE.format(
        name=name, model=model, data=data, folder=folder, state=state, table=table, plan=explain(plan)
    )
