"""The metadata of a model card, which the Hub reads: task, data set, base model, and results of the evaluation."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfbsz.recipe.fields import Origin, Recipe
from hfbsz.records.evaluations import FinalResult
from hfbsz.records.metrics import metric
from hfbsz.records.run_data import is_number

_NOT_RESULTS = ("rows", "set_rows", "targets", "seconds")  # what an evaluation took, not what it found
_HUB_NAMES = {"macro_f1": "f1", "matthews": "matthews_correlation"}  # of metrics that the Hub calls otherwise


def metadata(name: str, data: str, task: str, recipe: Recipe, result: FinalResult | None) -> ModelCardData:
    """The metadata of the card of a run. `name`: of the run; `data`: label of its data; `task`: the Hub's name of the
    task; `result`: the evaluation of the weights, None if they were not evaluated."""
    results = [] if result is None else list(_results(task, data, recipe, result))
    base, dataset = hub_id(recipe.model.path), hub_id(recipe.data.hub)
    return ModelCardData(
        base_model=base,
        datasets=None if dataset is None else [dataset],
        library_name="transformers",
        pipeline_tag=task,
        tags=["hfbsz"],
        model_name=name if results else None,
        eval_results=results or None,
    )


def hub_id(source: str | None) -> str | None:
    """The source if it is a name on the Hub; None if it is a folder on this machine, or none."""
    if source is None or source.startswith((".", "/", "~")) or Path(source).exists():
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def _results(task: str, data: str, recipe: Recipe, result: FinalResult) -> Iterator[EvalResult]:
    """Yield a result for each metric that is finite, of validation and of each further evaluation set."""
    for key, value in result.values.items():
        set_name, _, name = key.rpartition("/")
        if name in _NOT_RESULTS or not is_number(value) or not math.isfinite(value):
            continue
        origin: Origin = recipe.eval.sets.get(set_name, recipe.data)
        prefix = f"{set_name}/" if set_name else ""
        counts = {
            count: result.values[f"{prefix}{count}"] for count in _NOT_RESULTS[:2] if prefix + count in result.values
        }
        yield EvalResult(
            task_type=task,
            dataset_type=hub_id(origin.hub) or set_name or data,
            dataset_name=set_name or f"{data} (validation)",
            dataset_args=counts or None,
            metric_type=_HUB_NAMES.get(name, name),
            metric_name=metric(f"full/{name}").heading,
            metric_value=float(value),
            **_place(origin, is_data=not set_name),
        )


def _place(origin: Origin, is_data: bool) -> dict[str, Any]:
    """Configuration, split and revision of a data set on the Hub; a share that was held out has no split there."""
    if hub_id(origin.hub) is None:
        return {}
    split = getattr(origin, "validation_split", None) if is_data else origin.split
    return {"dataset_config": origin.hub_config, "dataset_split": split, "dataset_revision": origin.revision}
