"""The registry of tasks: a further task is one module and one entry."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY

from hfbsz.data import IGNORED
from hfbsz.errors import UserError
from hfbsz.measure.quality import Quality
from hfbsz.recipe.load import load
from hfbsz.recipe.tasks import TASKS, RowKind, TaskInfo
from hfbsz.train.setup import setup
from hfbsz.train.tasks.language_modeling import LanguageModeling


class SecondHalf(LanguageModeling):
    """Language modeling whose loss counts the second half of every row alone."""

    def collate(self, rows):
        batch = super().collate(rows)
        labels = batch.labels.clone()
        labels[:, : labels.shape[1] // 2] = IGNORED
        return replace(batch, labels=labels, targets=int((labels != IGNORED).sum()))


def build(recipe, model, tokenizer, notes):
    return SecondHalf(tokenizer.pad_token_id or tokenizer.eos_token_id)


@pytest.fixture
def a_fourth_task(monkeypatch):
    monkeypatch.setitem(TASKS, "second_half", TaskInfo(RowKind.TEXT, __name__))


def test_a_fourth_task_is_one_module_and_one_entry(a_fourth_task, ragged, tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path))
    recipe = load([TINY, "task=second_half", f"data.files={ragged}", "duration=6steps", "threads=1"]).recipe
    bundle = setup(recipe)
    assert isinstance(bundle.task, SecondHalf)
    before = bundle.evaluate(bundle.data.validation, range(len(bundle.data.validation)), 4)
    steps = list(bundle.steps())
    assert len(steps) == 6 and all(step.targets < step.step_tokens for step in steps)
    after = bundle.evaluate(bundle.data.validation, range(len(bundle.data.validation)), 4)
    assert after.loss < before.loss and (after.targets < bundle.data.validation.lengths - 1).all()
    measures = Quality(recipe.row_kind).measures("eval/", after)
    assert measures["eval/perplexity"] == pytest.approx(torch.tensor(after.loss).double().exp().item())


def test_tasks_are_refused_by_name_where_there_is_none():
    with pytest.raises(UserError) as caught:
        load([TINY, "task=second_half"])
    assert all(name in caught.value.lines[0] for name in ("second_half", *TASKS))


@pytest.mark.parametrize("name", TASKS)
def test_every_entry_has_a_module_that_builds_it(name):
    import importlib

    assert callable(importlib.import_module(TASKS[name].module).build)
