"""What the noise scale of a run says about its batch, as numbers and as a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfbsz.records.metrics import metric
from hfbsz.records.run_data import is_number

SCALE, ERROR, DUAL_SCALE, NORM_SCALE, NORM_ERROR = (
    "noise/scale",
    "noise/scale_error",
    "noise/dual_scale",
    "noise/norm_scale",
    "noise/norm_scale_error",
)
FAR = 4.0  # times above or below the noise scale: no longer of its order


@dataclass(frozen=True)
class NoiseSummary:
    """The newest estimate of a run's noise scale, and the batch at which it was made; both in sequences."""

    scale: float
    error: float | None  # standard error; None: too few measurements
    batch: int
    of_norms: bool  # of the weights of normalization layers alone

    @property
    def share(self) -> float:
        """Progress of a sequence in this batch ÷ that in a very small batch, for SGD at its best rate: 1 ÷ (1 + B ÷
        noise scale) (McCandlish et al. 2018, eq. 2.7)."""
        return 1 / (1 + self.batch / self.scale)

    @property
    def shown(self) -> str:
        """The noise scale with its standard error and unit."""
        entry = metric(SCALE)
        error = "" if self.error is None else f" ± {self.error:{entry.format}}"
        return f"{self.scale:{entry.format}}{error} {entry.unit}"

    @property
    def is_surely_exceeded(self) -> bool:
        """Whether the batch is far above even the upper end of the 95 % interval of the noise scale of all weights."""
        if self.of_norms or self.error is None:
            return False
        return self.batch > (self.scale + 2 * self.error) * FAR

    @property
    def verdict(self) -> str:
        """What it says about the batch, by this proxy."""
        if self.of_norms:
            return "that of normalization layers alone, which differs from that of all weights by a factor"
        if self.batch * FAR < self.scale:
            return f"the batch of {self.batch:,} is far below it: a larger batch still pays"
        if self.batch > self.scale * FAR:
            return f"the batch of {self.batch:,} is far above it: for plain SGD, a smaller one needs fewer tokens"
        return f"the batch of {self.batch:,} is of its order: for plain SGD, a larger one costs tokens"


def noise_of(records: Sequence[Mapping[str, Any]]) -> NoiseSummary | None:
    """The newest estimate in the records of a run; None if there is none. That of all weights is preferred."""
    for scale, error in ((SCALE, ERROR), (NORM_SCALE, NORM_ERROR)):
        for row in reversed(records):
            if is_number(row.get(scale)) and is_number(row.get("batch/global")) and row[scale] > 0:
                known = row[error] if is_number(row.get(error)) else None
                return NoiseSummary(row[scale], known, int(row["batch/global"]), scale == NORM_SCALE)
    return None
