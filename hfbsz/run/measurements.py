"""What a run measures while it trains, and what it decides by it."""

from collections.abc import Callable, Mapping
from typing import Any

from hfbsz.data import IGNORED
from hfbsz.measure.critical_sharpness import SharpnessCollector
from hfbsz.measure.noise import NoiseCollector
from hfbsz.measure.noise_ramp import NoiseRamp
from hfbsz.measure.utilization import flops_per_token, peak_flops
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.noise import NoiseSummary
from hfbsz.records.record import Reading, Step
from hfbsz.train.device import peak_bytes
from hfbsz.train.distributed import precision_of, shared
from hfbsz.train.loop import Collector
from hfbsz.train.setup import Setup

_PAIRS = 1000  # preference pairs whose labels are counted


class Measurements:
    """The collectors of a run on one rank, with their state in checkpoints."""

    def __init__(
        self, setup: Setup, state: Mapping[str, Any] | None, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        """`state`: the state of the checkpoint from which the run resumes; `warn`: told what cannot be measured."""
        plan, state = setup.plan, state or {}
        self._accelerator = setup.accelerator
        self._noise = None
        if plan.recipe.measure.noise.method != "off":
            ranks, parts = setup.accelerator.num_processes, setup.optimizer.parts
            self._noise = NoiseCollector(plan, setup.model, ranks, state.get("noise"), parts)
        self._sharpness = None
        if plan.recipe.measure.sharpness.method != "off":
            sets = setup.data.evaluation_sets()
            chosen = {name: sets[name] for name in plan.recipe.measure.sharpness.sets}
            self._sharpness = SharpnessCollector(
                plan, setup.model, setup.task, setup.accelerator, chosen, state.get("sharpness"), warn
            )
        self._peak_speed = _peak_speed(setup)
        self._ramp = NoiseRamp(plan, state.get("ramp")) if plan.recipe.follows_noise else None

    @property
    def collectors(self) -> list[Collector]:
        """What the training loop calls in measured steps."""
        return [one for one in (self._noise, self._sharpness) if one is not None]

    @property
    def noise(self) -> NoiseSummary | None:
        """The newest noise scale; None if none was measured."""
        return None if self._noise is None else self._noise.summary()

    def reading(self, step: Step, rows: int) -> Reading:
        """The record of a logged step; `rows`: number of training rows."""
        return step.reading(rows, peak_bytes(self._accelerator.device), self._peak_speed)

    def decide(self, step: Step) -> int | None:
        """The batch in sequences that an adaptive ramp takes from the next step on, the same on all ranks; None: no
        change. All ranks call it after each step."""
        if self._ramp is None or not step.collected:
            return None
        batch: int | None = shared(self._accelerator, self._ramp.decide(step.global_batch, step.collected))
        return batch

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data, for a checkpoint."""
        parts = {"noise": self._noise, "sharpness": self._sharpness, "ramp": self._ramp}
        return {name: part.to_dict() for name, part in parts.items() if part is not None}


def _peak_speed(setup: Setup) -> float | None:
    """On rank 0, tokens per second at the peak of all devices; None if the peak is not known."""
    accelerator, plan = setup.accelerator, setup.plan
    if not accelerator.is_main_process:
        return None
    peak = peak_flops(accelerator.device, precision_of(plan.recipe))
    model = accelerator.unwrap_model(setup.model, keep_torch_compile=False)
    operations = flops_per_token(model, plan.tokens_per_row, learned_share(setup))
    return None if peak is None or operations is None else peak * accelerator.num_processes / operations


def learned_share(setup: Setup) -> float:
    """The share of the input tokens that have a label; of preference pairs, over the first ones."""
    rows, counts = setup.data.train, setup.data.manifest.train
    if setup.plan.recipe.row_kind is RowKind.PREFERENCE:
        sides = [side for index in range(min(len(rows), _PAIRS)) for side in (rows[index].chosen, rows[index].rejected)]
        return sum(int((side.labels != IGNORED).sum()) for side in sides) / sum(len(side.tokens) for side in sides)
    return 1.0 if counts.targets is None else counts.targets / counts.tokens
