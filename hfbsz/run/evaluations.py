"""The evaluations of one run: a fixed part of each set during it, with training rows; complete sets at the end."""

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
from hfbsz.train.device import free, is_out_of_memory
from hfbsz.train.evaluate import Evaluation
from hfbsz.train.setup import Setup

_BYTES_PER_LOGIT = 8  # logit and log-softmax, float32
_MUCH_MEMORY = 2**30  # bytes


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the current weights; all ranks call its methods and get the same numbers."""

    setup: Setup
    watch: OverfittingMonitor
    quality: Quality
    show: Progress = lambda *_: None  # shows the progress of the evaluation at the end
    newest: dict[str | None, Evaluation] = field(default_factory=dict)  # of the fixed part of each set
    warn: Callable[[str], None] = lambda line: None
    limits: list[int] = field(default_factory=list)  # rows of a forward pass, after evaluations ran out of memory
    complete_losses: dict[str, float] = field(default_factory=dict)  # of validation, by prefix: full, last

    @property
    def not_finite(self) -> bool:
        """Whether the newest validation loss is not finite; the same on every rank."""
        losses = [*self.complete_losses.values(), *(self.newest[name].loss for name in self.newest if name is None)]
        return not all(map(math.isfinite, losses))

    @property
    def watches_training_rows(self) -> bool:
        """Whether training rows are evaluated too: `eval.watch`; by default, whether they are trained on repeatedly."""
        recipe = self.setup.plan.recipe
        repeated = recipe.row_kind is not RowKind.TEXT or self.setup.plan.total > len(self.setup.data.train)
        return repeated if recipe.eval.watch is None else recipe.eval.watch

    def evaluate(self, step: Step) -> Reading:
        """Evaluate the fixed part of every set: the same rows at every call, so that its losses are comparable."""
        values: dict[str, float | str] = {}
        for name, rows in self.setup.data.evaluation_sets().items():
            self.newest[name] = evaluation = self._evaluate(rows, self._fixed(rows))
            if name is None:
                values |= self._compare(step, evaluation)
            values |= self._measures("eval", name, evaluation)
        return Reading("eval", step.at, values)

    def evaluate_complete(self, prefix: str, names: Iterable[str | None]) -> dict[str, float]:
        """Evaluate the named sets at the end of the run: all rows, or the share that `eval.full` sets. Returns metrics
        by name, under `prefix` (full, last).

        Evaluations of fixed parts in `newest` are reused: clear it after loading other weights.
        """
        values: dict[str, float] = {}
        for name in names:
            rows = self.setup.data.evaluation_sets()[name]
            fixed = self._fixed(rows)
            evaluation = self.newest.get(name) or self._evaluate(rows, fixed)
            if rest := sorted(set(self._final(rows)) - set(fixed)):
                evaluation += self._evaluate(rows, rest, partial(self.show, f"evaluating {name or 'validation'}"))
            values |= self._measures(prefix, name, evaluation) | {f"{_prefix(prefix, name)}set_rows": len(rows)}
            if name is None:
                self.complete_losses[prefix] = evaluation.loss
        return values

    def _measures(self, prefix: str, name: str | None, evaluation: Evaluation) -> dict[str, float]:
        return self.quality.measures(_prefix(prefix, name), evaluation)

    def _fixed(self, rows: Rows) -> Sequence[int]:
        return sample(len(rows), self.setup.plan.recipe.eval.rows)

    def _final(self, rows: Rows) -> Sequence[int]:
        """The row numbers of the evaluation at the end."""
        if self.setup.plan.recipe.eval.full:
            return range(len(rows))
        count = math.ceil(FINAL_SHARE * self.setup.plan.total / len(self.setup.data.evaluation_sets()))
        return sample(len(rows), count)

    def _evaluate(
        self, rows: Rows, numbers: Sequence[int], show: Callable[[int, int], None] = lambda done, total: None
    ) -> Evaluation:
        """Evaluate rows; where a single process runs out of memory, again with half the rows of a forward pass, as all
        later evaluations then do."""
        micro = min([self._micro_batch(rows), *self.limits])
        while True:
            try:
                return self.setup.evaluate(rows, numbers, micro, show)
            except (MemoryError, RuntimeError) as problem:
                if self.setup.accelerator.num_processes > 1 or micro == 1 or not is_out_of_memory(problem):
                    raise
            free(self.setup.accelerator.device)
            micro //= 2
            self.limits.append(micro)
            self.warn(f"an evaluation ran out of memory and is repeated with {micro} rows per forward pass")

    def _micro_batch(self, rows: Rows) -> int:
        """Rows per forward pass: `eval.micro_batch`; by default, as many of the longest rows as a training micro-batch
        holds."""
        recipe = self.setup.plan.recipe
        if recipe.eval.micro_batch is not None:
            return recipe.eval.micro_batch
        tokens = recipe.batch.micro_tokens or math.inf
        micro_max = recipe.batch.micro_max if recipe.batch.micro_max != "auto" else self.setup.plan.facts.micro_max
        longest = max(1, int(rows.lengths.max()))
        if (
            recipe.model.fused_loss is not False or recipe.batch.micro_max == "auto"
        ):  # training says nothing of the logits' memory
            tokens = min(tokens, _MUCH_MEMORY // (_BYTES_PER_LOGIT * self._vocabulary()))
        return int(max(1, min(micro_max or math.inf, tokens // longest)))

    def _vocabulary(self) -> int:
        """The entries of the model's vocabulary; of a classifier, its classes."""
        model = self.setup.accelerator.unwrap_model(self.setup.model, keep_torch_compile=False)
        is_classifier = self.setup.plan.recipe.row_kind is RowKind.LABEL
        return int(model.config.num_labels if is_classifier else model.config.vocab_size)

    def notes(self) -> list[str]:
        """A note on the memory that evaluations take, if it is large."""
        if self.setup.plan.recipe.row_kind is RowKind.LABEL:
            return []
        vocabulary = self._vocabulary()
        sets = self.setup.data.evaluation_sets().values()
        rows = max(sets, key=lambda rows: self._micro_batch(rows) * int(rows.lengths.max()))
        micro, length = self._micro_batch(rows), int(rows.lengths.max())
        size = micro * length * vocabulary * _BYTES_PER_LOGIT
        if size < _MUCH_MEMORY:
            return []
        smaller = "" if micro == 1 else f"; eval.micro_batch=1: {size / micro / 1e9:.1f} GB"
        return [
            f"an evaluation pass takes {size / 1e9:.1f} GB for its logits and their log-softmax ({micro} rows × "
            f"{length:,} tokens × {vocabulary:,} entries of the vocabulary){smaller}"
        ]

    def _compare(self, step: Step, validation: Evaluation) -> dict[str, float]:
        """The metrics of overfitting: the validation loss compared with that of training rows."""
        loss, values = None, {}
        if self.watches_training_rows:
            train = self._evaluate(self.setup.data.train, self._fixed(self.setup.data.train))
            loss, values = train.loss, extractable("overfit/train_", train)
        if step.at.step:
            return values | self.watch.update(step.at.step, validation.nll, validation.targets, loss)
        self.watch.begin(validation.nll, validation.targets)
        gap = {} if loss is None else {"overfit/train_loss": loss, "overfit/gap": validation.loss - loss}
        return values | gap


def _prefix(prefix: str, name: str | None) -> str:
    """The prefix of a set's metrics; validation (None) adds no name."""
    return f"{prefix}/{name}/" if name is not None else f"{prefix}/"
