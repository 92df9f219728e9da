"""The metrics of an evaluation: perplexity and bits per byte, accuracy and other metrics of a classification, or the
rewards of preference pairs."""

from collections.abc import Sequence

import numpy as np

from hfbsz.measure import metrics
from hfbsz.recipe.tasks import RowKind
from hfbsz.train.evaluate import Evaluation


class Quality:
    """The metrics of a kind of rows. `extra`: further metrics for classifiers, by name or path for `evaluate`; raises
    UserError for one that cannot be loaded."""

    def __init__(self, kind: RowKind, extra: Sequence[str] = ()) -> None:
        self._kind, self._extra = kind, [metrics.load(name) for name in extra]
        names = () if kind in (RowKind.LABEL, RowKind.PREFERENCE) else ("perplexity", "bits_per_byte")
        self._of_tokens = {name: metrics.load(name) for name in names}

    def measures(self, prefix: str, evaluation: Evaluation) -> dict[str, float]:
        """The metrics of one evaluation set by name, each prefixed with `prefix`; the same on every rank."""
        values = {
            f"{prefix}loss": evaluation.loss,
            f"{prefix}rows": len(evaluation.nll),
            f"{prefix}targets": int(evaluation.targets.sum()),
            f"{prefix}seconds": round(evaluation.seconds, 3),
        }
        if self._kind is RowKind.LABEL:
            logits, labels = evaluation.outputs[:, :-1], evaluation.outputs[:, -1].astype(int)
            measured = metrics.classification(logits, labels)
            for metric in self._extra:
                measured |= metric.compute(predictions=logits.argmax(axis=1), references=labels)
            return values | {f"{prefix}{name}": float(value) for name, value in measured.items()}
        if self._kind is RowKind.PREFERENCE:
            chosen, rejected = evaluation.outputs.T
            return values | {
                f"{prefix}preference_accuracy": float((chosen > rejected).mean()),
                f"{prefix}reward_margin": float((chosen - rejected).mean()),
                f"{prefix}chosen_reward": float(chosen.mean()),
            }
        nll, targets, text_bytes = (
            [float(evaluation.nll.sum())],
            [int(evaluation.targets.sum())],
            [evaluation.text_bytes],
        )
        measured = self._of_tokens["perplexity"].compute(predictions=nll, references=targets)
        measured |= self._of_tokens["bits_per_byte"].compute(predictions=nll, references=text_bytes)
        return values | {f"{prefix}{name}": value for name, value in measured.items()} | extractable(prefix, evaluation)


def extractable(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    """The share of rows that a causal model has memorized, among those long enough to test; empty if there is none."""
    tested = evaluation.outputs[np.isfinite(evaluation.outputs)] if evaluation.outputs.shape[1] == 1 else np.empty(0)
    return {f"{prefix}extractable": float(tested.mean())} if len(tested) else {}
