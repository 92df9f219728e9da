"""Scores of a run's weights on tasks of lm-evaluation-harness: during the run, and of a saved model or checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfbsz.data.prepare.corpus import Progress as Show
from hfbsz.errors import UserError, describe_error
from hfbsz.measure.harness import BATCH, OWN, Request, check_tasks, score
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.load import from_mapping
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.evaluations import final_result
from hfbsz.records.folder import claim
from hfbsz.records.harness import EVENT, WEIGHTS, Score, same, scores
from hfbsz.records.jsonl import JsonLines
from hfbsz.records.record import Clock, Reading
from hfbsz.records.run_data import CLOCK, SECONDS, STEPS, TOKENS, RunData, read_run
from hfbsz.run.weights import load_weights
from hfbsz.system.extras import require
from hfbsz.system.yaml import read_yaml
from hfbsz.train.checkpoint import read
from hfbsz.train.distributed import on_main
from hfbsz.train.setup import Setup


@dataclass(frozen=True)
class Scorer:
    """Scores the current weights of a run (`eval.harness`); all ranks call it, rank 0 scores and the others wait."""

    setup: Setup
    emit: Callable[[Reading], None]
    warn: Callable[[str], None]
    show: Show

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks of the recipe; empty: nothing is scored."""
        return self.setup.plan.recipe.eval.harness.tasks

    def score(self, at: Clock, step: int) -> None:
        """Score the weights of `step` on rank 0 and record it at `at`; all ranks call it, the others wait. A fault is
        one warning, and training goes on."""
        if self.tasks:
            on_main(self.setup.accelerator, lambda: self.score_alone(at, step))

    def score_alone(self, at: Clock, step: int) -> dict[str, str]:
        """The same, called by rank 0 only; returns the scores for people, by task and measure."""
        recipe, accelerator = self.setup.plan.recipe, self.setup.accelerator
        if not self.tasks:
            return {}
        request = Request(tuple(self.tasks), recipe.eval.harness.limit, recipe.eval.micro_batch or BATCH)
        model = accelerator.unwrap_model(self.setup.model, keep_torch_compile=False)
        try:
            with self.setup.optimizer.averaged():
                values = {WEIGHTS: step, **score(model, self.setup.tokenizer, request, self.show)}
        except Exception as fault:  # of a task's files, its data set, or lm-evaluation-harness
            self.warn(f"eval.harness: the weights of step {step:,} could not be scored: {describe_error(fault)}")
            return {}
        finally:
            model.train()
        self.emit(Reading(EVENT, at, values))
        found = scores([{"event": EVENT, **values}])
        return {f"{one.task}, {one.heading}": f"{one.shown} ({one.examples:,} examples)" for one in found}


def check_packages(recipe: Recipe) -> None:
    """Raise UserError for a tracker or for tasks whose package is not installed, and for task files that do not exist;
    called before anything is prepared."""
    if recipe.log.trackio:
        require("log.trackio", "trackio", "trackio")
    if recipe.log.tensorboard:
        require("log.tensorboard", "tensorboard", "tensorboard")
    if tasks := recipe.eval.harness.tasks:
        require("eval.harness.tasks", "lm_eval", "harness")
        check_tasks("eval.harness.tasks", tasks)


def score_saved(path: Path, tasks: Sequence[str] | None, limit: int | None, batch_size: int, show: Show) -> list[Score]:
    """Score the saved model of a run, or a checkpoint in one, and add the scores to the records of the run, unless
    they are there; its page is drawn again if there is one. `tasks` None: those of its recipe, else python_next_line.

    Raises UserError for a folder without weights, a run that is at work, and tasks that cannot be scored.
    """
    run = path if (path / "recipe.yaml").is_file() else path.parent
    if not (run / "recipe.yaml").is_file() or not any(path.glob("*.safetensors")):
        raise UserError(f"{path}: not the folder of a run with a saved model, or of a checkpoint in one")
    recipe = from_mapping(read_yaml(run / "recipe.yaml"))
    if recipe.row_kind is RowKind.LABEL:
        raise UserError(f"{path}: a classifier: tasks score language models")
    lock = claim(run, "score it once that has ended", "its records are written there")
    try:
        data = read_run(run)
        at, step = _position(data) if path == run else _position_of_checkpoint(path)
        request = Request(tuple(tasks or recipe.eval.harness.tasks or (next(iter(OWN)),)), limit, batch_size)
        model, tokenizer = _saved(path) if path == run else _checkpoint(path, show)
        values = {WEIGHTS: step, **score(model, tokenizer, request, show)}
        _record(run, data, Reading(EVENT, at, values))
    finally:
        lock.release()
    return scores([{"event": EVENT, **values}])


def _record(run: Path, data: RunData, reading: Reading) -> None:
    """Append the scores to the records, unless they are the newest of these weights; draw the page again."""
    earlier = [record for record in data.records if record.get("event") == EVENT]
    if any(same(record, reading.values) for record in earlier):
        return
    records = JsonLines(run / "records.jsonl")
    try:
        records.write(reading)
    finally:
        records.close()
    if (run / "report.html").is_file():
        from hfbsz.report.page.page import write

        write([run], None)


def _position(data: RunData) -> tuple[Clock, int]:
    """The end of a run on its axes, and the step of the weights that it saved."""
    at = [data.largest(axis) for axis in (STEPS, CLOCK, TOKENS, SECONDS)]
    if None in at:
        raise UserError(f"{data.folder}: records.jsonl holds no step")
    result = final_result(data)
    steps, sequences, tokens, seconds = (value or 0 for value in at)
    is_final = any(record.get("event") == "final" for record in data.records)
    step = result.step if result is not None and is_final else int(steps)
    return Clock(int(steps), int(sequences), int(tokens), float(seconds)), step


def _position_of_checkpoint(path: Path) -> tuple[Clock, int]:
    progress = read(path).state["progress"]
    at = Clock(*(progress[name] for name in ("step", "clock", "tokens", "seconds")))
    return at, at.step


def _saved(path: Path) -> tuple[Any, Any]:
    """The saved model of a run in float32, on the device, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
        return model.to(device), AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as problem:  # each class of model and tokenizer raises errors of its own
        raise UserError(f"{path}: its model cannot be loaded: {describe_error(problem)}") from None


def _checkpoint(path: Path, show: Show) -> tuple[Any, Any]:
    loaded = load_weights(path, show)
    return loaded.model, loaded.setup.tokenizer
