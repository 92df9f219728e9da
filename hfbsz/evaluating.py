"""The evaluations of one run: fixed parts along the run, training rows beside validation, and whole sets at the end."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from hfbsz.data.rows import Prepared, Rows, sample
from hfbsz.loop import Evaluation, evaluate
from hfbsz.measure.overfit import Watch
from hfbsz.optimizers import Optimizers
from hfbsz.plan import Plan
from hfbsz.record import Reading, Step
from hfbsz.reports import Reports, extractable
from hfbsz.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the model as it stands; all ranks call it. Rank 0 alone has reports, and alone gets their measures."""

    plan: Plan
    data: Prepared
    model: Any
    optimizer: Optimizers
    task: Task
    accelerator: Accelerator
    watch: Watch
    reports: Reports | None
    newest: dict[str, Evaluation] = field(default_factory=dict)  # by set: of its fixed part, at the newest evaluation
    whole_losses: dict[str, float] = field(default_factory=dict)  # of validation, by part: full, last

    @property
    def lost(self) -> bool:
        """Whether the newest validation loss is not finite; the same on every rank."""
        losses = [*self.whole_losses.values(), *(self.newest[name].loss for name in self.newest if not name)]
        return not all(map(math.isfinite, losses))

    @property
    def watched(self) -> bool:
        """Whether training rows are evaluated too: as wished, else where they are seen more than once."""
        recipe = self.plan.recipe
        again = recipe.task != "language_modeling" or self.plan.total > len(self.data.train)
        return again if recipe.eval.watch is None else recipe.eval.watch

    def evaluate(self, step: Step) -> Reading:
        """Evaluate the fixed part of every set: the same rows at every call, so that a curve is of one thing."""
        values: dict[str, float | str] = {}
        for name, rows in self.data.sets.items():
            self.newest[name] = found = self._of(rows, self._fixed(rows))
            if not name:
                values |= self._compared(step, found)
            values |= self._told("eval", name, found)
        return Reading("eval", step.step, step.clock, step.tokens, step.seconds, values)

    def whole(self, part: str, names: Iterable[str]) -> dict[str, float]:
        """Evaluate all rows of the named sets, as `full/…` or `last/…`.

        The fixed part is not evaluated a second time while the weights are those of the newest evaluation: whoever
        puts others in place clears `newest`.
        """
        values: dict[str, float] = {}
        for name in names:
            rows = self.data.sets[name]
            fixed = self._fixed(rows)
            found = self.newest.get(name) or self._of(rows, fixed)
            if rest := sorted(set(range(len(rows))) - set(fixed)):
                found += self._of(rows, rest)
            values |= self._told(part, name, found)
            if not name:
                self.whole_losses[part] = found.loss
        return values

    def _told(self, part: str, name: str, found: Evaluation) -> dict[str, float]:
        prefix = f"{part}/{name}/" if name else f"{part}/"
        return self.reports.measures(prefix, found) if self.reports is not None else {}

    def _fixed(self, rows: Rows) -> Sequence[int]:
        return sample(len(rows), self.plan.recipe.eval.rows)

    def _of(self, rows: Rows, numbers: Sequence[int]) -> Evaluation:
        recipe = self.plan.recipe
        with self.optimizer.averaged():
            micro = recipe.eval.micro_batch or recipe.batch.micro_max
            return evaluate(self.model, self.task, rows, numbers, micro, self.accelerator)

    def _compared(self, step: Step, validation: Evaluation) -> dict[str, float]:
        """Training rows beside validation: what tells of overfitting."""
        loss, values = None, {}
        if self.watched:
            train = self._of(self.data.train, self._fixed(self.data.train))
            loss, values = train.loss, extractable("overfit/train_", train)
        if step.step:
            return values | self.watch.see(step.step, validation.nll, validation.targets, loss)
        self.watch.begin(validation.nll, validation.targets)
        gap = {} if loss is None else {"overfit/train_loss": loss, "overfit/gap": validation.loss - loss}
        return values | gap
