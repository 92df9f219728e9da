"""The overfitting monitor as a callback of transformers' Trainer, planned or not."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from hfbsz.data.rows import sample
from hfbsz.errors import UserError
from hfbsz.measure.overfit import OverfittingMonitor

_IGNORED = -100
_NAME = "OverfittingWatch"


class OverfittingWatch(TrainerCallback, ExportableState):
    """At every evaluation, compares the loss of fixed validation rows with that of fixed training rows, in eval mode,
    and logs the gap, the rise since the best evaluation, and the step at which overfitting began (`eval_overfit_…`).

    Use: `trainer.add_callback(OverfittingWatch(trainer))`. Every process evaluates the same rows. The state is saved in
    Trainer's checkpoints.
    """

    _newest: ClassVar[Any] = None  # the trainer watched last: Trainer restores callbacks without their arguments

    def __init__(self, trainer: Trainer | None = None, rows: int = 256, patience: int | None = None) -> None:
        """`rows`: of each set; `patience`: evaluations without improvement after which training stops (None: never).

        Raises UserError for a trainer without a map-style train_dataset and eval_dataset.
        """
        type(self)._newest = trainer = trainer or self._newest
        for name in ("train_dataset", "eval_dataset"):
            rows_of = getattr(trainer, name, None)
            if not hasattr(rows_of, "__getitem__") or isinstance(rows_of, dict):
                raise UserError(f"{name}: the overfitting monitor needs one map-style dataset")
        self.trainer: Any = trainer
        self.rows, self.patience, self.saved = rows, patience, None
        self.monitor = OverfittingMonitor(patience)

    def state(self) -> dict[str, Any]:
        """The state as plain data."""
        return {"args": {"rows": self.rows, "patience": self.patience}, "attributes": {"saved": self.monitor.to_dict()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the state of a checkpoint, or evaluate the untrained model."""
        saved = state.stateful_callbacks.get(_NAME) if isinstance(state.stateful_callbacks, dict) else None
        if state.global_step and saved:
            saved = saved[0] if isinstance(saved, list) else saved
            self.monitor = OverfittingMonitor(self.patience, saved["attributes"]["saved"])
        elif not state.global_step:
            self.monitor.begin(*self._losses(self.trainer.eval_dataset))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the fixed rows and log the comparison."""
        if not state.global_step:
            return
        train_nll, train_targets = self._losses(self.trainer.train_dataset)
        nll, targets = self._losses(self.trainer.eval_dataset)
        values = self.monitor.update(state.global_step, nll, targets, float(train_nll.sum() / train_targets.sum()))
        values["overfit/loss"] = float(nll.sum() / targets.sum())
        self.trainer.log({name.replace("overfit/", "eval_overfit_"): value for name, value in values.items()})
        if self.monitor.stopped:
            control.should_training_stop = True

    @torch.no_grad()
    def _losses(self, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
        """Summed losses in nats and targets of fixed rows (shape [rows])."""
        trainer = self.trainer
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        training, size = model.training, trainer.args.per_device_eval_batch_size
        numbers, collate = sample(len(dataset), self.rows), trainer.data_collator
        if hasattr(dataset, "column_names"):  # of the datasets package
            dataset = trainer._remove_unused_columns(dataset, description="evaluation")
        else:
            collate = trainer._get_collator_with_removed_columns(collate, description="evaluation")
        parts = []
        model.eval()
        try:
            for start in range(0, len(numbers), size):
                batch = collate([dataset[int(index)] for index in numbers[start : start + size]])
                inputs: Any = trainer._prepare_inputs(batch)
                labels = inputs["labels"]
                with trainer.compute_loss_context_manager():
                    logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
                parts.append(_row_losses(logits.float(), labels))
        finally:
            model.train(training)
        nll, targets = zip(*parts, strict=True)
        return np.concatenate(nll), np.concatenate(targets)


def _row_losses(logits: torch.Tensor, labels: torch.Tensor) -> Sequence[np.ndarray]:
    """Summed losses in nats, and targets, [rows]: of next tokens for labels [rows, tokens], of classes for [rows]."""
    if labels.ndim == 1:
        logits, labels = logits[:, None], labels[:, None]
    else:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none")
    sums = losses.view_as(labels).double().sum(dim=1)
    return sums.cpu().numpy(), (labels != _IGNORED).sum(dim=1).cpu().numpy()
