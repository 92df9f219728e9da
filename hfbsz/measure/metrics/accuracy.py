"""Accuracy: the share of rows whose predicted label is correct."""

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """Takes predicted and true labels; NaN without rows."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Σ[prediction = reference] ÷ rows",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(predictions == references)) if len(references) else float("nan")}
