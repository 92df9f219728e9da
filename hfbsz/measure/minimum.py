"""All measures of the minimum that a run reached, as one record."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hfbsz.measure.hessian import Estimate, Objective, largest_eigenvalues, trace
from hfbsz.measure.landscape import Points, along_random
from hfbsz.measure.sharpness import ADAPTIVE_RADII, NOISES, RADII, adaptive_sam, keskar, sam, under_noise
from hfbsz.train.device import peak_bytes, reset_peak

_EIGENVALUES = 3
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Cost:
    """What a measure took."""

    seconds: float
    peak_bytes: int  # memory of the process, the model included; on a GPU that of its allocator


@dataclass(frozen=True)
class Minimum:
    """What was measured at the weights of a run; losses in nats/target, on the same fixed rows for every run."""

    loss: float  # of the training rows
    validation_loss: float
    shifted: Mapping[str, float]  # losses of further evaluation sets by name
    eigenvalues: tuple[float, ...]  # of the Hessian, the largest first
    trace: Estimate
    sam: Mapping[str, float]  # rise of the loss by radius
    adaptive_sam: Mapping[str, float]
    keskar: float  # φ, %
    noise: Mapping[str, Estimate]  # rise of the loss by relative size
    landscape: Points
    seconds: float  # that it took
    costs: Mapping[str, Cost]  # by measure

    @property
    def gap(self) -> float:
        """Generalization gap: validation loss − training loss."""
        return self.validation_loss - self.loss

    def to_dict(self) -> dict[str, Any]:
        """The measures as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Minimum":
        """The inverse of `to_dict`. Raises KeyError or TypeError for other data."""
        fields = dict(data)
        fields["trace"] = Estimate(**fields["trace"])
        fields["noise"] = {size: Estimate(**one) for size, one in fields["noise"].items()}
        fields["costs"] = {name: Cost(**one) for name, one in fields["costs"].items()}
        fields["eigenvalues"] = tuple(fields["eigenvalues"])
        fields["landscape"] = [(float(at), float(loss)) for at, loss in fields["landscape"]]
        return cls(**fields)


class _Costs(dict[str, Cost]):
    """The costs of measures by name, in the order in which they were made."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        reset_peak(self._device)
        started = time.monotonic()
        yield
        self[name] = Cost(time.monotonic() - started, peak_bytes(self._device))


def measure(
    training: Objective,
    validation: Objective,
    further: Mapping[str, Objective],
    seconds: float,
    seed: int = 0,
    show: Show = lambda *_: None,
) -> Minimum:
    """Measure the sharpness of the training loss. `further`: the losses of evaluation sets by name; `seconds`: for the
    trace, whose error it narrows."""
    started = time.monotonic()
    costs = _Costs(training.weights[0].device)
    with costs.of("eigenvalues"):
        eigenvalues = largest_eigenvalues(training, _EIGENVALUES, seed, lambda done: show("eigenvalues", done, 3 * 12))
    with costs.of("trace"):
        traced = trace(training, seconds, seed, lambda done: show("trace", done, max(8, done)))
    rises: dict[str, dict[str, float]] = {"sam": {}, "adaptive": {}}
    total = len(RADII) + len(ADAPTIVE_RADII)
    with costs.of("SAM"):
        for radius in RADII:
            rises["sam"][f"{radius:g}"] = sam(training, radius)
            show("worst cases", len(rises["sam"]), total)
    with costs.of("adaptive SAM"):
        for radius in ADAPTIVE_RADII:
            rises["adaptive"][f"{radius:g}"] = adaptive_sam(training, radius)
            show("worst cases", len(RADII) + len(rises["adaptive"]), total)
    with costs.of("Keskar's φ"):
        worst = keskar(training)
    with costs.of("noise"):
        noise = {f"{size:g}": under_noise(training, size, seed=seed) for size in NOISES}
    with costs.of("landscape"):
        line = along_random(training, seed, show=lambda done, total: show("landscape", done, total))
    return Minimum(
        loss=training.loss(),
        validation_loss=validation.loss(),
        shifted={name: objective.loss() for name, objective in further.items()},
        eigenvalues=tuple(eigenvalues),
        trace=traced,
        sam=rises["sam"],
        adaptive_sam=rises["adaptive"],
        keskar=worst,
        noise=noise,
        landscape=line,
        seconds=time.monotonic() - started,
        costs=dict(costs),
    )
