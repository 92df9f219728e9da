"""The critical batch by a sweep: the steps to a target loss at several batches, with the rate tuned at each.

At each batch, learning rates a factor of two apart are tried on the first seed, and further ones while the best is at
an end; the other seeds then train at the best one. Every run has a constant rate after its warmup, evaluates an average
of its weights and ends at the target, so that its steps do not depend on a planned length (Shallue et al. 2019, arXiv
1811.03600; Zhang et al. 2024, arXiv 2410.21676). Other rates than the recipe's own are given up at three times its
sequences.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from hfbsz.errors import UserError
from hfbsz.experiment import search
from hfbsz.experiment.arms import PlannedArm, plan_arms
from hfbsz.experiment.gather import outcome_of, position_of
from hfbsz.experiment.jobs import Job, assign_folders, product, seeds_first
from hfbsz.experiment.launch import Launcher, launch_command
from hfbsz.experiment.request import OPTIONS, Request, parse, refuse_scripts
from hfbsz.experiment.results import Outcome
from hfbsz.recipe.amounts import Amount
from hfbsz.records.folder import has_diverged, has_finished
from hfbsz.records.run_data import CLOCK, STEPS
from hfbsz.report.console import Console

RATES = 5  # tried at each batch, at least
TUNED = "optim.lr"
_CAP = 3  # times the sequences that the recipe's own rate needs
_WARMUP, _EVERY = 0.05, 0.01  # shares of the duration: warmup, interval of evaluations
_NOT_OPTIONS = ("tune=", "equal=", "out=", "picture=")  # of compare
_PAGE_SECONDS = 15.0  # minimum time between two calls of `on_change`
_AVERAGE = 0.1  # mean age of the averaged weights


def words_of(words: Sequence[str], target: float) -> list[str]:
    """The words of a sweep's runs: the words given, with what makes steps to a target loss comparable. Words given for
    the warmup, the interval of evaluations and the average of weights remain. Raises UserError for a recipe without a
    duration in tokens or sequences."""
    given = {word.partition("=")[0].lstrip("-") for word in words}
    if fixed := given & {"schedule.shape", "batch.ramp", "batch.start", "eval.target", "eval.patience", TUNED}:
        raise UserError(f"{sorted(fixed)[0]}: a sweep sets it itself: leave it out")
    if "batch.size" not in given:
        raise UserError("batch.size is missing: the batches of the sweep, such as batch.size=2seq,4seq,8seq,16seq")
    duration = product(words)[0].loaded.recipe.duration
    if duration.unit == "steps":
        raise UserError(f"duration={duration}: a sweep needs the same duration at each batch: write tokens")
    added = {
        "schedule.warmup": Amount(_WARMUP * duration.value, duration.unit),
        "eval.every": Amount(_EVERY * duration.value, duration.unit),
        "optim.average": _AVERAGE,
        "eval.full": "false",
        "checkpoint.best": "false",
        "log.page": "false",
    }
    return [
        *words,
        *(f"{key}={value}".replace(" ", "") for key, value in added.items() if key not in given),
        "batch.start=null",
        "batch.ramp=null",
        "schedule.shape=constant",
        "eval.patience=null",
        f"eval.target={target!r}",
    ]


def request_of(words: Sequence[str], target: float, rates: str, command: str) -> Request:
    """The request of a sweep: the words of `compare`, with `rates` values of `optim.lr` at each batch. Raises UserError
    for invalid words, among them options of `compare` that do not apply."""
    options = [word for word in words if word.partition("=")[0].lstrip("-") in OPTIONS]
    for word in options:
        if word.lstrip("-").startswith(_NOT_OPTIONS):
            raise UserError(f"{word}: not an option of a sweep")
    own = [word for word in words if word not in options]
    request = parse([*words_of(own, target), *options, f"tune={TUNED}:{rates}"])
    return replace(request, command=command)


@dataclass(frozen=True)
class Tried:
    """The run of one learning rate on the first seed."""

    rate: float  # at the batch of the run, after the scaling rule
    steps: float | None  # to the target; infinite: not reached; None: not ended, or failed


@dataclass(frozen=True)
class Point:
    """The runs at one batch."""

    words: str
    batch: int | None  # sequences; None: no run has started
    tried: Mapping[float, Tried]  # by `optim.lr`, in rising order
    chosen: float | None  # `optim.lr` with the fewest steps; None: none reached the target, or not all have ended
    inside: bool  # whether worse rates were tried on both sides of the chosen one
    seeds: int
    steps: tuple[float, ...]  # to the target at the chosen rate, of the seeds that have ended; infinite: not reached

    @property
    def best(self) -> Tried | None:
        """The run at the chosen rate on the first seed."""
        return None if self.chosen is None else self.tried.get(self.chosen)

    def problem(self, target: float) -> str | None:
        """Why the steps at this batch cannot be used, in one line; None: they can."""
        if self.chosen is None:
            return f"{self.words}: no rate reached {target:g} nats/target: raise target=, or duration="
        if not self.inside:
            return f"{self.words}: the best optim.lr, {self.chosen:g}, is at the end of those tried"
        if len(self.steps) < self.seeds or not all(map(math.isfinite, self.steps)):
            return f"{self.words}: a run at the best optim.lr failed or did not reach {target:g} nats/target"
        return None

    @property
    def best_rate(self) -> float | None:
        """The vertex of the parabola of log steps over log rate through the chosen rate and its neighbors; None if one
        of them did not reach the target."""
        if self.chosen is None or not self.inside:
            return None
        keys = list(self.tried)
        index = keys.index(self.chosen)
        three = [self.tried[key] for key in keys[index - 1 : index + 2]]
        if any(one.steps is None or not math.isfinite(one.steps) for one in three):
            return None
        low, middle, high = (math.log(one.steps) for one in three if one.steps)
        curvature = low - 2 * middle + high
        shift = 0.5 * (low - high) / curvature if curvature > 0 else 0.0
        return three[1].rate * search.FACTOR**shift


@dataclass(frozen=True)
class Sweep:
    """The current state of a sweep."""

    name: str
    command: str
    target: float  # validation loss, nats/target
    points: tuple[Point, ...]
    finished: bool

    def table(self) -> list[tuple[int, float]]:
        """The batch in sequences and the steps to the target of every run at a chosen rate.

        Raises UserError for a batch whose best rate is at the end of those tried, or with a run that failed or did not
        reach the target: without it, the critical batch would be that of the rates, not of the batches.
        """
        if problems := [problem for point in self.points if (problem := point.problem(self.target))]:
            raise UserError(problems)
        return [(point.batch or 0, steps) for point in self.points for steps in point.steps]


class SweepRunner:
    """Runs a sweep, continuing from the runs that exist. Raises UserError, before any run starts, for a request that
    cannot be carried out."""

    def __init__(self, request: Request, target: float, console: Console, on_change: Callable[[Sweep], object]) -> None:
        """`request`: with the words of `words_of`, and `tune`; `on_change` is called after runs."""
        assert request.tune is not None
        self.request, self.target, self.console, self.tune = request, target, console, request.tune
        self.on_change = on_change
        command = launch_command(request.launch, request.config)
        self.launcher = Launcher(command, request.jobs, self._report_end, request.keep_checkpoints)
        words = (*request.words, f"log.group={request.name}")
        self.arms = plan_arms(assign_folders(product(words)), self.tune, lambda choices: choices)
        refuse_scripts((job for arm in self.arms for job in arm.base), request.typed)
        if len(self.arms) < 2:
            raise UserError("batch.size: a sweep needs several batches, such as batch.size=2seq,4seq,8seq,16seq,32seq")
        self._own = {id(arm): sorted(arm.tried)[self.tune.count // 2] for arm in self.arms}  # the recipe's own rate
        self._known: dict[Path, Outcome] = {}  # runs that have finished or diverged
        self._jobs: dict[tuple[Path, tuple[str, ...]], Job] = {}
        self._ended: set[Path] = set()
        self._lock = Lock()
        self._changed = -math.inf  # when `on_change` was last called

    def run(self) -> Sweep:
        """Run everything that is not finished, until done or until `launcher.stop`; returns the results."""
        self._run_jobs([self._job(arm, self._own[id(arm)]) for arm in self.arms])
        extended = True
        while extended and not self.launcher.stopped:
            self._run_jobs([self._job(arm, value) for arm in self.arms for value in arm.tried])
            extended = sum(self._extend(arm) for arm in self.arms) > 0
        for arm in self.arms:
            arm.chosen = search.best_value(self._tried_steps(arm)) if not self.launcher.stopped else None
        self._run_jobs(list(seeds_first({(arm.words,): self._final_jobs(arm) for arm in self.arms})))
        self.console.end_work()
        return self.sweep(finished=not self.launcher.stopped)

    def _extend(self, arm: PlannedArm) -> bool:
        """Plan a further rate where the best so far is at an end; returns whether there is one."""
        value = search.next_value(self._tried_steps(arm), self.tune.count)
        if value is None or self.launcher.stopped:
            return False
        arm.add_value(self.tune.field, value)
        return True

    def _job(self, arm: PlannedArm, value: float, base: Job | None = None) -> Job:
        """The run of a rate, on the first seed or that of `base`; other rates than the recipe's own have a cap."""
        own, base = self._own[id(arm)], base or arm.base[0]
        if value == own:
            return self._with_words(base, f"{self.tune.field}={value:g}")
        outcome = self._outcome(arm.tried[own])
        sequences = math.inf
        if outcome.run is not None and outcome.state == "finished":
            sequences = _CAP * position_of(outcome.run, self.target, CLOCK)
        words = [f"{self.tune.field}={value:g}"]
        if outcome.run is not None and sequences < outcome.run.plan["sequences"]:
            batch = outcome.run.plan["largest_batch"]
            words.append(f"duration={batch * math.ceil(sequences / batch)}seq")
        return self._with_words(base, *words)

    def _with_words(self, base: Job, *words: str) -> Job:
        """`Job.with_words`, which reads the recipe, once for the same words."""
        key = (base.folder, words)
        if key not in self._jobs:
            self._jobs[key] = base.with_words(*words)
        return self._jobs[key]

    def _final_jobs(self, arm: PlannedArm) -> list[Job]:
        """The runs of all seeds at the chosen rate."""
        return [] if arm.chosen is None else [self._job(arm, arm.chosen, base) for base in arm.base]

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        self.launcher.run([job for job in jobs if job.folder not in self._known | self.launcher.failures.keys()])

    def _report_end(self, job: Job, result: str) -> None:
        with self._lock:  # runs end in threads of their own
            self._report(job, result)

    def _report(self, job: Job, result: str) -> None:
        self._ended.add(job.folder)
        steps = self._steps(job)
        shown = f"{steps:,.1f} steps to the target" if steps is not None and math.isfinite(steps) else "not reached"
        words = " ".join((*job.choices, *job.added))
        self.console.line(f"[{len(self._ended)}] {words}: {result}, {shown} ({job.folder})")
        if time.monotonic() < self._changed + _PAGE_SECONDS:
            return
        self._changed = time.monotonic()
        try:
            self.on_change(self.sweep(finished=False))
        except Exception as fault:  # a page that cannot be drawn must not stop the runs
            self.console.warn(f"the page was not updated ({type(fault).__name__}: {fault})")

    def _outcome(self, job: Job) -> Outcome:
        if job.folder not in self._known:
            outcome = outcome_of(job.folder, job.seed)
            if not (has_finished(job.folder, job.loaded.recipe) or has_diverged(job.folder, job.loaded.recipe)):
                return replace(outcome, state="waiting")
            self._known[job.folder] = outcome
        return self._known[job.folder]

    def _steps(self, job: Job) -> float | None:
        """The steps of a run to the target, interpolated between two evaluations; infinite: it was not reached, None:
        the run has not ended or has failed."""
        outcome = self._outcome(job)
        if outcome.state == "diverged":
            return math.inf
        return position_of(outcome.run, self.target, STEPS) if outcome.state == "finished" and outcome.run else None

    def _tried_steps(self, arm: PlannedArm) -> dict[float, float | None]:
        return {value: self._steps(self._job(arm, value)) for value in sorted(arm.tried)}

    def sweep(self, finished: bool) -> Sweep:
        """The current state of the sweep, read from the folders of its runs."""
        points = [self._point(arm) for arm in self.arms]
        return Sweep(self.request.name, self.request.command, self.target, tuple(points), finished)

    def _point(self, arm: PlannedArm) -> Point:
        jobs = {value: self._job(arm, value) for value in sorted(arm.tried)}
        plans = {value: run.plan for value, job in jobs.items() if (run := self._outcome(job).run) is not None}
        steps = {value: self._steps(job) for value, job in jobs.items()}
        final = [self._steps(job) for job in self._final_jobs(arm)]
        return Point(
            words=" ".join(arm.base[0].arm),
            batch=next((plan["largest_batch"] for plan in plans.values()), None),
            tried={value: Tried(plans[value]["learning_rate"]["largest_batch"], steps[value]) for value in plans},
            chosen=arm.chosen,
            inside=search.is_inside(steps),
            seeds=len(arm.base),
            steps=tuple(one for one in final if one is not None),
        )


def rate_exponent(points: Sequence[Point]) -> float | None:
    """The exponent p of the best rate ∝ batch^p, by least squares over the batches; None for fewer than two batches."""
    pairs = [(math.log(point.batch), math.log(point.best_rate)) for point in points if point.batch and point.best_rate]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope if len(pairs) > 1 else None


def lines_of(sweep: Sweep) -> list[str]:
    """The steps and the tuned rate at each batch as lines of text."""
    heads = f"{'batch':>12} {'steps':>9} {'seeds':>6} {'optim.lr':>9} {'rate':>9} {'best rate':>10}"
    lines = [f"sweep to {sweep.target:g} nats/target", f"{heads}   steps by optim.lr"]
    for point in sweep.points:
        finite = [steps for steps in point.steps if math.isfinite(steps)]
        tried = ", ".join(f"{value:g}: {_count(one.steps)}" for value, one in point.tried.items())
        rate = None if point.best is None else point.best.rate
        lines.append(
            f"{point.batch or 0:>8,} seq {_count(statistics.fmean(finite) if finite else None):>9} {len(finite):>6} "
            f"{_number(point.chosen):>9} {_number(rate):>9} {_number(point.best_rate):>10}   {tried}"
        )
    exponent = rate_exponent(sweep.points)
    if exponent is not None:
        lines.append(f"best rate    ∝ batch^{exponent:.2f}, by least squares over the batches")
    return lines


def _count(steps: float | None) -> str:
    return "–" if steps is None else f"{steps:,.0f}" if math.isfinite(steps) else "∞"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
