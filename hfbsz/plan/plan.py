"""The numbers of a recipe: batch, accumulation, learning rate, weight decay and betas of every step.

`hfbsz.plan.resolve` computes the Plan of a recipe for a number of processes. `Plan.step` returns the settings of one
step, as a pure function of the clock (sequences consumed so far); `Plan.walk` iterates over all steps. The batch of a
step is taken at the clock before the step, its learning rate at the clock after it. There are no partial steps: the
last step is full, and the run exceeds its budget by less than one batch.
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
    """Facts about the data and the model that a recipe does not contain; None: not known yet."""

    rows: int | None = None  # training rows: an epoch
    tokens_per_row: float | None = None  # mean input tokens of a row; None: the recipe's sequence length
    data_hash: str | None = None
    parameters: int | None = None  # weights outside the embeddings, for scaling laws
    micro_max: int | None = None  # found by a probe, where batch.micro_max is auto


@dataclass(frozen=True)
class Phase:
    """A part of the run with a constant global batch."""

    clock: int  # of its first step, sequences
    batch: int  # sequences
    steps: int  # 0: a batch that an adaptive ramp may reach by decisions during the run


@dataclass(frozen=True)
class PlannedStep:
    """All settings of one optimizer step."""

    clock: int  # before the step, sequences
    next_clock: int
    global_batch: int  # sequences, over all processes
    micro_batch: int | None  # sequences; None with batch.micro_tokens: it varies
    accumulation: int | None
    ratio: float  # κ
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Plan:
    """All numbers of a run. Built by `resolve`; immutable."""

    recipe: Recipe
    world_size: int
    facts: Facts
    tokens_per_row: float
    total: int  # sequences
    shape: Shape
    phases: tuple[Phase, ...]
    micro_batch: int | None  # sequences; None with batch.micro_tokens: it varies
    reference: float  # sequences
    rate: float  # peak learning rate at the reference
    rule: RateRule
    betas: tuple[float, float]
    eps: float
    mean_ratio: float  # κ, weighted by tokens
    guesses: tuple[str, ...]  # values predicted by scaling laws, as sentences
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; of an adaptive ramp, those without any growth: the most there can be."""
        return sum(phase.steps for phase in self.phases)

    @property
    def largest_batch(self) -> int:
        """The largest global batch, in sequences."""
        return max(phase.batch for phase in self.phases)

    def accumulation(self, batch: int) -> int | None:
        """Forward passes of one device per global batch; None with batch.micro_tokens: it varies by step and rank."""
        return self.micro_batch and batch // (self.micro_batch * self.world_size)

    def multiplier(self, batch: int) -> float:
        """The factor of the reference rate at `batch` sequences; with batch.lr=held, that of the first batch."""
        deciding = batch if self.recipe.batch.lr == "follow" else self.phases[0].batch
        return self.rule.multiplier(deciding / self.reference)

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
        """The settings of the step that starts at `clock`."""
        batch = self.batch_at(clock, decisions)
        ratio, multiplier = batch / self.reference, self.multiplier(batch)
        decay, is_constant = self.recipe.optim.weight_decay, self.recipe.scaling.weight_decay == "keep"
        return PlannedStep(
            clock=clock,
            next_clock=clock + batch,
            global_batch=batch,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation(batch),
            ratio=ratio,
            learning_rate=self.rate * multiplier * self.shape.factor(clock + batch),
            weight_decay=decay if is_constant else weight_decay_at(decay, ratio, multiplier),
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
        """The clock at which the WSD decay starts; None for other schedules. Longer runs share the steps before it."""
        return math.floor(self.total - self.shape.decay) if self.shape.name == "wsd" else None

    def last_before_decay(self, clock: int, decisions: Decisions = ()) -> bool:
        """Whether the step that starts at `clock` is the last one before the WSD decay."""
        start = self.decay_start
        end = clock + self.batch_at(clock, decisions)
        return start is not None and end <= start < end + self.batch_at(end, decisions)

    def same_until(self, other: "Plan") -> int:
        """The clock up to which two plans have the same steps, ignoring micro-batch and accumulation."""
        clock = 0
        for ours, theirs in zip(self.walk(), other.walk(), strict=False):
            if replace(theirs, micro_batch=ours.micro_batch, accumulation=ours.accumulation) != ours:
                break
            clock = ours.next_clock
        return clock

    def due(self, every: Amount, step: int, clock: int, next_clock: int) -> bool:
        """Whether an interval of the recipe, or the run, ends in step number `step` (from 1) between the two clocks."""
        ended = self.intervals(every, step, next_clock) > self.intervals(every, step - 1, clock)
        return ended or next_clock >= self.total

    def intervals(self, every: Amount, step: int, clock: int) -> int:
        """How many intervals of the recipe have ended after `step` steps, at `clock`; 0 for an interval of length 0."""
        if every.value == 0:
            return 0
        if every.unit == "steps":
            return step // max(1, round(every.value))
        length = every.sequences(total=self.total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)
        return int(clock // length)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: the derived numbers, then the recipe."""
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
