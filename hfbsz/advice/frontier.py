"""`hfbsz plan … frontier=1..1024`: time and cost of a recipe's loss over the number of devices.

Every number that the recipe does not give is an assumption with its source, shown in a table, and replaced by a word:
frontier.critical (critical batch, such as 64seq), frontier.probe (probe.json of hfbsz probe), frontier.speed (tokens/s
of a device), frontier.busy (tokens of a micro-batch from which a device is busy), frontier.weights (all weights,
embeddings included), frontier.bandwidth and frontier.between (bytes/s inside a machine and between machines),
frontier.machine (devices of a machine), frontier.latency (seconds), frontier.overlap (0 to 1), frontier.sharded (true:
FSDP2), frontier.price (of a device for an hour), frontier.picture (a file for time over cost, .svg or .png).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError, did_you_mean
from hfbsz.measure.frontier import (
    Device,
    Model,
    Network,
    Point,
    StepsToLoss,
    chosen,
    doublings,
    efficiency,
    frontier,
)
from hfbsz.plan.laws import CRITICAL
from hfbsz.plan.plan import Plan
from hfbsz.recipe.amounts import Amount, counted, duration, short, unit_of
from hfbsz.records.probe import Probe, probe_from_dict
from hfbsz.system.files import read_object

PREFIX = "frontier."
OPTIONS = (
    "critical", "probe", "speed", "busy", "weights", "bandwidth", "between", "machine", "latency", "overlap", "sharded",
    "price", "picture",
)  # fmt: skip
_FLOPS, _UTILIZATION = 989.4e12, 0.4  # H100 in bf16
_BUSY = 4096  # tokens
_STEP_BYTES, _MEMORY = 28, 3.35e12  # AdamW in float32: reads 16 bytes a weight and writes 12; H100's bandwidth
_UNITS = {"": 1.0, "K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Assumption:
    """A number behind the frontier."""

    name: str
    value: str
    source: str
    word: str  # that replaces it


@dataclass(frozen=True)
class Frontier:
    """The points of a plan over the number of devices, and what they rest on."""

    points: list[Point]
    steps: StepsToLoss
    assumptions: list[Assumption]
    price: float | None  # of a device-hour
    device: Device
    model: Model
    network: Network

    @property
    def chosen(self) -> dict[str, Point]:
        """The named points."""
        return chosen(self.points)

    def cost(self, point: Point) -> float | None:
        """The price of a point; None if a device-hour has none."""
        return None if self.price is None else self.price * point.device_seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """The frontier as plain data for JSON."""
        shares = efficiency(self.points)
        return {
            **asdict(self.steps),
            "critical": self.steps.critical,
            "points": [
                {**asdict(each), "seconds": each.seconds, "device_seconds": each.device_seconds, "efficiency": share,
                 "cost": self.cost(each)}
                for each, share in zip(self.points, shares, strict=True)
            ],
            "chosen": {name: each.devices for name, each in self.chosen.items()},
            "assumptions": [asdict(one) for one in self.assumptions],
        }  # fmt: skip


def frontier_of(
    plan: Plan,
    devices: str,
    given: Mapping[str, str],
    parameters: int | None,
    sources: Mapping[str, str] | None = None,
) -> Frontier:
    """The frontier of a plan over `devices` (such as 1..1024), with the values of the words `given`, named without
    their prefix. `parameters`: of the model, outside its embeddings. `sources`: where values of `given` come from, if
    not from the user. Raises UserError for words that cannot be read."""
    for name in given:
        if name not in OPTIONS:
            raise UserError(f"{PREFIX}{name}: no such option{did_you_mean(name, OPTIONS)}")
    counts = _counts(devices)
    read = _Reader(plan, given, parameters, sources or {})
    steps, device, model, network = read.steps(), read.device(), read.model(), read.network()
    price = read.number("price", None)
    points = frontier(steps, device, model, network, counts)
    return Frontier(points, steps, read.assumptions, price, device, model, network)


def _counts(text: str) -> list[int]:
    low, dots, high = text.partition("..")
    ends = (low, high if dots else low)
    if not all(end.isdigit() and int(end) > 0 for end in ends) or int(ends[0]) > int(ends[1]):
        raise UserError(f"frontier={text}: not a range of devices: write 1..1024")
    return list(doublings(int(ends[0]), int(ends[1])))


class _Reader:
    """Reads the parts of the model from a plan and the given words, and notes every assumption."""

    def __init__(
        self, plan: Plan, given: Mapping[str, str], parameters: int | None, sources: Mapping[str, str]
    ) -> None:
        self.plan, self.given, self.parameters, self.sources = plan, given, parameters, sources
        self.assumptions: list[Assumption] = []
        self.probe = self._probe()

    def steps(self) -> StepsToLoss:
        plan, tokens = self.plan, self.plan.total * self.plan.tokens_per_row
        if "critical" in self.given:
            try:
                amount = Amount.parse(self.given["critical"])
                critical = amount.sequences(tokens_per_row=plan.tokens_per_row)
            except (LookupError, ValueError) as problem:
                raise UserError(f"{PREFIX}critical: {problem}") from None
            if critical <= 0:
                raise UserError(f"{PREFIX}critical: {amount} is not above 0")
            source = self._how("critical")
        else:
            critical = CRITICAL.batch(1.0, tokens) / plan.tokens_per_row
            outside = CRITICAL.outside(None, tokens)
            source = f"{CRITICAL.batch_formula}, {CRITICAL.source}"
            source += f"; outside its fit: {outside[0]}" if outside else ""
        batch = plan.total / plan.steps
        self._assume("critical batch", f"{critical:,.0f} sequences", source, "critical")
        self._assume("tokens to the loss", f"{short(tokens)} at {batch:,.0f} sequences a step", "the recipe", "")
        return StepsToLoss.through(plan.total, batch, critical)

    def device(self) -> Device:
        row = self.plan.tokens_per_row
        if self.probe is not None:
            shown = max(self.probe.tokens_per_second(trial) for trial in self.probe.trials)
            about = self.probe.about.get("device", "a device")
            source = " ".join(filter(None, (f"measured on {about}", self.sources.get("probe"))))
            self._assume("device", f"{shown:,.0f} tokens/s at best", source, "probe")
            scale = row / self.probe.tokens_per_row
            seconds = {trial.micro_batch: trial.seconds * scale for trial in self.probe.trials}
            return Device(seconds, self.probe.step_seconds)
        size = self._size()
        assumed = _FLOPS * _UTILIZATION / (6 * size)
        speed = self.number("speed", assumed)
        how = f"an H100 at {_UTILIZATION:.0%} of {_FLOPS / 1e12:.0f} TFLOP/s, 6 FLOPs a weight"
        self._assume("device", f"{speed:,.0f} tokens/s", self._how("speed") if "speed" in self.given else how, "speed")
        busy = self.number("busy", _BUSY)
        self._assume("busy from", f"{busy:,.0f} tokens in a micro-batch", self._how("busy"), "busy")
        most = self.plan.recipe.batch.micro_max
        largest = most if isinstance(most, int) else max(1, round(busy / row))
        sizes = [1 << power for power in range(largest.bit_length())]
        seconds = {size: max(size * row, busy) / speed for size in sizes}
        step = _STEP_BYTES * self.number("weights", size) / _MEMORY
        self._assume("optimizer's step", f"{1e3 * step:.3g} ms", f"{_STEP_BYTES} bytes a weight at 3.35 TB/s", "probe")
        return Device(seconds, step)

    def model(self) -> Model:
        sharded = self.given.get("sharded", "false")
        if sharded not in ("true", "false"):
            raise UserError(f"{PREFIX}sharded={sharded}: neither true nor false")
        size = self.number("weights", self._size())
        shown = "given" if "weights" in self.given else "those outside the embeddings, of parameters="
        self._assume("weights", short(size), shown, "weights")
        text = f"{_gigabytes(4 * size)} a step in float32"
        text += f", {_gigabytes(2 * size)} a pass in bfloat16" if sharded == "true" else ""
        self._assume("communication", text, "FSDP2" if sharded == "true" else "DDP", "sharded")
        return Model(4.0 * size, 2.0 * size, sharded == "true")

    def network(self) -> Network:
        base = Network()
        network = Network(
            inside=self.number("bandwidth", base.inside),
            between=self.number("between", base.between),
            devices=int(self.number("machine", base.devices)),
            latency=self.number("latency", base.latency),
            overlap=self.number("overlap", base.overlap),
        )
        if self.number("machine", base.devices) != network.devices or network.devices < 1:
            raise UserError(f"{PREFIX}machine={self.given['machine']}: not a whole number above 0")
        if not 0 <= network.overlap <= 1:
            raise UserError(f"{PREFIX}overlap={self.given['overlap']}: not between 0 and 1")
        self._assume("inside a machine", f"{network.inside / 1e9:,.0f} GB/s", self._how("bandwidth"), "bandwidth")
        self._assume("between machines", f"{network.between / 1e9:,.0f} GB/s a device", self._how("between"), "between")
        self._assume("a machine", counted(network.devices, "device"), self._how("machine"), "machine")
        self._assume("latency", f"{1e6 * network.latency:,.0f} µs a message", self._how("latency"), "latency")
        self._assume("hidden", f"{network.overlap:.0%} of a backward pass", self._how("overlap"), "overlap")
        return network

    def number(self, name: str, default: Any) -> Any:
        """A positive number with an optional suffix such as k, GB/s or s; `default` if it is not given."""
        if name not in self.given:
            return default
        text = self.given[name].removesuffix("tok/s").removesuffix("B/s").removesuffix("s").strip()
        unit = text[-1:] if text[-1:] in _UNITS else ""
        try:
            value = float(text.removesuffix(unit).replace(",", "")) * _UNITS[unit]
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > 0 or (name in ("overlap", "latency") and value == 0))):
            raise UserError(f"{PREFIX}{name}={self.given[name]}: not a number above 0")
        return value

    def _how(self, name: str) -> str:
        return self.sources.get(name, "given") if name in self.given else "assumed"

    def _assume(self, name: str, value: str, source: str, word: str) -> None:
        self.assumptions.append(Assumption(name, value, source, PREFIX + word if word else ""))

    def _size(self) -> int:
        if self.parameters is None:
            raise UserError("frontier: the size of the model is not known: set parameters=N (outside the embeddings)")
        return self.parameters

    def _probe(self) -> Probe | None:
        if "probe" not in self.given:
            return None
        path = Path(self.given["probe"])
        try:
            return probe_from_dict(read_object(path / "probe.json" if path.is_dir() else path) or {})
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{PREFIX}probe={path}: not the result of hfbsz probe (probe.json)") from None


def lines_of(result: Frontier) -> Iterator[str]:
    """The frontier as text: its assumptions, its points and the named ones."""
    yield "frontier  time and cost of the recipe's loss; every line below is an assumption or a measurement"
    for one in result.assumptions:
        yield f"  {one.name:<20} {one.value:<34} {one.source}" + (f"   {one.word}=…" if one.word else "")
    cost = "" if result.price is None else f" {'cost':>10}"
    yield (
        f"{'devices':>9} {'batch':>12} {'split':>14} {'steps':>11} {'time':>9} {'device-hours':>13} {'efficiency':>11} "
        f"{'waiting':>8}{cost}"
    )
    names = {each.devices: name for name, each in reversed(result.chosen.items())}
    for each, share in zip(result.points, efficiency(result.points), strict=True):
        price = result.cost(each)
        split = f"{each.micro_batch:>6} × {each.accumulation:<5}"
        end = ("" if price is None else f" {price:>10,.2f}") + f"  {names.get(each.devices, '')}".rstrip()
        yield (
            f"{each.devices:>9,} {each.batch:>8,} seq {split} {each.steps:>11,.0f} {duration(each.seconds):>9} "
            f"{each.device_seconds / 3600:>13,.4g} {share:>11.0%} {each.waiting:>8.0%}{end}"
        )
    balanced = result.chosen["balanced"]
    beyond = "beyond, twice the devices are less than √2 times as fast"
    if balanced is result.points[-1]:
        beyond = "the most that was asked for; more may pay too"
    yield f"take      {counted(balanced.devices, 'device')} at {counted(balanced.batch, 'sequence')}: {beyond}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.3g} GB"


def save_picture(result: Frontier, path: Path) -> None:
    """Time over cost of all points, with the named ones. Raises UserError if the file cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    from hfbsz.report.page.style import INK, LOOK, PALETTE

    with matplotlib.rc_context({name: "black" if value == INK else value for name, value in LOOK.items()}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        cost = [each.device_seconds / 3600 * (result.price or 1) for each in result.points]
        unit, size = unit_of(max(each.seconds for each in result.points))
        times = [each.seconds / size for each in result.points]
        axes.plot(cost, times, "o-", color=PALETTE[0], markersize=4)
        for name, each in result.chosen.items():
            place = result.points.index(each)
            axes.plot(cost[place], times[place], "o", color=PALETTE[1])
            shown = f"{name}: {counted(each.devices, 'device')}, batch {each.batch:,}"
            axes.annotate(
                shown,
                (cost[place], times[place]),
                (5, -15 if name == "fastest" else 6),
                textcoords="offset points",
                fontsize=9.5,
            )
        price = "device-hours" if result.price is None else "at the given price of a device-hour"
        axes.set(xscale="log", yscale="log", xlabel=f"cost ({price})", ylabel=f"time to the loss ({unit})")
        axes.margins(x=0.3, y=0.15)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as problem:
            raise UserError(f"{PREFIX}picture={path}: cannot be written: {problem}") from None
