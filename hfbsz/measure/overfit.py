"""Overfitting: validation and training loss on fixed rows at the same moments, the best of them, and when it turned.

Judged by loss, not by accuracy: a classifier's validation loss can triple while its accuracy stays.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_SURE = 2.0  # standard errors of the paired difference


class Watch:
    """Sees every evaluation of a run. Changes with each; `to_dict` and `saved` carry it over a restart.

    `patience`: evaluations without a better one after which the run should stop; None: never. It does not before the
    loss has surely moved from the untrained model's: until then a warmup is at work, and nothing has come to an end.
    """

    def __init__(self, patience: int | None, saved: Mapping[str, Any] | None = None) -> None:
        self.patience, saved = patience, saved or {}
        self.best_step: int | None = saved.get("best_step")
        self.best_nll = np.array(saved.get("best_nll", []))  # [rows], nats, at the best evaluation
        self.best_targets = np.array(saved.get("best_targets", []))
        self.train_loss: float | None = saved.get("train_loss")  # at the best evaluation
        self.onset: int | None = saved.get("onset")
        self.worse: int = saved.get("worse", 0)  # evaluations since the best one
        self.start_nll = np.array(saved.get("start_nll", []))  # [rows], nats, before the first step
        self.moved: bool = saved.get("moved", False)  # whether any evaluation was surely another than that one

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("best_step", "train_loss", "onset", "worse", "moved")}
        arrays = {name: getattr(self, name).tolist() for name in ("best_nll", "best_targets", "start_nll")}
        return {**plain, **arrays}

    @property
    def best_loss(self) -> float:
        """The lowest validation loss so far, nats per target; infinite before the first evaluation."""
        return float(self.best_nll.sum() / self.best_targets.sum()) if len(self.best_nll) else math.inf

    @property
    def stopped(self) -> bool:
        """Whether the run should end."""
        return self.patience is not None and self.worse >= self.patience and self.moved

    def begin(self, nll: np.ndarray) -> None:
        """Take the untrained model's evaluation of the fixed validation rows (nats by row); it cannot be the best."""
        self.start_nll = nll

    def see(self, step: int, nll: np.ndarray, targets: np.ndarray, train_loss: float | None) -> dict[str, float]:
        """Take an evaluation of the fixed validation rows (nats and targets by row), and of the fixed training rows
        (nats per target; None where they are not watched); returns the values of `overfit/*`."""
        loss = float(nll.sum() / targets.sum())
        self.moved = self.moved or not len(self.start_nll) or _surely(nll - self.start_nll) != 0
        if loss < self.best_loss:
            self.best_step, self.best_nll, self.best_targets = step, nll, targets
            self.train_loss, self.worse, self.onset = train_loss, 0, None
        else:
            self.worse += 1
            if self.onset is None and self._turned(nll, train_loss):
                self.onset = self.best_step
        values = {"overfit/rise": loss - self.best_loss, "overfit/best_step": float(self.best_step or 0)}
        if train_loss is not None:
            values |= {"overfit/train_loss": train_loss, "overfit/gap": loss - train_loss}
        if self.onset is not None:
            values["overfit/onset_step"] = float(self.onset)
        return values

    def _turned(self, nll: np.ndarray, train_loss: float | None) -> bool:
        """Whether the same validation rows are surely worse than at the best evaluation, and training rows better.

        The standard error is that of the paired difference, row by row: differences between rows, which are far larger
        than those between moments, cancel.
        """
        if train_loss is None or self.train_loss is None or train_loss >= self.train_loss:
            return False
        return _surely(nll - self.best_nll) > 0


def _surely(difference: np.ndarray) -> int:
    """1 or −1: a paired difference is surely above or below 0; 0: neither."""
    error = math.sqrt(len(difference)) * float(difference.std(ddof=1)) if len(difference) > 1 else math.inf
    total = float(difference.sum())
    return int(math.copysign(1, total)) if abs(total) > _SURE * error else 0
