"""The result of a probe: throughput and peak memory over the micro-batch, with the knee and the wall."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

_NORMAL_MAD = 1.4826  # standard deviation ÷ median absolute deviation, of a normal distribution
_NORMAL_MEDIAN = 1.2533  # standard error of a median ÷ that of a mean
KNEE_SHARE = 0.95  # of the best throughput, which the knee reaches
_ERRORS = 2  # standard errors by which it does


@dataclass(frozen=True)
class Trial:
    """Forward and backward pass of one micro-batch on one device, the slowest of all ranks."""

    micro_batch: int  # rows
    seconds: float  # of a micro-batch of rows of mean length
    error: float  # relative standard error of the seconds, compared with other trials
    peak_bytes: int  # with weights, gradients and optimizer state, on the longest rows

    @property
    def rows_per_second(self) -> float:
        """Throughput of forward and backward passes, in rows per second on one device."""
        return self.micro_batch / self.seconds


@dataclass(frozen=True)
class Checkpointing:
    """What activation checkpointing costs and saves, at the micro-batch of the knee."""

    time_ratio: float  # time of a micro-batch with it ÷ without
    bytes_per_row: float | None  # memory that one more row in a micro-batch then takes; None: not measured (CPU)


@dataclass(frozen=True)
class Probe:
    """Trials at rising micro-batches, and what a step needs besides.

    Rows per second of a micro-batch m is m ÷ seconds. Memory is modeled as a straight line in m, since activations are
    proportional to it and weights, gradients and optimizer state do not depend on it.
    """

    about: dict[str, str]  # what was probed on which device, for people
    tokens_per_row: float  # mean input tokens of a row
    trials: tuple[Trial, ...]  # by rising micro-batch
    step_seconds: float  # clipping and the optimizer's step
    sync_seconds: float | None  # averaging the gradients over the ranks, once a step; None: one process
    limit_bytes: int  # of the peak memory of a process
    limit_source: str  # where the limit comes from, for people
    failed: int | None = None  # the smallest micro-batch that ran out of memory
    checkpointing: Checkpointing | None = None  # None: not measured

    @property
    def knee(self) -> int:
        """The smallest micro-batch within 5 % of the best throughput, by more than two standard errors."""
        return _knee(self.trials, _ERRORS)

    @property
    def wall(self) -> float:
        """The largest micro-batch that fits into the limit, by the line of the memory model or by a trial that ran out
        of memory; infinite if memory did not grow over the trials."""
        predicted = wall_of(self.trials, self.limit_bytes)
        return predicted if self.failed is None else min(predicted, self.failed - 1)

    @property
    def checkpointed_wall(self) -> int | None:
        """The largest micro-batch that fits into the limit with activation checkpointing; None if it is not known."""
        row = self.checkpointing.bytes_per_row if self.checkpointing is not None else None
        if not row:
            return None
        last = self.trials[-1]
        fixed = last.peak_bytes - last.micro_batch * bytes_per_row(self.trials)  # weights, gradients, optimizer state
        return max(0, math.floor((self.limit_bytes - fixed) / row))

    def tokens_per_second(self, trial: Trial) -> float:
        """Throughput of forward and backward passes, in input tokens per second on one device."""
        return trial.rows_per_second * self.tokens_per_row

    def seconds_per_step(self, trial: Trial, rows: int) -> float:
        """Time of an optimizer step over `rows` rows of one process, accumulated over micro-batches of a trial."""
        return rows / trial.rows_per_second + self.step_seconds + (self.sync_seconds or 0.0)

    def accumulation_price(self, rows: int) -> float | None:
        """Time of a step over `rows` rows of one process in the smallest micro-batch ÷ in the largest one that is not
        above it: the time that accumulation costs; None if only one trial is not above it."""
        possible = [trial for trial in self.trials if trial.micro_batch <= rows]
        if len(possible) < 2:
            return None
        return self.seconds_per_step(possible[0], rows) / self.seconds_per_step(possible[-1], rows)

    def sync_share(self, accumulation: int) -> float | None:
        """Share of a step that averaging gradients takes, at the knee with this accumulation; None: one process."""
        if self.sync_seconds is None:
            return None
        seconds = next(trial.seconds for trial in self.trials if trial.micro_batch == self.knee)
        return self.sync_seconds / (accumulation * seconds + self.step_seconds + self.sync_seconds)

    def to_dict(self) -> dict[str, Any]:
        """The probe as plain data for JSON, with its knee and wall (null: not bounded)."""
        wall = self.wall if math.isfinite(self.wall) else None
        return {**asdict(self), "knee": self.knee, "wall": wall}


def has_certain_knee(trials: Sequence[Trial]) -> bool:
    """Whether the errors of the times leave no other micro-batch for the knee."""
    return _knee(trials, _ERRORS) == _knee(trials, -_ERRORS)


def _knee(trials: Sequence[Trial], errors: float) -> int:
    """The smallest micro-batch within 5 % of the best throughput, by more than `errors` standard errors."""
    best = max(trials, key=lambda trial: trial.rows_per_second)
    least = KNEE_SHARE * best.rows_per_second
    return min(
        trial.micro_batch
        for trial in trials
        if trial is best or trial.rows_per_second * (1 - errors * trial.error) >= least
    )


def common_pace(rounds: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The time of each trial and its relative standard error, from several rounds of times, one of each trial.

    Other work and the clock of the processor slow whole rounds down. So a trial's time is compared with the geometric
    mean of its round, and the median over rounds is taken; the pace is that of the fastest round.
    """
    logs = [[math.log(seconds) for seconds in times] for times in rounds]
    means = [statistics.fmean(times) for times in logs]
    pace, count, results = min(means), len(rounds), []
    for index in range(len(logs[0])):
        relative = [times[index] - mean for times, mean in zip(logs, means, strict=True)]
        center = statistics.median(relative)
        deviation = _NORMAL_MAD * statistics.median(abs(value - center) for value in relative)
        results.append((math.exp(center + pace), _NORMAL_MEDIAN * deviation / math.sqrt(count)))
    return results


def probe_from_dict(data: Mapping[str, Any]) -> Probe:
    """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for other data."""
    fields = {name: value for name, value in data.items() if name not in ("knee", "wall", "recipe")}
    trials = tuple(Trial(**trial) for trial in fields.pop("trials"))
    price = fields.pop("checkpointing", None)
    probe = Probe(trials=trials, checkpointing=None if price is None else Checkpointing(**price), **fields)
    if not trials or any(not (trial.micro_batch > 0 and trial.seconds > 0) for trial in trials):
        raise ValueError("a probe has at least one trial, of positive numbers")
    return probe


def bytes_per_row(trials: Sequence[Trial]) -> float:
    """The memory that one more row in a micro-batch takes: the slope between the last two trials, since what small
    micro-batches take for a chunk of the loss does not grow any further; the steepest of all where the last two are
    flat in comparison, as where a CPU reuses memory; 0 for fewer than two trials."""
    pairs = pairwise(trials)
    slopes = [(b.peak_bytes - a.peak_bytes) / (b.micro_batch - a.micro_batch) for a, b in pairs]
    steepest = max(0.0, *slopes) if slopes else 0.0
    return slopes[-1] if slopes and slopes[-1] > steepest / 2 else steepest


def predicted_bytes(trials: Sequence[Trial], micro_batch: int) -> float:
    """The peak memory at a micro-batch above those of the trials, by the line through the last one."""
    last = trials[-1]
    return last.peak_bytes + (micro_batch - last.micro_batch) * bytes_per_row(trials)


def wall_of(trials: Sequence[Trial], limit: int) -> float:
    """The largest micro-batch whose predicted peak memory is at most `limit` bytes; infinite if memory did not grow."""
    slope, last = bytes_per_row(trials), trials[-1]
    if slope <= 0:
        return math.inf
    return max(0, math.floor(last.micro_batch + (limit - last.peak_bytes) / slope))


def shown_bytes(count: float) -> str:
    """An amount of memory in the larger of MiB and GiB that fits: `612 MiB`, `12.3 GiB`."""
    return f"{count / 2**30:,.3g} GiB" if count >= 2**30 else f"{count / 2**20:,.3g} MiB"
