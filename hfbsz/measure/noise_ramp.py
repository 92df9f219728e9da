"""A batch ramp that follows the noise scale: doublings, each decided by measurements during the run.

For SGD at its best rate, a sequence in a batch of B makes 1 ÷ (1 + B ÷ noise scale) of the progress that it makes in a
tiny batch (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.7): while B is below the scale, a doubling costs little data
and halves the steps. The scale grows as the loss falls, so the batch may grow with it (Smith et al. 2018, arXiv
1711.00489). Under Adam the scale is a proxy (see hfbsz.measure.noise_scale).
"""

from collections.abc import Mapping

from hfbsz.plan.plan import Plan
from hfbsz.recipe.ramp import Ramp
from hfbsz.records.noise import ERROR, SCALE

CONFIRMATIONS = 2  # measurements in a row that must support a doubling: a batch never falls again


class NoiseRamp:
    """Decides when the batch of a run doubles. Deterministic in the measurements, and so equal on all ranks."""

    def __init__(self, plan: Plan, saved: Mapping[str, int] | None = None) -> None:
        """`saved`: the result of `to_dict` when a run resumes."""
        self.ladder = [phase.batch for phase in plan.phases]
        self.share = Ramp.parse(plan.recipe.batch.ramp or "").share
        self.confirmed = int((saved or {}).get("confirmed", 0))

    def to_dict(self) -> dict[str, int]:
        """The state as plain data, for a checkpoint."""
        return {"confirmed": self.confirmed}

    def decide(self, batch: int, measured: Mapping[str, float]) -> int | None:
        """The next batch of the ladder in sequences, if it is at most `share` of the noise scale less its standard
        error in this measurement and in the preceding one; else None. `batch`: the present one; `measured`: values by
        metric name."""
        following = next((size for size in self.ladder if size > batch), None)
        scale, error = measured.get(SCALE), measured.get(ERROR)
        supported = scale is not None and error is not None and (scale - error) * self.share >= (following or batch)
        self.confirmed = self.confirmed + 1 if supported else 0
        if following is None or self.confirmed < CONFIRMATIONS:
            return None
        self.confirmed = 0
        return following
