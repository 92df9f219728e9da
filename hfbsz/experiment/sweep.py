"""The critical batch by a sweep: the steps to a target loss at several batches, with the rate tuned at each.

At each batch, learning rates a factor of two apart are tried on the first seed, and further ones while the best is at
an end; the other seeds then train at the best one. Every run has a constant rate after its warmup, evaluates an average
of its weights and ends at the target, so that its steps do not depend on a planned length (Shallue et al. 2019, arXiv
1811.03600; Zhang et al. 2024, arXiv 2410.21676). Other rates than the recipe's own are given up at three times its
sequences.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from hfbsz.errors import UserError
from hfbsz.experiment import search
from hfbsz.experiment.arms import PlannedArm, plan_arms
from hfbsz.experiment.gather import outcome_of, position_of
from hfbsz.experiment.jobs import Job, assign_folders, product, seeds_first, with_group
from hfbsz.experiment.launch import Launcher, launch_command
from hfbsz.experiment.request import MAX_VALUES, MIN_VALUES, OPTIONS, Request, parse, refuse_scripts
from hfbsz.experiment.results import Outcome
from hfbsz.experiment.sweep_results import Point, Sweep, Tried, reached_early
from hfbsz.measure.critical_batch import MIN_BATCHES
from hfbsz.recipe.amounts import Amount
from hfbsz.records.evaluations import validation_curve
from hfbsz.records.folder import SWEEP_FIELDS, has_diverged, has_finished, read_status
from hfbsz.records.run_data import CLOCK, STEPS
from hfbsz.report.console import Console

RATES = 5  # tried at each batch, at least
TUNED = "optim.lr"
_CAP = 3  # times the sequences that the recipe's own rate needs
_WARMUP, _EVERY = 5, 1  # % of the duration: warmup, interval of evaluations
_AVERAGE = 0.1  # mean age of the averaged weights
_NOT_OPTIONS = ("tune=", "equal=", "out=", "picture=", "format=")  # of compare
_PAGE_SECONDS = 15.0  # minimum time between two calls of `on_change`


def words_of(words: Sequence[str], target: float) -> list[str]:
    """The words of a sweep's runs: the words given, with what makes steps to a target loss comparable. Words given for
    the warmup, the interval of evaluations and the average of weights remain. Raises UserError for a field that the
    sweep sets itself, and for a duration in steps."""
    given = dict(word.lstrip("-").partition("=")[::2] for word in words)
    if fixed := [name for name in SWEEP_FIELDS if name in given]:
        raise UserError(f"{fixed[0]}: a sweep sets it itself: leave it out")
    if "batch.size" not in given:
        raise UserError("batch.size is missing: the batches of the sweep, such as batch.size=2seq,4seq,8seq,16seq")
    duration = product(words)[0].loaded.recipe.duration
    if duration.unit == "steps":
        raise UserError(f"duration={duration}: a sweep needs the same duration at each batch: write tokens")

    def amount(name: str, default: float) -> str:
        """A share of the whole duration as an amount: some runs have a shorter one."""
        text = given.get(name, f"{default}%").strip()
        if not text.endswith("%"):
            return text
        return str(Amount(Amount.parse(text).value / 100 * duration.value, duration.unit)).replace(" ", "")

    defaults = {"optim.average": _AVERAGE, "eval.full": "false", "eval.watch": "false", "checkpoint.best": "false"}
    defaults |= {"log.page": "false"}
    own = ("schedule.warmup", "eval.every")
    return [
        *(word for word in words if word.lstrip("-").partition("=")[0] not in own),
        *(f"{key}={value}" for key, value in defaults.items() if key not in given),
        f"schedule.warmup={amount('schedule.warmup', _WARMUP)}",
        f"eval.every={amount('eval.every', _EVERY)}",
        "batch.start=null",
        "batch.ramp=null",
        "schedule.shape=constant",
        "eval.patience=null",
        "checkpoint.save=last",
        f"eval.target={target!r}",
    ]


def request_of(words: Sequence[str], target: float, rates: str, command: str) -> Request:
    """The request of a sweep: the words of `compare`, with `rates` values of `optim.lr` at each batch. Raises UserError
    for invalid words, among them options of `compare` that do not apply."""
    options = [word for word in words if word.partition("=")[0].lstrip("-") in OPTIONS]
    for word in options:
        if word.lstrip("-").startswith(_NOT_OPTIONS):
            raise UserError(f"{word}: not an option of a sweep")
    if not (rates.isdigit() and MIN_VALUES <= int(rates) <= MAX_VALUES):
        raise UserError(f"rates={rates}: the number of values of {TUNED} must be {MIN_VALUES} to {MAX_VALUES}")
    own = [word for word in words if word not in options]
    request = parse([*words_of(own, target), *options, f"tune={TUNED}:{rates}"])
    return replace(request, command=command)


class SweepRunner:
    """Runs a sweep, continuing from the runs that exist. Raises UserError, before any run starts, for a request that
    cannot be carried out."""

    def __init__(
        self,
        request: Request,
        target: float,
        console: Console,
        on_change: Callable[[Sweep], object],
        first: float | None = None,
    ) -> None:
        """`request`: that of `request_of`; `on_change` is called at the start and after runs; `first`: the batch in
        sequences up to which scaling is taken to be perfect."""
        assert request.tune is not None
        self.request, self.target, self.first = request, target, first
        self.console, self.tune = console, request.tune
        self.on_change = on_change
        command = launch_command(request.launch, request.config)
        self.launcher = Launcher(command, request.jobs, self._report_end, request.keep_checkpoints)
        jobs = assign_folders(product(with_group(request.words, request.name)))
        refuse_scripts(jobs, request.typed)
        self.recipe = jobs[0].loaded.recipe.to_dict()
        others = {choice.partition("=")[0] for job in jobs for choice in job.arm} - {"batch.size"}
        if others:
            raise UserError(f"{sorted(others)[0]}: a sweep varies batch.size alone: run one sweep for each value")
        self.arms = plan_arms(jobs, self.tune, lambda choices: choices)
        if len(self.arms) < MIN_BATCHES:
            raise UserError(f"batch.size: a sweep needs at least {MIN_BATCHES} batches, such as 2seq,8seq,32seq")
        self._own = {id(arm): sorted(arm.tried)[self.tune.count // 2] for arm in self.arms}  # the recipe's own rate
        self._known: dict[Path, Outcome] = {}  # runs that have finished or diverged
        self._jobs: dict[tuple[Path, tuple[str, ...]], Job] = {}
        self._ended: set[Path] = set()
        self._lock = Lock()
        self._changed = -math.inf  # when `on_change` was last called

    def run(self) -> Sweep:
        """Run everything that is not finished, until done or until `launcher.stop`; returns the results."""
        self._change()
        self._run_jobs([self._job(arm, self._own[id(arm)]) for arm in self.arms])
        for arm in self.arms:
            if self._tried(self._job(arm, self._own[id(arm)])).early:
                raise UserError(reached_early(" ".join(arm.base[0].arm), self.target))
        extended = True
        while extended and not self.launcher.stopped:
            self._run_jobs([self._job(arm, value) for arm in self.arms for value in arm.tried])
            extended = sum(self._extend(arm) for arm in self.arms) > 0
        for arm in self.arms:
            arm.chosen = search.best_value(self._tried_steps(arm)) if not self.launcher.stopped else None
        self._run_jobs(list(seeds_first({(arm.words,): self._final_jobs(arm) for arm in self.arms})))
        self.console.end_work()
        return self.sweep("preempted" if self.launcher.stopped else "finished")

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
        whole = self._with_words(base, f"{self.tune.field}={value:g}")
        outcome = self._outcome(self._with_words(arm.base[0], f"{self.tune.field}={own:g}"))
        if value == own or outcome.run is None or outcome.state != "finished":
            return whole
        sequences = _CAP * position_of(outcome.run, self.target, CLOCK)
        if sequences >= outcome.run.plan["sequences"] or self._has_ended(whole):
            return whole
        batch = outcome.run.plan["largest_batch"]
        cap = batch * math.ceil(sequences / batch)
        if read_status(whole.folder).get("clock", 0) > cap:  # it began before the cap was known
            return whole
        return self._with_words(base, f"{self.tune.field}={value:g}", f"duration={cap}seq")

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
        if steps is not None:
            result += f", {steps:,.1f} steps to the target" if math.isfinite(steps) else ", the target was not reached"
        words = " ".join((*job.choices, *job.added))
        self.console.line(f"[{len(self._ended)}] {words}: {result} ({job.folder})")
        if time.monotonic() > self._changed + _PAGE_SECONDS:
            self._change()

    def _change(self) -> None:
        self._changed = time.monotonic()
        try:
            self.on_change(self.sweep("running"))
        except Exception as fault:  # a page that cannot be drawn must not stop the runs
            self.console.warn(f"the page was not updated ({type(fault).__name__}: {fault})")

    def _outcome(self, job: Job) -> Outcome:
        if job.folder not in self._known:
            outcome = outcome_of(job.folder, job.seed)
            if not self._has_ended(job):
                return replace(outcome, state="waiting")
            self._known[job.folder] = outcome
        return self._known[job.folder]

    def _has_ended(self, job: Job) -> bool:
        recipe = job.loaded.recipe  # with its duration: a whole run and a capped one share a folder
        return has_finished(job.folder, recipe) or has_diverged(job.folder, recipe)

    def _steps(self, job: Job) -> float | None:
        """The steps of a run to the target, interpolated between two evaluations; infinite: it was not reached, None:
        the run has not ended or has failed."""
        outcome = self._outcome(job)
        if outcome.state == "diverged":
            return math.inf
        return position_of(outcome.run, self.target, STEPS) if outcome.state == "finished" and outcome.run else None

    def _tried_steps(self, arm: PlannedArm) -> dict[float, float | None]:
        return {value: self._steps(self._job(arm, value)) for value in sorted(arm.tried)}

    def _tried(self, job: Job) -> Tried:
        """The run of a job as it is now."""
        outcome, steps = self._outcome(job), self._steps(job)
        plan = outcome.run.plan if outcome.run is not None else {}
        early = False
        if outcome.run is not None and steps is not None and math.isfinite(steps):
            evaluations = validation_curve(outcome.run)
            warmup = position_of(outcome.run, self.target, CLOCK) <= plan["warmup_sequences"]
            early = warmup or evaluations[0] is evaluations[-1]
        rate = plan["learning_rate"]["largest_batch"] if plan else None
        return Tried(rate, steps, early, self.launcher.failures.get(job.folder))

    def sweep(self, state: str) -> Sweep:
        """The sweep as it is now, read from the folders of its runs; `state`: running, finished or preempted."""
        points = tuple(self._point(arm) for arm in self.arms)
        request = self.request
        return Sweep(request.name, request.command, self.target, self.first, points, state, self.recipe)

    def _point(self, arm: PlannedArm) -> Point:
        jobs = {value: self._job(arm, value) for value in sorted(arm.tried)}
        plans = [run.plan for job in jobs.values() if (run := self._outcome(job).run) is not None and run.plan]
        return Point(
            words=" ".join(arm.base[0].arm),
            batch=plans[0]["largest_batch"] if plans else None,
            tried={value: self._tried(job) for value, job in jobs.items()},
            chosen=arm.chosen,
            runs=tuple(self._tried(job) for job in self._final_jobs(arm)),
        )
