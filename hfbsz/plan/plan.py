"""What a recipe means in numbers: batch, accumulation, learning rate, weight decay and betas of every step.

`hfbsz.plan.resolve` turns a recipe into a Plan for a number of processes; `Plan.step` says what one step does, as
a pure function of the clock (sequences consumed so far); `Plan.walk` runs through all steps. A step takes its batch at
the clock before it and its rate at the clock after it. There are no partial steps: the last one is full, and the run
overshoots its budget by less than one batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hfbsz.plan.scaling import RateRule, weight_decay_at
from hfbsz.plan.schedule import Shape
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.fields import Recipe

BLOCK = 16  # batches whose rows batch.by_length sorts together
Decisions = Sequence[tuple[int, int]]  # (clock, batch) of an adaptive ramp: from that clock on, that batch


@dataclass(frozen=True)
class Facts:
    """What only the data and the machine know; None: not known yet."""

    rows: int | None = None  # training rows: an epoch
    tokens_per_row: float | None = None  # mean input tokens of a row; None: the recipe's sequence length
    data_hash: str | None = None
    parameters: int | None = None  # weights outside the embeddings, for scaling laws


@dataclass(frozen=True)
class Phase:
    """A stretch of the run at one global batch."""

    clock: int  # of its first step, sequences
    batch: int  # sequences
    steps: int


@dataclass(frozen=True)
class PlannedStep:
    """Every number of one optimizer step."""

    clock: int  # before the step, sequences
    next_clock: int
    global_batch: int  # sequences, over all processes
    micro_batch: int | None  # None, with batch.micro_tokens: each as many as fill so many tokens
    accumulation: int | None
    ratio: float  # κ
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Plan:
    """Every number of a run. Made by `resolve`, never changed."""

    recipe: Recipe
    world_size: int
    facts: Facts
    tokens_per_row: float
    total: int  # sequences
    shape: Shape
    phases: tuple[Phase, ...]
    micro_batch: int | None  # None, with batch.micro_tokens: each as many as fill so many tokens
    reference: float  # sequences
    rate: float  # peak learning rate at the reference
    rule: RateRule
    betas: tuple[float, float]
    eps: float
    mean_ratio: float  # κ, weighted by tokens
    guesses: tuple[str, ...]  # what scaling laws gave, in words
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def largest_batch(self) -> int:
        return max(phase.batch for phase in self.phases)

    def accumulation(self, batch: int) -> int | None:
        """Forward passes of one device that make up a global batch; None with batch.micro_tokens: as many as it takes,
        which rows and ranks decide."""
        return self.micro_batch and batch // (self.micro_batch * self.world_size)

    def multiplier(self, batch: int) -> float:
        """What a step of `batch` sequences multiplies the reference rate by; a held rate stays the first batch's."""
        measured = batch if self.recipe.batch.lr == "follow" else self.phases[0].batch
        return self.rule.multiplier(measured / self.reference)

    def peak_rate(self, batch: int) -> float:
        """The learning rate at `batch` before warmup and decay."""
        return self.rate * self.multiplier(batch)

    def batch_at(self, clock: int, decisions: Decisions = ()) -> int:
        """The global batch of the step that starts at `clock`."""
        decided = [batch for since, batch in decisions if since <= clock]
        if decided:
            return decided[-1]
        return next(phase.batch for phase in reversed(self.phases) if phase.clock <= clock)

    def step(self, clock: int, decisions: Decisions = ()) -> PlannedStep:
        """What the step that starts at `clock` does."""
        batch = self.batch_at(clock, decisions)
        ratio, multiplier = batch / self.reference, self.multiplier(batch)
        decay, keep = self.recipe.optim.weight_decay, self.recipe.scaling.weight_decay == "keep"
        return PlannedStep(
            clock=clock,
            next_clock=clock + batch,
            global_batch=batch,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation(batch),
            ratio=ratio,
            learning_rate=self.rate * multiplier * self.shape.factor(clock + batch),
            weight_decay=decay if keep else weight_decay_at(decay, ratio, multiplier),
            betas=self.betas,
            eps=self.eps,
        )

    def walk(self, clock: int = 0, decisions: Decisions = ()) -> Iterator[PlannedStep]:
        """The steps from `clock` to the end of the budget."""
        while clock < self.total:
            planned = self.step(clock, decisions)
            yield planned
            clock = planned.next_clock

    @property
    def decay_start(self) -> int | None:
        """The clock at which WSD's decay starts: what was trained before it, a longer run would have trained too."""
        return math.floor(self.total - self.shape.decay) if self.shape.name == "wsd" else None

    def last_before_decay(self, clock: int) -> bool:
        """Whether the step that starts at `clock` is the last one that WSD's decay does not touch."""
        start = self.decay_start
        end = clock + self.batch_at(clock)
        return start is not None and end <= start < end + self.batch_at(end)

    def same_until(self, other: "Plan") -> int:
        """The clock up to which two plans take the same steps, in whatever split."""
        clock = 0
        for ours, theirs in zip(self.walk(), other.walk(), strict=False):
            if replace(theirs, micro_batch=ours.micro_batch, accumulation=ours.accumulation) != ours:
                break
            clock = ours.next_clock
        return clock

    def due(self, every: Amount, step: int, clock: int, next_clock: int) -> bool:
        """Whether an interval of the recipe, or the run, ends in step number `step` (from 1) between the two clocks."""
        if next_clock >= self.total:
            return True
        if every.value == 0:
            return False
        if every.unit == "steps":
            return step % max(1, round(every.value)) == 0
        length = every.sequences(total=self.total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)
        return next_clock // length > clock // length

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the derived numbers first, then the recipe they follow from."""
        first, largest = self.step(0), max(self.phases, key=lambda phase: phase.batch)
        peak = self.step(largest.clock)
        return {
            "world_size": self.world_size,
            "steps": self.steps,
            "sequences": self.total,
            "tokens": round(self.total * self.tokens_per_row),
            "tokens_per_row": self.tokens_per_row,
            "epochs": self.total / self.facts.rows if self.facts.rows else None,
            "micro_batch": self.micro_batch,
            "largest_batch": self.largest_batch,
            "accumulation": [self.accumulation(phase.batch) for phase in self.phases],
            "reference_sequences": self.reference,
            "reference_learning_rate": self.rate,
            "rule": asdict(self.rule),
            "ratio": {"first": first.ratio, "largest": peak.ratio, "mean": self.mean_ratio},
            "learning_rate": {
                "first_batch": self.peak_rate(self.phases[0].batch),
                "largest_batch": self.peak_rate(largest.batch),
            },
            "weight_decay": {"first_batch": first.weight_decay, "largest_batch": peak.weight_decay},
            "betas": list(self.betas),
            "eps": self.eps,
            "warmup_sequences": self.shape.warmup,
            "phases": [asdict(phase) for phase in self.phases],
            "facts": asdict(self.facts),
            "guesses": list(self.guesses),
            "warnings": list(self.warnings),
            "recipe": self.recipe.to_dict(),
        }
