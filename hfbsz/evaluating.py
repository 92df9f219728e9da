"""The evaluations of one run: every set, training rows beside validation, and the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    @property
    def watched(self) -> bool:
        """Whether training rows are evaluated too: as wished, else where they are seen more than once."""
        recipe = self.plan.recipe
        again = recipe.task != "language_modeling" or self.plan.total > len(self.data.train)
        return again if recipe.eval.watch is None else recipe.eval.watch

    def evaluate(self, step: Step, full: bool, best: bool = False) -> Reading:
        """Evaluate every set: its fixed part, and the rest too where it is `full`. `best`: once more, at the end, the
        weights of the best evaluation."""
        values: dict[str, float | str] = {}
        for name, rows in self.data.sets.items():
            fixed = sample(len(rows), self.plan.recipe.eval.rows)
            found = self._of(rows, fixed)
            if not name and not best:  # fixed parts are comparable over the run, so the best is chosen by them
                values |= self._compared(step, found)
            if full and (rest := sorted(set(range(len(rows))) - set(fixed))):
                found += self._of(rows, rest)
            if self.reports is not None:
                values |= self.reports.measures(f"eval/{name}/" if name else "eval/", found)
        if best:
            values |= {"eval/best": 1, "overfit/best_step": float(self.watch.best_step or 0)}
        values["eval/full"] = int(full)
        return Reading("eval", step.step, step.clock, step.tokens, step.seconds, values)

    def _of(self, rows: Rows, numbers: Sequence[int]) -> Evaluation:
        recipe = self.plan.recipe
        with self.optimizer.averaged():
            micro = recipe.eval.micro_batch or recipe.batch.micro_max
            return evaluate(self.model, self.task, rows, numbers, micro, self.accelerator)

    def _compared(self, step: Step, validation: Evaluation) -> dict[str, float]:
        """Training rows beside validation: what tells of overfitting."""
        loss, values = None, {}
        if self.watched:
            train = self._of(self.data.train, sample(len(self.data.train), self.plan.recipe.eval.rows))
            loss, values = train.loss, extractable("overfit/train_", train)
        if step.step:
            return values | self.watch.see(step.step, validation.nll, validation.targets, loss)
        self.watch.begin(validation.nll)
        gap = {} if loss is None else {"overfit/train_loss": loss, "overfit/gap": validation.loss - loss}
        return values | gap
