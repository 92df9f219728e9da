"""What is known of the sharpness of a run: its critical learning rate during training, and its minimum."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.records.metrics import ADAPTIVE_RADIUS
from hfbsz.records.run_data import RunData, is_number
from hfbsz.system.files import read_object

MINIMUM_FILE = "sharpness.json"  # beside the weights, what `hfbsz sharpness` measured
CONTESTED = (
    "Whether flat minima generalize better is contested. For it: Keskar et al. 2017, Smith et al. 2020. Against it: "
    "Dinh et al. 2017 (plain sharpness changes with a rescaling that changes no output), Shallue et al. 2019 and "
    "Geiping et al. 2022 (tuned large batches generalize as well), Andriushchenko et al. 2023 (sharpness correlates "
    "poorly with generalization). A diagnostic, not a criterion."
)
CRITICAL_RATE, RATIO = "sharpness/critical_rate", "sharpness/rate_ratio"
_LATE = 0.2  # of the training: before it, warmup decides the ratio
_LOW = 0.1  # a learning rate far below the critical one


@dataclass(frozen=True)
class SharpnessSummary:
    """Learning rate ÷ critical learning rate over a run, without its first fifth."""

    median: float
    lowest: float
    highest: float
    measurements: int

    @property
    def spread(self) -> str:
        """The range and the number of measurements."""
        return f"median, {self.lowest:.2g} to {self.highest:.2g} in {self.measurements} measurements"

    @property
    def verdict(self) -> str:
        """What it says about the learning rate."""
        if self.median > 1:
            return "above 1: most steps that were measured raised the loss of their own rows"
        if self.median < _LOW:
            return (
                "far below 1: steps could be much longer before they raise the loss of their own rows, which makes no "
                "longer one better"
            )
        return "below 1: steps lowered the loss of their own rows"


def sharpness_of(run: RunData) -> SharpnessSummary | None:
    """The summary of a run; None if nothing was measured after its first fifth."""
    last = run.largest("train/sequences") or 0
    clocks, ratios = run.series(RATIO, "train/sequences")
    late = [float(ratio) for clock, ratio in zip(clocks, ratios, strict=True) if clock >= _LATE * last]
    return SharpnessSummary(statistics.median(late), min(late), max(late), len(late)) if late else None


@dataclass(frozen=True)
class FinalSharpness:
    """The sharpness at the end of a run; None: not measured."""

    eigenvalue: float | None  # the largest one of the Hessian
    adaptive_sam: float | None  # rise at ADAPTIVE_RADIUS, nats/target
    critical: float | None  # 2 ÷ critical learning rate


def final_sharpness(run: RunData, folder: Path) -> FinalSharpness:
    """Of the saved weights where `hfbsz sharpness` measured them, else the last values of the run itself."""

    def last(name: str) -> float | None:
        values = run.values(f"sharpness/{name}")
        return float(values[-1]) if values else None

    minimum: Any = (read_object(folder / MINIMUM_FILE) or {}).get("minimum")
    try:
        eigenvalue, adaptive = minimum["eigenvalues"][0], minimum["adaptive_sam"][f"{ADAPTIVE_RADIUS:g}"]
        measured = is_number(eigenvalue) and is_number(adaptive)
    except (LookupError, TypeError):
        measured = False
    if not measured:
        eigenvalue, adaptive = last("eigenvalue"), last("adaptive_sam")
    return FinalSharpness(eigenvalue, adaptive, last("critical"))
