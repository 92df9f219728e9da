"""Matthews correlation of predicted and true labels: 1 if all are correct, 0 if they are uncorrelated."""

import datasets
import evaluate
import numpy as np


class Matthews(evaluate.Metric):
    """Takes predicted and true labels, two or more; NaN without rows.

    R_K of Gorodkin 2004, eq. 8: the correlation of the two one-hot matrices [rows, labels]. If all predictions, or all
    references, have the same label, it is 0/0 and defined as 0, as in scikit-learn.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="cov(predictions, references) ÷ √(cov(predictions, predictions)·cov(references, references))",
            citation="Gorodkin 2004, Comparing two K-category assignments by a K-category correlation coefficient",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        if not len(references):
            return {"matthews": float("nan")}
        labels, numbers = np.unique(np.concatenate([predictions, references]), return_inverse=True)
        predicted, true = (np.bincount(part, minlength=len(labels)) * 1.0 for part in np.split(numbers, 2))
        rows, hits = len(references), np.sum(predictions == references)
        spread = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
        return {"matthews": float((hits * rows - predicted @ true) / np.sqrt(spread)) if spread else 0.0}
