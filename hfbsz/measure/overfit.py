"""Overfitting: validation and training loss on fixed rows at the same moments, the best of them, and when it turned.

BatchEvaluation by loss, not by accuracy: a classifier's validation loss can triple while its accuracy stays.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_SURE = 2.0  # standard errors of the paired difference


class Watch:
    """Sees every evaluation of a run. Changes with each; `to_dict` and `saved` carry it over a restart.

    The best evaluation is the lowest one below the loss before training; a loss that is not finite is never the best.

    `patience`: evaluations without a better one after which the run should stop; None: never. It does not before the
    loss has surely moved from the untrained model's: until then a warmup is at work, and nothing has come to an end.
    """

    def __init__(self, patience: int | None, saved: Mapping[str, Any] | None = None) -> None:
        self.patience, saved = patience, saved or {}
        self.best_step: int | None = saved.get("best_step")
        self.best_nll = np.array(saved.get("best_nll", []))  # [rows], nats, at the best evaluation
        self.targets = np.array(saved.get("targets", saved.get("best_targets", [])))  # [rows], of every evaluation
        self.train_loss: float | None = saved.get("train_loss")  # at the best evaluation
        self.onset: int | None = saved.get("onset")
        self.worse: int = saved.get("worse", 0)  # evaluations since the best one
        self.start_nll = np.array(saved.get("start_nll", []))  # [rows], nats, before the first step
        self.moved: bool = saved.get("moved", False)  # whether any evaluation was surely another than that one

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("best_step", "train_loss", "onset", "worse", "moved")}
        arrays = {name: getattr(self, name).tolist() for name in ("best_nll", "targets", "start_nll")}
        return {**plain, **arrays}

    @property
    def _begun(self) -> bool:
        return len(self.start_nll) > 0 and len(self.targets) > 0

    @property
    def start_loss(self) -> float | None:
        """Validation loss before training, nats per target; None: not known, the run goes on from elsewhere."""
        return float(self.start_nll.sum() / self.targets.sum()) if self._begun else None

    @property
    def best_loss(self) -> float | None:
        """Validation loss of the best evaluation, nats per target; None: none was better than before training."""
        return float(self.best_nll.sum() / self.targets.sum()) if len(self.best_nll) else None

    @property
    def lowest(self) -> float:
        """The lowest validation loss so far, before training included; infinite before the first finite one."""
        finite = [loss for loss in (self.start_loss, self.best_loss) if loss is not None and math.isfinite(loss)]
        return min(finite, default=math.inf)

    @property
    def stopped(self) -> bool:
        """Whether the run should end."""
        return self.patience is not None and self.worse >= self.patience and self.moved

    def begin(self, nll: np.ndarray, targets: np.ndarray) -> None:
        """Take the untrained model's evaluation of the fixed validation rows (nats and targets by row): what any other
        must be below to be the best."""
        self.start_nll, self.targets = nll, targets

    def see(self, step: int, nll: np.ndarray, targets: np.ndarray, train_loss: float | None) -> dict[str, float]:
        """Take an evaluation of the fixed validation rows (nats and targets by row), and of the fixed training rows
        (nats per target; None where they are not watched); returns the values of `overfit/*`."""
        self.targets = targets
        loss, start = float(nll.sum() / targets.sum()), self.start_loss
        self.moved = self.moved or start is None or not math.isfinite(loss) or _surely(nll, self.start_nll) != 0
        if loss < self.lowest:
            self.best_step, self.best_nll = step, nll
            self.train_loss, self.worse, self.onset = train_loss, 0, None
        else:
            self.worse += 1
            if self.onset is None and self._turned(nll, train_loss):
                self.onset = self.best_step
        values = {"overfit/rise": loss - self.lowest, "overfit/best_step": float(self.best_step or 0)}
        if start is not None:
            values["overfit/change"] = loss - start
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
        return _surely(nll, self.best_nll) > 0


def _surely(nll: np.ndarray, before: np.ndarray) -> int:
    """1 or −1: the same rows are surely above or below what they were before; 0: neither."""
    with np.errstate(invalid="ignore"):  # rows whose loss is not finite are sure of nothing
        difference = nll - before
        error = math.sqrt(len(difference)) * float(difference.std(ddof=1)) if len(difference) > 1 else math.inf
        total = float(difference.sum())
    return int(math.copysign(1, total)) if abs(total) > _SURE * error else 0
