"""Time and cost to a loss over the number of devices: which batch, and where more devices stop paying.

Two models meet here. Optimization: S(B) = a + b ÷ B steps to the loss at a batch of B sequences (McCandlish et al.
2018, arXiv 1812.06162). Hardware: the time of a step of B sequences on n devices, from the throughput of one device at
the micro-batches that fit, the optimizer's step, and the communication that backward passes do not hide. For each n the
batch with the least time is taken. Pure functions, without torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

BACKWARD = 2 / 3  # share of a micro-batch's time that the backward pass takes (twice the operations of the forward one)
_BATCHES = 40  # powers of two of the rows per device that are compared


@dataclass(frozen=True)
class StepsToLoss:
    """S(B) = a + b ÷ B steps to a loss, B in sequences."""

    least_steps: float  # a
    least_sequences: float  # b

    @property
    def critical(self) -> float:
        """The critical batch b ÷ a, in sequences: twice the least steps, and twice the least sequences."""
        return self.least_sequences / self.least_steps

    def at(self, batch: float) -> float:
        """Steps to the loss at a batch in sequences."""
        return self.least_steps + self.least_sequences / batch

    @classmethod
    def through(cls, sequences: float, batch: float, critical: float) -> "StepsToLoss":
        """The curve of a critical batch through a run of `sequences` sequences at the batch `batch`."""
        least = sequences / (1 + batch / critical)
        return cls(least / critical, least)


@dataclass(frozen=True)
class Network:
    """The links of a device: bandwidths in bytes/s of one direction, latency in seconds of one message."""

    inside: float = 450e9  # between devices of one machine
    between: float = 50e9  # between machines, for each device
    devices: int = 8  # of a machine
    latency: float = 10e-6
    overlap: float = 1.0  # share of a backward pass that can hide communication

    def bandwidth(self, devices: int) -> float:
        """Of the slowest link of a ring of devices."""
        return self.inside if devices <= self.devices else self.between

    def all_reduce(self, count: float, devices: int) -> float:
        """Seconds to sum `count` bytes over devices in a ring: 2(n−1) messages of 1/n of the bytes."""
        return 2 * self.gather(count, devices)

    def gather(self, count: float, devices: int) -> float:
        """Seconds until every device has all `count` bytes, of which each has 1/n; also to sum and scatter them."""
        return (devices - 1) * (count / devices / self.bandwidth(devices) + self.latency)


@dataclass(frozen=True)
class Device:
    """One device: seconds of forward and backward passes over a micro-batch, by its rows, and of an optimizer step over
    all weights."""

    seconds: Mapping[int, float]
    step_seconds: float

    def split(self, rows: int) -> tuple[int, int]:
        """The micro-batch of the least time for `rows` rows, and how many: they hold at least that many rows."""
        sizes = [size for size in self.seconds if size <= rows] or [min(self.seconds)]
        best = min(sizes, key=lambda size: (math.ceil(rows / size) * self.seconds[size], -size))
        return best, math.ceil(rows / best)


@dataclass(frozen=True)
class Model:
    """What the devices exchange."""

    gradient_bytes: float  # of all trained weights
    weight_bytes: float  # of all weights, in the precision in which FSDP2 gathers them
    sharded: bool = False  # FSDP2: weights are gathered for every pass; else DDP


@dataclass(frozen=True)
class Point:
    """Training to the loss on `devices` devices at one batch."""

    devices: int
    batch: int  # sequences
    micro_batch: int
    accumulation: int
    steps: float
    step_seconds: float
    waiting: float  # share of a step in which devices wait for communication

    @property
    def seconds(self) -> float:
        """Wall time to the loss."""
        return self.steps * self.step_seconds

    @property
    def device_seconds(self) -> float:
        """The cost: devices × wall time."""
        return self.devices * self.seconds


def point(steps: StepsToLoss, device: Device, model: Model, network: Network, devices: int, rows: int) -> Point:
    """Training at `rows` rows per device."""
    micro, accumulation = device.split(rows)
    micro_seconds = device.seconds[micro]
    hidden = network.overlap * BACKWARD * micro_seconds
    step_seconds = device.step_seconds
    if model.sharded:
        step_seconds /= devices  # each device steps its share of the weights
        gathers = 2 * network.gather(model.weight_bytes, devices)  # for the forward pass and for the backward pass
        scatter = network.gather(model.gradient_bytes, devices)
        exposed = accumulation * max(0.0, gathers - network.overlap * micro_seconds) + max(0.0, scatter - hidden)
    else:
        exposed = max(0.0, network.all_reduce(model.gradient_bytes, devices) - hidden)
    seconds = accumulation * micro_seconds + step_seconds + exposed
    batch = devices * micro * accumulation
    return Point(devices, batch, micro, accumulation, steps.at(batch), seconds, exposed / seconds)


def frontier(steps: StepsToLoss, device: Device, model: Model, network: Network, devices: Sequence[int]) -> list[Point]:
    """For each number of devices, the batch with the least time to the loss."""
    return [_fastest(steps, device, model, network, count) for count in devices]


def _fastest(steps: StepsToLoss, device: Device, model: Model, network: Network, devices: int) -> Point:
    points = (point(steps, device, model, network, devices, 1 << power) for power in range(_BATCHES))
    return min(points, key=lambda each: (each.seconds, each.batch))


def efficiency(points: Sequence[Point]) -> list[float]:
    """Strong-scaling efficiency: device-seconds of the first point ÷ those of each, at equal loss."""
    return [points[0].device_seconds / each.device_seconds for each in points]


def chosen(points: Sequence[Point]) -> dict[str, Point]:
    """The named points: `cheapest` (least cost), `fastest` (least time), and `balanced`, with the least time × cost:
    beyond it, twice the devices are less than √2 times as fast."""
    return {
        "cheapest": min(points, key=lambda each: (each.device_seconds, each.seconds)),
        "balanced": min(points, key=lambda each: each.seconds * each.device_seconds),
        "fastest": min(points, key=lambda each: (each.seconds, each.devices)),
    }


def doublings(least: int, most: int) -> Iterator[int]:
    """The numbers of devices `least`, 2·`least`, … up to `most`."""
    while least <= most:
        yield least
        least *= 2
