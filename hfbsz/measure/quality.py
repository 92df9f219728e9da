"""What an evaluation says of a model, by its task: perplexity and bits per byte, or accuracy and its kin."""

from collections.abc import Sequence

import numpy as np

from hfbsz.measure import metrics
from hfbsz.train.evaluate import Evaluation


class Quality:
    """The metrics of a task, and `further` ones of classifiers, by their names for `evaluate`. Raises UserError for one
    that cannot be loaded."""

    def __init__(self, task: str, further: Sequence[str] = ()) -> None:
        self._task, self._further = task, [metrics.load(name) for name in further]
        self._perplexity, self._bits_per_byte = metrics.load("perplexity"), metrics.load("bits_per_byte")

    def measures(self, prefix: str, found: Evaluation) -> dict[str, float]:
        """The metrics of one evaluation set, their names behind `prefix`; the same on every rank."""
        values = {
            f"{prefix}loss": found.loss,
            f"{prefix}rows": len(found.nll),
            f"{prefix}targets": int(found.targets.sum()),
            f"{prefix}seconds": round(found.seconds, 3),
        }
        if self._task == "classification":
            logits, labels = found.outputs[:, :-1], found.outputs[:, -1].astype(int)
            measured = metrics.classification(logits, labels)
            for metric in self._further:
                measured |= metric.compute(predictions=logits.argmax(axis=1), references=labels)
            return values | {f"{prefix}{name}": float(value) for name, value in measured.items()}
        nll, targets, text_bytes = [float(found.nll.sum())], [int(found.targets.sum())], [found.text_bytes]
        measured = self._perplexity.compute(predictions=nll, references=targets)
        measured |= self._bits_per_byte.compute(predictions=nll, references=text_bytes)
        return values | {f"{prefix}{name}": value for name, value in measured.items()} | extractable(prefix, found)


def extractable(prefix: str, found: Evaluation) -> dict[str, float]:
    """The share of rows that a causal model says by heart, of those long enough to be asked; empty where none is."""
    asked = found.outputs[np.isfinite(found.outputs)] if found.outputs.shape[1] == 1 else np.empty(0)
    return {f"{prefix}extractable": float(asked.mean())} if len(asked) else {}
