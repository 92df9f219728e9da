"""Expected calibration error: the mean gap between a classifier's confidence and its accuracy."""

import datasets
import evaluate
import numpy as np


class CalibrationError(evaluate.Metric):
    """Takes probabilities [rows, classes] and true labels; NaN without rows.

    Rows are grouped into `bins` equal bins (a, b] of confidence, their largest probability; the error is the mean over
    the bins, weighted by their rows, of |accuracy − mean confidence| (Guo et al. 2017, eq. 3, with 15 bins as there).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Σ over bins of rows of the bin ÷ rows · |accuracy − confidence|",
            citation="Guo et al. 2017, On calibration of modern neural networks, arXiv:1706.04599",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], bins: int = 15) -> dict[str, float]:
        if not references:
            return {"calibration_error": float("nan")}
        probabilities = np.array(predictions)
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == np.array(references)
        bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1), right=True)
        return {"calibration_error": float(np.abs(np.bincount(bin_of, correct - confidence)).sum() / len(references))}
