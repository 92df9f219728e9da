"""The evaluations of one run: fixed parts along the run, training rows beside validation, and whole sets at the end."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from hfbsz.data.prepare.corpus import Progress
from hfbsz.data.rows import Rows, sample
from hfbsz.measure.overfit import OverfittingMonitor
from hfbsz.measure.quality import Quality, extractable
from hfbsz.recipe.fields import FINAL_SHARE
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.record import Reading, Step
from hfbsz.train.evaluate import Evaluation
from hfbsz.train.setup import Setup

_BYTES_PER_LOGIT = 8  # logit and log-softmax, float32
_MUCH_MEMORY = 2**30  # bytes


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the model as it stands; all ranks call it, and get the same numbers."""

    setup: Setup
    watch: OverfittingMonitor
    quality: Quality
    show: Progress = lambda *_: None  # of the evaluation at the end
    newest: dict[str | None, Evaluation] = field(default_factory=dict)  # of fixed parts
    whole_losses: dict[str, float] = field(default_factory=dict)  # of validation, by part: full, last

    @property
    def lost(self) -> bool:
        """Whether the newest validation loss is not finite; the same on every rank."""
        losses = [*self.whole_losses.values(), *(self.newest[name].loss for name in self.newest if name is None)]
        return not all(map(math.isfinite, losses))

    @property
    def watched(self) -> bool:
        """Whether training rows are evaluated too: as wished, else where they are seen more than once."""
        recipe = self.setup.plan.recipe
        again = recipe.row_kind is not RowKind.TEXT or self.setup.plan.total > len(self.setup.data.train)
        return again if recipe.eval.watch is None else recipe.eval.watch

    def evaluate(self, step: Step) -> Reading:
        """Evaluate the fixed part of every set: the same rows at every call, so that a curve is of one thing."""
        values: dict[str, float | str] = {}
        for name, rows in self.setup.data.evaluation_sets().items():
            self.newest[name] = found = self._of(rows, self._fixed(rows))
            if name is None:
                values |= self._compared(step, found)
            values |= self._told("eval", name, found)
        return Reading("eval", step.at, values)

    def whole(self, part: str, names: Iterable[str | None]) -> dict[str, float]:
        """Evaluate all rows of the named sets, or as many as `eval.full` gives, as `full/…` or `last/…`.

        The fixed part is not evaluated a second time while the weights are those of the newest evaluation: whoever
        puts others in place clears `newest`.
        """
        values: dict[str, float] = {}
        for name in names:
            rows = self.setup.data.evaluation_sets()[name]
            fixed = self._fixed(rows)
            found = self.newest.get(name) or self._of(rows, fixed)
            if rest := sorted(set(self._final(rows)) - set(fixed)):
                found += self._of(rows, rest, partial(self.show, f"evaluating {name or 'validation'}"))
            values |= self._told(part, name, found) | {f"{_prefix(part, name)}set_rows": len(rows)}
            if name is None:
                self.whole_losses[part] = found.loss
        return values

    def _told(self, part: str, name: str | None, found: Evaluation) -> dict[str, float]:
        return self.quality.measures(_prefix(part, name), found)

    def _fixed(self, rows: Rows) -> Sequence[int]:
        return sample(len(rows), self.setup.plan.recipe.eval.rows)

    def _final(self, rows: Rows) -> Sequence[int]:
        """The rows of the evaluation at the end."""
        if self.setup.plan.recipe.eval.full:
            return range(len(rows))
        most = math.ceil(FINAL_SHARE * self.setup.plan.total / len(self.setup.data.evaluation_sets()))
        return sample(len(rows), most)

    def _of(
        self, rows: Rows, numbers: Sequence[int], show: Callable[[int, int], None] = lambda done, of: None
    ) -> Evaluation:
        return self.setup.evaluate(rows, numbers, self._micro(rows), show)

    def _micro(self, rows: Rows) -> int:
        """Rows of one pass: as wished, else no more than a micro-batch of training holds of the longest ones."""
        recipe = self.setup.plan.recipe
        if recipe.eval.micro_batch is not None:
            return recipe.eval.micro_batch
        filled = recipe.batch.micro_tokens or math.inf
        return int(max(1, min(recipe.batch.micro_max, filled // max(1, int(rows.lengths.max())))))

    def notes(self) -> list[str]:
        """What is to be known of the memory that evaluations take, before the first one."""
        if self.setup.plan.recipe.row_kind is RowKind.LABEL:
            return []
        entries = self.setup.accelerator.unwrap_model(self.setup.model, keep_torch_compile=False).config.vocab_size
        sets = self.setup.data.evaluation_sets().values()
        rows = max(sets, key=lambda rows: self._micro(rows) * int(rows.lengths.max()))
        micro, length = self._micro(rows), int(rows.lengths.max())
        size = micro * length * entries * _BYTES_PER_LOGIT
        if size < _MUCH_MEMORY:
            return []
        smaller = "" if micro == 1 else f"; eval.micro_batch=1: {size / micro / 1e9:.1f} GB"
        return [
            f"an evaluation pass takes {size / 1e9:.1f} GB for its logits and their log-softmax ({micro} rows × "
            f"{length:,} tokens × {entries:,} entries of the vocabulary){smaller}"
        ]

    def _compared(self, step: Step, validation: Evaluation) -> dict[str, float]:
        """Training rows beside validation: what tells of overfitting."""
        loss, values = None, {}
        if self.watched:
            train = self._of(self.setup.data.train, self._fixed(self.setup.data.train))
            loss, values = train.loss, extractable("overfit/train_", train)
        if step.at.step:
            return values | self.watch.update(step.at.step, validation.nll, validation.targets, loss)
        self.watch.begin(validation.nll, validation.targets)
        gap = {} if loss is None else {"overfit/train_loss": loss, "overfit/gap": validation.loss - loss}
        return values | gap


def _prefix(part: str, name: str | None) -> str:
    """Of the metrics of a set; validation (None) has no name in them."""
    return f"{part}/{name}/" if name is not None else f"{part}/"
