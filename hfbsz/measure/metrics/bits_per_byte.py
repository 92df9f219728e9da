"""Bits per byte of a language model: comparable between tokenizers, because it is per byte of text, not per token."""

import math

import datasets
import evaluate


class BitsPerByte(evaluate.Metric):
    """Takes sums of NLL (nats) as predictions, and the bytes of text that the targets stand for as references."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ΣNLL ÷ ln 2 ÷ Σbytes",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"bits_per_byte": sum(predictions) / math.log(2) / sum(references)}
