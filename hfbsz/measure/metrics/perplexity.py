"""Perplexity of a language model: exp of the mean negative log-likelihood per target."""

import math

import datasets
import evaluate


class Perplexity(evaluate.Metric):
    """Takes sums of NLL (nats) as predictions, and the numbers of targets as references; batching does not matter."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="exp(ΣNLL ÷ Σtargets)",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        loss = sum(predictions) / sum(references)
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf}
