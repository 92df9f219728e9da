"""Macro F1: the mean of the labels' F1 scores, so that every label counts the same, however rare."""

import datasets
import evaluate
import numpy as np


class MacroF1(evaluate.Metric):
    """Takes predicted and true labels; NaN without rows.

    The F1 of a label is 2·hits ÷ (times predicted + times true), so 0 for one that is never predicted correctly. The
    mean is over the labels that occur, predicted or true, as in scikit-learn's `f1_score(average="macro")`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="mean over labels of 2·hits ÷ (predicted + true)",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        if not len(references):
            return {"macro_f1": float("nan")}
        labels, numbers = np.unique(np.concatenate([predictions, references]), return_inverse=True)
        times = np.bincount(numbers)  # predicted + true
        hits = np.bincount(numbers[len(predictions) :][predictions == references], minlength=len(labels))
        return {"macro_f1": float(np.mean(2 * hits / times))}
