"""Overfitting: validation and training loss on fixed rows at the same steps, the best evaluation, and the onset.

It is judged by loss, not accuracy: a classifier's validation loss can triple while its accuracy stays the same.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_SIGNIFICANT = 2.0  # standard errors of the paired difference


class OverfittingMonitor:
    """Tracks the best evaluation of a run, and whether and since when the run overfits; updated by every evaluation.

    The best evaluation is the one with the lowest validation loss, if that is below the loss before training; a loss
    that is not finite is never the best.

    `patience` is the number of evaluations without improvement after which the run should stop (None: never). It has no
    effect until the loss differs significantly from the untrained model's, so that a long warmup does not end a run.
    """

    def __init__(self, patience: int | None, saved: Mapping[str, Any] | None = None) -> None:
        """`saved`: the result of `to_dict` when a run resumes, else None."""
        self.patience, saved = patience, saved or {}
        self.best_step: int | None = saved.get("best_step")
        self.best_nll = np.array(saved.get("best_nll", []))  # [rows], nats, at the best evaluation
        self.targets = np.array(saved.get("targets", saved.get("best_targets", [])))  # [rows], constant over a run
        self.train_loss: float | None = saved.get("train_loss")  # at the best evaluation
        self.onset: int | None = saved.get("onset")
        self.worse: int = saved.get("worse", 0)  # evaluations since the best one
        self.start_nll = np.array(saved.get("start_nll", []))  # [rows], nats, before the first step
        self.moved: bool = saved.get("moved", False)  # whether any evaluation differed significantly from it

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data, for a checkpoint."""
        plain = {name: getattr(self, name) for name in ("best_step", "train_loss", "onset", "worse", "moved")}
        arrays = {name: getattr(self, name).tolist() for name in ("best_nll", "targets", "start_nll")}
        return {**plain, **arrays}

    @property
    def start_loss(self) -> float | None:
        """Validation loss before training, nats per target; None if the run resumed from another run's checkpoint."""
        has_start = len(self.start_nll) > 0 and len(self.targets) > 0
        return float(self.start_nll.sum() / self.targets.sum()) if has_start else None

    @property
    def best_loss(self) -> float | None:
        """Validation loss of the best evaluation, nats per target; None if none was better than before training."""
        return float(self.best_nll.sum() / self.targets.sum()) if len(self.best_nll) else None

    @property
    def lowest(self) -> float:
        """The lowest finite validation loss so far, including the one before training; infinity if there is none."""
        finite = [loss for loss in (self.start_loss, self.best_loss) if loss is not None and math.isfinite(loss)]
        return min(finite, default=math.inf)

    @property
    def stopped(self) -> bool:
        """Whether patience has run out, so that the run should stop."""
        return self.patience is not None and self.worse >= self.patience and self.moved

    def begin(self, nll: np.ndarray, targets: np.ndarray) -> None:
        """Record the untrained model's evaluation of the fixed validation rows (nats and targets, shape [rows]); the
        best evaluation must be below it."""
        self.start_nll, self.targets = nll, targets

    def update(self, step: int, nll: np.ndarray, targets: np.ndarray, train_loss: float | None) -> dict[str, float]:
        """Record an evaluation of the fixed validation rows (nats and targets, shape [rows]) and of the fixed training
        rows (nats per target; None if they are not evaluated); returns the metrics `overfit/*`."""
        self.targets = targets
        loss, start = float(nll.sum() / targets.sum()), self.start_loss
        self.moved = self.moved or start is None or not math.isfinite(loss) or _change(nll, self.start_nll) != 0
        if loss < self.lowest:
            self.best_step, self.best_nll = step, nll
            self.train_loss, self.worse, self.onset = train_loss, 0, None
        else:
            self.worse += 1
            if self.onset is None and self._overfits(nll, train_loss):
                self.onset = self.best_step
        values = {"overfit/rise": loss - self.lowest, "overfit/best_step": float(self.best_step or 0)}
        if start is not None:
            values["overfit/change"] = loss - start
        if train_loss is not None:
            values |= {"overfit/train_loss": train_loss, "overfit/gap": loss - train_loss}
        if self.onset is not None:
            values["overfit/onset_step"] = float(self.onset)
        return values

    def _overfits(self, nll: np.ndarray, train_loss: float | None) -> bool:
        """Whether validation loss is significantly above that of the best evaluation while training loss is below."""
        if train_loss is None or self.train_loss is None or train_loss >= self.train_loss:
            return False
        return _change(nll, self.best_nll) > 0


def _change(nll: np.ndarray, before: np.ndarray) -> int:
    """The sign of the change in the loss of the same rows: 1 or −1 if it is significant, else 0.

    The standard error is that of the paired difference: differences between rows, which are far larger than those
    between evaluations, cancel.
    """
    with np.errstate(invalid="ignore"):  # no significant change where a row's loss is not finite
        difference = nll - before
        error = math.sqrt(len(difference)) * float(difference.std(ddof=1)) if len(difference) > 1 else math.inf
        total = float(difference.sum())
    return int(math.copysign(1, total)) if abs(total) > _SIGNIFICANT * error else 0
