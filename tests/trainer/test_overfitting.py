"""The overfitting monitor in transformers' Trainer: its numbers, its onset, and its state in checkpoints."""

import datasets
import pytest
import torch
from test_planned import built
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hfbsz.errors import UserError
from hfbsz.trainer.overfitting import OverfittingWatch


@pytest.fixture(autouse=True)
def _here(monkeypatch, cache):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 24:
            control.should_save = control.should_training_stop = True


def trainer_of(ragged, folder, *callbacks, patience=None):
    """Twelve rows, trained on again and again."""
    one = built(ragged)
    torch.manual_seed(0)
    rows = [torch.tensor(one.data.train[index]).long() for index in range(12)]
    held_out = [torch.tensor(one.data.validation[index]).long() for index in range(8)]
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], max_steps=60, learning_rate=1e-2, per_device_train_batch_size=4,
        eval_strategy="steps", eval_steps=6, logging_steps=6, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModelForCausalLM.from_config(one.model.config), args=arguments, callbacks=list(callbacks),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        eval_dataset=[{"input_ids": row, "labels": row} for row in held_out],
    )  # fmt: skip
    watch = OverfittingWatch(trainer, patience=patience)
    trainer.add_callback(watch)
    return trainer, watch


def moments(trainer):
    return [log for log in trainer.state.log_history if "eval_overfit_gap" in log]


def test_the_gap_the_best_and_the_onset_are_logged(ragged, tmp_path):
    trainer, watch = trainer_of(ragged, tmp_path)
    trainer.train()
    found, losses = moments(trainer), [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert [log["eval_overfit_loss"] for log in found] == pytest.approx(losses, abs=2e-3)  # Trainer's own evaluation
    assert found[-1]["eval_overfit_gap"] > 1 > found[0]["eval_overfit_gap"]
    best = min(range(len(losses)), key=lambda index: found[index]["eval_overfit_loss"])
    assert watch.monitor.best_step == 6 * (best + 1) == found[-1]["eval_overfit_onset_step"]
    assert found[-1]["eval_overfit_rise"] == pytest.approx(
        found[-1]["eval_overfit_loss"] - found[best]["eval_overfit_loss"]
    )


def test_patience_ends_the_run(ragged, tmp_path):
    trainer, watch = trainer_of(ragged, tmp_path, patience=2)
    trainer.train()
    assert trainer.state.global_step < 60 and watch.monitor.worse == 2


@pytest.mark.parametrize("restored", [False, True])
def test_a_resumed_run_has_the_same_moments(ragged, tmp_path, restored):
    whole, _ = trainer_of(ragged, tmp_path / "a")
    whole.train()
    stopped, _ = trainer_of(ragged, tmp_path / "b", Stop())
    stopped.train()
    resumed, watch = trainer_of(ragged, tmp_path / "b")
    resumed.args.restore_callback_states_from_checkpoint = restored  # Trainer then makes the callback anew
    resumed.train(resume_from_checkpoint=True)
    assert restored or watch.monitor.start_loss is not None
    names = [name for name in moments(whole)[-1] if name.startswith("eval_overfit")]
    for one, other in zip(moments(whole), moments(resumed), strict=True):
        assert [one.get(name, -1) for name in names] == pytest.approx([other.get(name, -1) for name in names], rel=1e-4)


def test_a_stream_cannot_be_watched(ragged, tmp_path):
    trainer, _ = trainer_of(ragged, tmp_path)
    for given in (None, {"one": trainer.eval_dataset}):
        trainer.eval_dataset = given
        with pytest.raises(UserError, match="eval_dataset: the overfitting monitor needs one map-style"):
            OverfittingWatch(trainer)


def test_columns_that_the_model_does_not_take_are_left_out(ragged, tmp_path):
    trainer, watch = trainer_of(ragged, tmp_path)
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist(), "text": "a"} for row in
            trainer.eval_dataset]  # fmt: skip
    expected = watch._losses(trainer.eval_dataset)
    for dataset in (rows, datasets.Dataset.from_list(rows)):
        assert [part.tolist() for part in watch._losses(dataset)] == [part.tolist() for part in expected]
