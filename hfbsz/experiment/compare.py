"""A comparison put together: what is asked for is run stage by stage, and its page kept up to date."""

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from hfbsz.errors import UserError
from hfbsz.experiment import handover, search
from hfbsz.experiment.arms import Line, lines_of
from hfbsz.experiment.gather import gather, outcome_of
from hfbsz.experiment.jobs import Job, in_folders_of_their_own, product, seeds_first
from hfbsz.experiment.launch import Launcher, launcher
from hfbsz.experiment.page import page, wandb
from hfbsz.experiment.request import Request, refuse_scripts
from hfbsz.experiment.results import ArmResult, Experiment, Outcome, Tried
from hfbsz.recipe.amounts import Amount
from hfbsz.records.folder import has_finished, read_status
from hfbsz.report.console import Console
from hfbsz.system.files import write_text

_LOOK_SECONDS = 1.0
_PAGE_SECONDS = 30.0  # between two pages while runs are at work, at least
_PAGE_SHARE = 20  # and so many times what a page takes to draw


class ComparisonRunner:
    """Runs a comparison from where it stands. Raises UserError for what cannot be asked for, before anything is run."""

    def __init__(self, request: Request, console: Console) -> None:
        self.request, self.console = request, console
        keeps = request.keeps_checkpoints or bool(request.pretrain)  # what is handed on is a checkpoint
        self.launcher = Launcher(launcher(request.launch, request.config), request.jobs, self._ended_as, keeps)
        self.notes: list[str] = []
        pretraining = product(self._grouped(request.pretrain)) if request.pretrain else []
        self.pretraining = [replace(job, apart="-handed-over") for job in in_folders_of_their_own(pretraining)]
        words = self._grouped(request.words)
        self.names: dict[str, str] = {}  # what a reader sees in place of a choice
        if self.pretraining:
            models = [f"{handover.model_folder(request.folder, job, request.match)}" for job in self.pretraining]
            for model, job in zip(models, self.pretraining, strict=True):
                at = " ".join(job.choices).removeprefix("batch.size=")
                self.names[f"model.path={model}"] = f"pretrained at {at}"
            words = (*words, f"model.path={','.join(models)}")
        self.lines = lines_of(in_folders_of_their_own(product(words)), request.tune, self._shown)
        refuse_scripts([*self.pretraining, *(job for line in self.lines for job in line.base)], request.typed)
        self._finished_runs: dict[Path, Outcome] = {}  # they do not change any more
        self._finished = False
        self._over: set[Path] = set()  # runs that have ended, or had before
        self._planned, self._left = 0, ""  # runs in all, and what is left of them in words, as of the newest page
        self._drawn, self._drawing = 0.0, 0.0  # when the page was drawn (monotonic), and what it took, s

    def _grouped(self, words: Sequence[str]) -> tuple[str, ...]:
        """With the comparison's name as their group in W&B, unless they have one."""
        own = any(word.startswith("log.group=") for word in words)
        return tuple(words) if own else (*words, f"log.group={self.request.name}")

    def _shown(self, choices: Sequence[str]) -> list[str]:
        return [self.names.get(choice, choice) for choice in choices]

    def carry_out(self) -> Experiment:
        """Run what is not finished, to the end or until `launcher.stop`. Raises UserError, and says so on the page,
        where what comes next needs what has failed."""
        self.request.folder.mkdir(parents=True, exist_ok=True)
        self.console.line(f"{self._draw().page} shows how far it is")
        if self._finished_runs:
            self.console.line(f"{len(self._finished_runs)} of {self._planned} runs were finished earlier")
        try:
            self._stages()
        except UserError as problem:
            self.notes += problem.lines
            self._finished = True
            self._draw()
            raise
        finally:
            self.console.end_work()
        self._finished = not self.launcher.stopped
        experiment = self._draw()
        if self._finished:
            self._share(experiment)
        return experiment

    def _stages(self) -> None:
        if self.pretraining:
            self._run(self.pretraining)
            self.launcher.keeps_checkpoints = self.request.keeps_checkpoints
            if not self.launcher.stopped:
                self.notes += handover.hand_over(self.request.folder, self.pretraining, self.request.match)
        if self.request.equal == "steps":
            self._to_equal_steps()
        if self.request.tune is not None:
            self._search()
        key = self.request.tune.field if self.request.tune else ""
        self._run(list(seeds_first({(line.words,): line.jobs(key) for line in self.lines})))

    def _share(self, experiment: Experiment) -> None:
        """Bring the comparison's own run in W&B up to date, in the mode of its runs."""
        log = self.lines[0].base[0].loaded.recipe.log
        text = experiment.page.read_text()
        entity = log.entity or os.environ.get("WANDB_ENTITY")
        wandb.aggregate(experiment, log.wandb, log.project, entity, log.group, self.console.warn, text)

    def _run(self, jobs: Sequence[Job]) -> None:
        """Run jobs while the page is kept up to date."""
        over = self._finished_runs.keys() | self.launcher.failures.keys()
        unique = [job for job in {job.folder: job for job in jobs}.values() if job.folder not in over]
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.launcher.run, unique)
            while not wait([future], timeout=_LOOK_SECONDS).done:
                if time.monotonic() > self._drawn + max(_PAGE_SECONDS, _PAGE_SHARE * self._drawing):
                    self._draw()
            future.result()

    def _ended_as(self, job: Job, ended: str) -> None:
        self._over.add(job.folder)
        words = " ".join((*self._shown(job.choices), *job.added)) or job.loaded.name
        self.console.line(f"[{len(self._over)}/{self._planned}{self._left}] {words}: {ended} ({job.folder})")

    def _to_equal_steps(self) -> None:
        """Give every arm the optimizer steps of the largest batch."""
        sizes = {id(line): _size(line.base[0]) for line in self.lines}
        if len({size.unit for size in sizes.values()}) > 1:
            raise UserError("equal=steps: batch.size in sequences for all arms, or in tokens for all")
        largest = max(self.lines, key=lambda line: sizes[id(line)].value)
        self._run(largest.base[:1])
        first = self._outcome(largest.base[0])
        if first.state != "finished" or first.run is None:
            if self.launcher.stopped:
                return
            raise UserError(f"equal=steps: {largest.words} has failed, so its steps are not known: {first.why}")
        steps = first.run.plan["steps"]
        self.notes.append(f"equal optimizer steps: {steps:,}, those of {largest.words}; smaller batches see fewer rows")
        for line in self.lines:
            if sizes[id(line)] != sizes[id(largest)] or line.base[0].loaded.recipe.batch.ramp is not None:
                line.base = [self._with_steps(job, steps) for job in line.base]
                if line.tuned and self.request.tune is not None:
                    line.begin(self.request.tune)

    def _with_steps(self, job: Job, steps: int) -> Job:
        """In a folder of its own where the digest does not hold the duration."""
        changed = job.but(f"duration={steps}steps")
        apart = f"{job.apart}-{steps}steps" if changed.loaded.recipe.extendable() else job.apart
        return replace(changed, apart=apart)

    def _search(self) -> None:
        """Tune every arm that is to be tuned, on its first seed."""
        tune = self.request.tune
        assert tune is not None
        lines = [line for line in self.lines if line.tuned]
        while not self.launcher.stopped:
            self._run([job for line in lines for job in line.tried.values()])
            further = False
            for line in lines:
                beyond = search.next_value(self._losses(line), tune.count)
                if beyond is not None and not self.launcher.stopped:
                    line.add(tune.field, beyond)
                    further = True
            if not further:
                break
        if self.launcher.stopped:
            return
        self.notes.append(
            f"{tune.field} was chosen on seed {lines[0].base[0].seed} by the validation rows that are reported: that "
            "seed flatters a tuned arm"
        )
        for line in lines:
            losses = self._losses(line)
            line.chosen = search.best_value(losses)
            if line.chosen is not None and not search.is_inside(losses):
                self.notes.append(
                    f"{line.words}: the best of {len(losses)} values of {tune.field}, {line.chosen:g}, lies at their "
                    "end: it does not count as tuned"
                )

    def _losses(self, line: Line) -> dict[float, float | None]:
        return {value: self._loss(job) for value, job in line.tried.items()}

    def _loss(self, job: Job) -> float | None:
        outcome = self._outcome(job)
        return math.inf if outcome.state == "diverged" else outcome.loss

    def _outcome(self, job: Job) -> Outcome:
        if job.folder in self._finished_runs:
            return replace(self._finished_runs[job.folder], seed=job.seed)
        state = "running" if job.folder in self.launcher.at_work else None
        why = self.launcher.failures.get(job.folder)
        if why is None and state is None and read_status(job.folder).get("state") == "finished":
            state = "finished" if has_finished(job.folder, job.loaded.recipe) else "waiting"
        found = outcome_of(job.folder, job.seed, state or ("failed" if why else None), why)
        if found.state == "finished":
            self._finished_runs[job.folder] = found
        return found

    def experiment(self) -> Experiment:
        """The comparison as it stands."""
        tune = self.request.tune
        key = tune.field if tune else ""
        arms, planned = [], set()
        for line in self.lines:
            jobs = line.jobs(key)
            tried = tuple(self._tried(line, value, job) for value, job in sorted(line.tried.items()))
            inside = line.chosen is not None and search.is_inside(self._losses(line))
            outcomes = tuple(self._outcome(job) for job in jobs)
            arms.append((ArmResult(line.words, None, outcomes, tried), self._shown(line.base[0].choices), inside))
            planned |= {job.folder for job in (*jobs, *line.tried.values())}
            planned |= {job.folder / "to be found" for job in line.base if line.tuned and not jobs}
        before = [
            ArmResult(f"pretraining {' '.join(job.choices)}".strip(), None, (self._outcome(job),))
            for job in self.pretraining
        ]
        stands = Experiment(
            name=self.request.name,
            command=self.request.command,
            task=self.lines[0].base[0].loaded.recipe.task,
            folder=self.request.folder,
            arms=(),
            tuned=tune.field if tune else None,
            notes=tuple(self.notes),
            jobs=self.request.jobs,
            before=tuple(before),
            planned=len(planned) + len(before),
            finished=self._finished,
        )
        whole = gather(stands, arms)
        return replace(whole, seconds_left=None if self._finished else self._seconds_left(whole))

    def _tried(self, line: Line, value: float, job: Job) -> Tried:
        outcome = self._outcome(job)
        return Tried(value, self._loss(job), value == line.chosen, outcome)

    def _seconds_left(self, stands: Experiment) -> float | None:
        """By the mean of the runs that have ended, each as long as the others."""
        took = list(self.launcher.seconds.values())
        for outcome in stands.outcomes:
            status = read_status(outcome.folder)
            if outcome.state == "finished" and outcome.folder not in self.launcher.seconds and "started" in status:
                took.append(status["updated"] - status["started"])
        if not took:
            return None
        mean, now = sum(took) / len(took), time.monotonic()
        ended = sum(outcome.ended for outcome in stands.outcomes)
        spent = sum(min(mean, now - started) for started in list(self.launcher.at_work.values()))
        return max(0.0, (stands.planned - ended) * mean - spent) / self.request.jobs

    def _draw(self) -> Experiment:
        """Write the page, and show how far the comparison is."""
        started = time.monotonic()
        stands = self.experiment()
        self._over |= {outcome.folder for outcome in stands.outcomes if outcome.ended}
        ended, self._planned = len(self._over), stands.planned
        self._left = "" if stands.seconds_left is None else f", {stands.seconds_left / 60:.0f} min left"
        if not self._finished:
            self.console.work("comparing", ended, stands.planned, f"{ended} of {stands.planned} runs{self._left}")
        try:
            write_text(stands.page, page.render(stands))
        except Exception as fault:  # the runs go on: a picture must not fail them
            self.console.warn(f"the page was not drawn ({type(fault).__name__}: {fault})")
        self._drawn = time.monotonic()
        self._drawing = self._drawn - started
        return stands


def _size(job: Job) -> Amount:
    size = job.loaded.recipe.batch.size
    if not isinstance(size, Amount):
        raise UserError("equal=steps: give every arm a batch.size, in sequences or in tokens")
    return size
