"""Runs a comparison stage by stage (pretraining, equal steps, tuning, all seeds) and keeps its page up to date."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from hfbsz.errors import UserError
from hfbsz.experiment import handover, search
from hfbsz.experiment.arms import PlannedArm, plan_arms
from hfbsz.experiment.gather import gather, outcome_of
from hfbsz.experiment.jobs import Job, assign_folders, product, seeds_first, with_group
from hfbsz.experiment.launch import Launcher, launch_command
from hfbsz.experiment.page import page, wandb
from hfbsz.experiment.page.results_file import results_of
from hfbsz.experiment.request import Request, refuse_scripts
from hfbsz.experiment.results import ArmResult, Experiment, Outcome, TriedValue
from hfbsz.recipe.amounts import Amount
from hfbsz.records.folder import has_finished, read_status
from hfbsz.report.console import Console
from hfbsz.report.wandb.identity import entity_of, project_of
from hfbsz.system.files import write_text

_POLL_SECONDS = 1.0
_PAGE_SECONDS = 30.0  # minimum time between two pages while runs are active
_PAGE_SHARE = 20  # and at least this many times as long as the last page took to render


class ComparisonRunner:
    """Runs a comparison, continuing from the runs that exist. Raises UserError, before any run starts, for a request
    that cannot be carried out."""

    def __init__(self, request: Request, console: Console) -> None:
        self.request, self.console = request, console
        keep = request.keep_checkpoints or bool(request.pretrain)  # pretraining hands over a checkpoint
        command = launch_command(request.launch, request.config)
        self.launcher = Launcher(command, request.jobs, self._report_end, keep)
        self.notes: list[str] = []
        pretraining = product(with_group(request.pretrain, request.name)) if request.pretrain else []
        self.pretraining = [replace(job, folder_suffix="-handed-over") for job in assign_folders(pretraining)]
        words = with_group(request.words, request.name)
        self.display_names: dict[str, str] = {}  # choice → what the reader sees in its place
        if self.pretraining:
            models = [f"{handover.model_folder(request.folder, job, request.match)}" for job in self.pretraining]
            for model, job in zip(models, self.pretraining, strict=True):
                batch = " ".join(job.choices).removeprefix("batch.size=")
                self.display_names[f"model.path={model}"] = f"pretrained at {batch}"
            words = (*words, f"model.path={','.join(models)}")
        self.arms = plan_arms(assign_folders(product(words)), request.tune, self._displayed)
        refuse_scripts([*self.pretraining, *(job for arm in self.arms for job in arm.base)], request.typed)
        self._finished_runs: dict[Path, Outcome] = {}  # cached: a finished run does not change
        self._finished = False
        self._ended: set[Path] = set()  # runs that have ended, in this process or before it
        self._planned, self._time_left = 0, ""  # number of runs and time left in words, as of the newest page
        self._page_written, self._page_seconds = 0.0, 0.0  # when (monotonic), and how long it took

    def _displayed(self, choices: Sequence[str]) -> list[str]:
        return [self.display_names.get(choice, choice) for choice in choices]

    def run(self) -> Experiment:
        """Run everything that is not finished, until done or until `launcher.stop`; returns the results.

        Raises UserError, which the page also shows, if a stage needs a run that has failed.
        """
        self.request.folder.mkdir(parents=True, exist_ok=True)
        self.console.line(f"progress: {self._write_page().page}")
        if self._finished_runs:
            self.console.line(f"{len(self._finished_runs)} of {self._planned} runs are already finished")
        try:
            self._run_stages()
        except UserError as problem:
            self.notes += problem.lines
            self._finished = True
            self._write_page()
            raise
        finally:
            self.console.end_work()
        self._finished = not self.launcher.stopped
        experiment = self._write_page()
        if self._finished:
            self._log_to_wandb(experiment)
        return experiment

    def _run_stages(self) -> None:
        if self.pretraining:
            self._run_jobs(self.pretraining)
            self.launcher.keep_checkpoints = self.request.keep_checkpoints
            if not self.launcher.stopped:
                self.notes += handover.hand_over(self.request.folder, self.pretraining, self.request.match)
        if self.request.equal == "steps":
            self._equalize_steps()
        if self.request.tune is not None:
            self._tune()
        field = self.request.tune.field if self.request.tune else ""
        self._run_jobs(list(seeds_first({(arm.words,): arm.jobs(field) for arm in self.arms})))

    def _log_to_wandb(self, experiment: Experiment) -> None:
        """Update the comparison's own W&B run, in the same mode as its runs."""
        log = self.arms[0].base[0].loaded.recipe.log
        html = experiment.page.read_text()
        place = project_of(log), entity_of(log), log.group
        wandb.log_comparison(experiment, log.wandb, *place, self.console.warn, html)

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        """Run jobs, updating the page meanwhile; skips jobs that have finished or failed before."""
        done = self._finished_runs.keys() | self.launcher.failures.keys()
        unique = [job for job in {job.folder: job for job in jobs}.values() if job.folder not in done]
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.launcher.run, unique)
            while not wait([future], timeout=_POLL_SECONDS).done:
                if time.monotonic() > self._page_written + max(_PAGE_SECONDS, _PAGE_SHARE * self._page_seconds):
                    self._write_page()
            future.result()

    def _report_end(self, job: Job, result: str) -> None:
        self._ended.add(job.folder)
        words = " ".join((*self._displayed(job.choices), *job.added)) or job.loaded.name
        self.console.line(f"[{len(self._ended)}/{self._planned}{self._time_left}] {words}: {result} ({job.folder})")

    def _equalize_steps(self) -> None:
        """Give every arm the optimizer steps of the largest batch, which is run first."""
        sizes = {id(arm): _batch_size(arm.base[0]) for arm in self.arms}
        if len({size.unit for size in sizes.values()}) > 1:
            raise UserError("equal=steps: batch.size must be in sequences for all arms, or in tokens for all arms")
        largest = max(self.arms, key=lambda arm: sizes[id(arm)].value)
        self._run_jobs(largest.base[:1])
        outcome = self._outcome(largest.base[0])
        if outcome.state != "finished" or outcome.run is None:
            if self.launcher.stopped:
                return
            raise UserError(f"equal=steps: the steps are unknown because {largest.words} failed: {outcome.why}")
        steps = outcome.run.plan["steps"]
        self.notes.append(
            f"equal optimizer steps: all arms run {steps:,} steps, those of {largest.words}; smaller batches see "
            "fewer rows"
        )
        for arm in self.arms:
            if sizes[id(arm)] != sizes[id(largest)] or arm.base[0].loaded.recipe.batch.ramp is not None:
                arm.base = [self._with_steps(job, steps) for job in arm.base]
                if arm.tuned and self.request.tune is not None:
                    arm.start_search(self.request.tune)

    def _with_steps(self, job: Job, steps: int) -> Job:
        """The job with another duration, in a separate folder where the recipe's digest leaves out the duration."""
        changed = job.with_words(f"duration={steps}steps")
        suffix = f"{job.folder_suffix}-{steps}steps" if changed.loaded.recipe.extendable() else job.folder_suffix
        return replace(changed, folder_suffix=suffix)

    def _tune(self) -> None:
        """Search the tuned field's value for every tuned arm, on the first seed."""
        tune = self.request.tune
        assert tune is not None
        arms = [arm for arm in self.arms if arm.tuned]
        while not self.launcher.stopped:
            self._run_jobs([job for arm in arms for job in arm.tried.values()])
            extended = False
            for arm in arms:
                value = search.next_value(self._losses(arm), tune.count)
                if value is not None and not self.launcher.stopped:
                    arm.add_value(tune.field, value)
                    extended = True
            if not extended:
                break
        if self.launcher.stopped:
            return
        self.notes.append(
            f"{tune.field} was selected on seed {arms[0].base[0].seed} using the validation rows that are reported: "
            "results of tuned arms are optimistic on that seed"
        )
        for arm in arms:
            losses = self._losses(arm)
            arm.chosen = search.best_value(losses)
            if arm.chosen is not None and not search.is_inside(losses):
                self.notes.append(
                    f"{arm.words}: the best of {len(losses)} values of {tune.field}, {arm.chosen:g}, is at the end of "
                    "the range: the arm does not count as tuned"
                )

    def _losses(self, arm: PlannedArm) -> dict[float, float | None]:
        return {value: self._loss(job) for value, job in arm.tried.items()}

    def _loss(self, job: Job) -> float | None:
        outcome = self._outcome(job)
        return math.inf if outcome.state == "diverged" else outcome.loss

    def _outcome(self, job: Job) -> Outcome:
        if job.folder in self._finished_runs:
            return replace(self._finished_runs[job.folder], seed=job.seed)
        state = "running" if job.folder in self.launcher.running else None
        why = self.launcher.failures.get(job.folder)
        if why is None and state is None and read_status(job.folder).get("state") == "finished":
            state = "finished" if has_finished(job.folder, job.loaded.recipe) else "waiting"
        outcome = outcome_of(job.folder, job.seed, state or ("failed" if why else None), why)
        if outcome.state == "finished":
            self._finished_runs[job.folder] = outcome
        return outcome

    def experiment(self) -> Experiment:
        """The current state of the comparison, read from the folders of its runs."""
        tune, picture = self.request.tune, self.request.picture
        field = tune.field if tune else ""
        arms, planned = [], set()
        for arm in self.arms:
            jobs = arm.jobs(field)
            tried = tuple(self._tried_value(arm, value, job) for value, job in sorted(arm.tried.items()))
            inside = arm.chosen is not None and search.is_inside(self._losses(arm))
            outcomes = tuple(self._outcome(job) for job in jobs)
            arms.append((ArmResult(arm.words, None, outcomes, tried), self._displayed(arm.base[0].choices), inside))
            planned |= {job.folder for job in (*jobs, *arm.tried.values())}
            planned |= {job.folder / "to be tuned" for job in arm.base if arm.tuned and not jobs}
        pretraining = [
            ArmResult(f"pretraining {' '.join(job.choices)}".strip(), None, (self._outcome(job),))
            for job in self.pretraining
        ]
        empty = Experiment(
            name=self.request.name,
            command=self.request.command,
            task=self.arms[0].base[0].loaded.recipe.task,
            folder=self.request.folder,
            arms=(),
            tuned=tune.field if tune else None,
            notes=tuple(self.notes),
            jobs=self.request.jobs,
            pretraining=tuple(pretraining),
            planned=len(planned) + len(pretraining),
            finished=self._finished,
            picture=picture if picture is not None and picture.is_file() else None,
        )
        experiment = gather(empty, arms)
        return replace(experiment, seconds_left=None if self._finished else self._seconds_left(experiment))

    def _tried_value(self, arm: PlannedArm, value: float, job: Job) -> TriedValue:
        outcome = self._outcome(job)
        return TriedValue(value, self._loss(job), value == arm.chosen, outcome)

    def _seconds_left(self, experiment: Experiment) -> float | None:
        """The time left (s), assuming each open run takes the mean time of those that ended; None if none has."""
        durations = list(self.launcher.seconds.values())
        for outcome in experiment.outcomes:
            status = read_status(outcome.folder)
            if outcome.state == "finished" and outcome.folder not in self.launcher.seconds and "started" in status:
                durations.append(status["updated"] - status["started"])
        if not durations:
            return None
        mean, now = sum(durations) / len(durations), time.monotonic()
        ended = sum(outcome.ended for outcome in experiment.outcomes)
        spent = sum(min(mean, now - started) for started in list(self.launcher.running.values()))
        return max(0.0, (experiment.planned - ended) * mean - spent) / self.request.jobs

    def _write_page(self) -> Experiment:
        """Write the page and show the progress on the console; returns the state that was written."""
        started = time.monotonic()
        experiment = self.experiment()
        self._ended |= {outcome.folder for outcome in experiment.outcomes if outcome.ended}
        ended, self._planned = len(self._ended), experiment.planned
        left = experiment.seconds_left
        self._time_left = "" if left is None else f", {left / 60:.0f} min left"
        if not self._finished:
            state = f"{ended} of {experiment.planned} runs{self._time_left}"
            self.console.work("comparing", ended, experiment.planned, state)
        try:
            write_text(experiment.results, results_of(experiment).text())
            write_text(experiment.page, page.render(experiment))
        except Exception as fault:  # a figure that cannot be drawn must not stop the runs
            self.console.warn(f"the page was not updated ({type(fault).__name__}: {fault})")
        self._page_written = time.monotonic()
        self._page_seconds = self._page_written - started
        return experiment


def _batch_size(job: Job) -> Amount:
    size = job.loaded.recipe.batch.size
    if not isinstance(size, Amount):
        raise UserError("equal=steps: every arm needs a batch.size, in sequences or in tokens")
    return size
