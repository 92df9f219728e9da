"""All measures of the minimum that a run reached, as one record."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hfbsz.measure.hessian import Estimate, Objective, largest_eigenvalues, trace
from hfbsz.measure.landscape import Points, along_random
from hfbsz.measure.sharpness import ADAPTIVE_RADII, NOISES, RADII, adaptive_sam, keskar, sam, under_noise

_EIGENVALUES = 3
Show = Callable[[str, int, int], None]


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
        fields["eigenvalues"] = tuple(fields["eigenvalues"])
        fields["landscape"] = [(float(at), float(loss)) for at, loss in fields["landscape"]]
        return cls(**fields)


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
    eigenvalues = largest_eigenvalues(training, _EIGENVALUES, seed, lambda done: show("eigenvalues", done, 3 * 12))
    traced = trace(training, seconds, seed, lambda done: show("trace", done, max(8, done)))
    rises: dict[str, dict[str, float]] = {"sam": {}, "adaptive": {}}
    total = len(RADII) + len(ADAPTIVE_RADII)
    for radius in RADII:
        rises["sam"][f"{radius:g}"] = sam(training, radius)
        show("worst cases", len(rises["sam"]), total)
    for radius in ADAPTIVE_RADII:
        rises["adaptive"][f"{radius:g}"] = adaptive_sam(training, radius)
        show("worst cases", len(RADII) + len(rises["adaptive"]), total)
    noise = {f"{size:g}": under_noise(training, size, seed=seed) for size in NOISES}
    line = along_random(training, seed, show=lambda done, total: show("landscape", done, total))
    return Minimum(
        loss=training.loss(),
        validation_loss=validation.loss(),
        shifted={name: objective.loss() for name, objective in further.items()},
        eigenvalues=tuple(eigenvalues),
        trace=traced,
        sam=rises["sam"],
        adaptive_sam=rises["adaptive"],
        keskar=keskar(training),
        noise=noise,
        landscape=line,
        seconds=time.monotonic() - started,
    )
