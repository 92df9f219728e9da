"""Scores of a language model on tasks of lm-evaluation-harness (the optional package lm-eval)."""

import contextlib
import copy
import io
import logging
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfbsz.data.next_line import examples_file
from hfbsz.data.prepare.corpus import Progress as Show
from hfbsz.errors import UserError, describe_error, did_you_mean
from hfbsz.recipe.fields import is_task_file
from hfbsz.records.harness import ERROR, EXAMPLES, PREFIX, SECONDS
from hfbsz.system.yaml import read_yaml

OWN = {"python_next_line": Path(__file__).parent / "python_next_line.yaml"}  # tasks that need no network
BATCH = 8  # sequences of a forward pass
_SEED = 1234  # of few-shot examples and sampled answers, as in lm-evaluation-harness
_NOT_IN_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Request:
    """What to score."""

    tasks: tuple[str, ...]  # names, or paths of task files
    limit: int | None = None  # examples of each task; None: all
    batch_size: int = BATCH  # sequences of a forward pass


def check_tasks(field: str, tasks: Sequence[str]) -> None:
    """Raise UserError for a task file that does not exist. Names are not looked up: the index of all tasks takes half a
    minute to read."""
    for task in filter(is_task_file, tasks):
        if not Path(task).is_file():
            raise UserError(f"{field}: {task!r}: no such file")


def score(model: Any, tokenizer: Any, request: Request, show: Show) -> dict[str, float]:
    """The scores of a model that is not wrapped, by metric name `harness/<task>/<measure>`, with the number of examples
    of each task and the wall time. Random states are the same afterwards; the model is left in evaluation mode.

    Raises UserError for tasks that do not exist or cannot be loaded, and whatever lm-evaluation-harness raises.
    """
    started = time.perf_counter()
    check_tasks("tasks", request.tasks)
    show(f"scoring on {', '.join(request.tasks)}", 0, 0)
    with _quiet(), _same_random_states(), torch.no_grad():
        tasks = _loaded(request.tasks)
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        torch.manual_seed(_SEED)
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=request.batch_size)
        results = evaluate(lm=lm, task_dict=tasks, limit=request.limit, log_samples=False)
    return {**_values(results), SECONDS: round(time.perf_counter() - started, 1)}


@cache  # reading the index and the data sets takes long, and a run may score often
def _loaded(names: tuple[str, ...]) -> Any:
    """The tasks, with their data sets. Raises UserError."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=any(name not in OWN and not is_task_file(name) for name in names))
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            part = manager.load([_own(name) if name in OWN else name])
        except Exception as problem:  # a task file may hold anything, and a data set may be out of reach
            raise UserError(f"tasks: {name!r}{_why(name, manager, problem)}") from None
        for kind, found in loaded.items():
            found |= part.get(kind, {})
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def _own(name: str) -> dict[str, Any]:
    """The configuration of a task of this package."""
    return {**read_yaml(OWN[name]), "dataset_kwargs": {"data_files": {"test": str(examples_file())}}}


def _why(name: str, manager: Any, problem: Exception) -> str:
    if is_task_file(name) or name in manager.all_tasks:
        return f" cannot be loaded: {describe_error(problem)}"
    return f": lm-evaluation-harness has no such task{did_you_mean(name, [*OWN, *manager.all_tasks])}"


def _values(results: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of the results by metric name. A filter of answers other than `none` is part of the name."""
    values: dict[str, float] = {}
    for task, measures in results["results"].items():
        prefix = f"{PREFIX}{_NOT_IN_NAME.sub('-', task)}/"
        for key, value in measures.items():
            measure, _, answers = key.partition(",")
            if isinstance(value, int | float) and answers and np.isfinite(value):
                measure, is_error = measure.removesuffix(ERROR), measure.endswith(ERROR)
                named = measure if answers == "none" else f"{measure}_{_NOT_IN_NAME.sub('-', answers)}"
                values[f"{prefix}{named}{ERROR if is_error else ''}"] = float(value)
        if count := results.get("n-samples", {}).get(task, {}).get("effective"):
            values[f"{prefix}{EXAMPLES}"] = int(count)
    return values


@contextlib.contextmanager
def _same_random_states() -> Iterator[None]:
    """Restore the states of all random generators afterwards."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the messages, warnings and progress bars of lm-evaluation-harness off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
