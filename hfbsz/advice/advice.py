"""An advice as values: what to take, how sure that is and why, what other choices cost, and what to measure next."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfbsz.advice.frontier import Frontier
from hfbsz.plan.plan import Plan

Sure = Literal["measured", "inferred", "assumed", "given"]
MEANING = {
    "measured": "measured on this model and data",
    "inferred": "follows from measurements on this model and data by a rule",
    "assumed": "a law, a rule or an assumption; nothing was measured here",
    "given": "set by you",
}


@dataclass(frozen=True)
class Line:
    """A part of the advice."""

    name: str
    value: str  # with its unit
    sure: Sure
    why: str  # the evidence


@dataclass(frozen=True)
class Choice:
    """One way to train: for language models to the same loss as the others, else to the end of its own run."""

    name: str
    devices: int
    batch: str  # in sequences: 64, or 8 → 64
    tokens: float
    steps: float
    seconds: float
    cost: float | None  # at the given price of a device-hour
    loss: float | None  # expected, nats/target

    @property
    def device_seconds(self) -> float:
        """Devices × time."""
        return self.devices * self.seconds


@dataclass(frozen=True)
class Estimate:
    """An estimate of the critical batch at the end of the run, with its range; all in sequences."""

    name: str
    value: float
    low: float
    high: float
    sure: Sure
    why: str


@dataclass(frozen=True)
class Measurement:
    """A measurement that improves a line of the advice."""

    settles: str
    command: str
    seconds: float | None  # that it takes; None: not known


@dataclass(frozen=True)
class Advice:
    """What to take."""

    name: str  # of the recipe
    command: str  # that asked
    changes: tuple[str, ...]  # words that turn the recipe into the advised one
    plan: Plan  # of the advised recipe
    lines: tuple[Line, ...]
    choices: tuple[Choice, ...]  # the advised one first
    next: Measurement | None
    script: str  # that trains the recipe: pretrain or finetune
    estimates: tuple[Estimate, ...] = ()  # of the critical batch; the one used first
    frontier: Frontier | None = None
    notes: tuple[str, ...] = field(default=())

    def line(self, name: str) -> Line:
        """The line of a name. Raises KeyError."""
        for line in self.lines:
            if line.name == name:
                return line
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The advice as plain data for JSON."""
        return {
            "recipe": self.name,
            "changes": list(self.changes),
            "world_size": self.plan.world_size,
            "lines": [asdict(line) for line in self.lines],
            "choices": [{**asdict(choice), "device_seconds": choice.device_seconds} for choice in self.choices],
            "next": None if self.next is None else asdict(self.next),
            "critical": [asdict(one) for one in self.estimates],
            "frontier": None if self.frontier is None else self.frontier.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Wish:
    """What the user asks for besides the recipe."""

    devices: str = "1"  # a number, or a range such as 1..1024
    deadline: float | None = None  # seconds
    budget: float | None = None  # device-hours, or money if a device-hour has a price
    target_loss: float | None = None  # validation, nats/target
    words: tuple[str, ...] = ()  # that describe the recipe
    given: dict[str, str] = field(default_factory=dict)  # words of the frontier, without their prefix
    parameters: int | None = None  # of the model, outside its embeddings
    train_rows: int | None = None
    folder: Path = Path()  # of the evidence
