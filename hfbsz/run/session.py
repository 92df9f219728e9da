"""One run from start to end: recipe, plan, data, model, loop, evaluation, records, reports and the saved model."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from hfbsz.data.preview import preview
from hfbsz.errors import FAILED, INTERRUPTED, Diverged, RankError, TrainingError, UserError, complain
from hfbsz.measure.overfit import OverfittingMonitor
from hfbsz.measure.quality import Quality
from hfbsz.recipe.load import LoadedRecipe
from hfbsz.records.evaluations import LOSS
from hfbsz.records.folder import Cause, RunFolder, announce_interruption, path_of
from hfbsz.records.jsonl import trim
from hfbsz.records.record import Reading, Step
from hfbsz.report.console import Console
from hfbsz.report.sinks import Reports
from hfbsz.report.wandb.artifacts import LOADER_FOLDER
from hfbsz.run.checkpoints import Checkpoints, final_of, state_of
from hfbsz.run.evaluations import Evaluator
from hfbsz.run.failure import interruption_behind, outage_of, record_failure, record_interruption
from hfbsz.run.measurements import Measurements
from hfbsz.run.outcome import hints, label, reached, show_finished, why_stopped
from hfbsz.run.publication import open_pushes, write_card
from hfbsz.run.saved_model import save_loader, save_model
from hfbsz.run.scores import Scorer, check_packages
from hfbsz.system import launcher
from hfbsz.system.files import write_text
from hfbsz.system.signals import Interrupt, Interrupted
from hfbsz.train.checkpoint import newest
from hfbsz.train.distributed import (
    make_accelerator,
    on_all,
    on_main,
    precision_of,
    set_threads,
    shared,
)
from hfbsz.train.fsdp import Sharding, full_weights, weight_not_finite
from hfbsz.train.machine import machine_of
from hfbsz.train.pretrained import notes_of
from hfbsz.train.progress import Progress
from hfbsz.train.setup import assemble, plan_and_data, sharding_of, tokenizer_of


def run(loaded: LoadedRecipe, job: str, stop: Interrupt) -> int:
    """Run a recipe; returns the exit code. Raises UserError for an invalid recipe, plan, data set or folder."""
    check_packages(loaded.recipe)
    transformers.utils.logging.disable_progress_bar()
    set_threads(loaded.recipe)
    sharding = sharding_of(loaded.recipe)
    launcher.check_precision(precision_of(loaded.recipe))
    accelerator = make_accelerator(loaded.recipe)
    console = Console() if accelerator.is_main_process else None
    folder, session = None, None
    try:
        folder = on_main(accelerator, lambda: RunFolder(loaded))
        if shared(accelerator, folder is not None and folder.finished):
            if console is not None:
                show_finished(console, loaded)
            return 0
        if folder is not None and console is not None:
            stop.leaving = folder.interrupt
            for note in folder.notes:
                console.warn(note)
        else:
            stop.leaving = partial(announce_interruption, path_of(loaded))
        on_stop = partial(stop.request, "stopped in W&B")
        session = Session(loaded, job, accelerator, sharding, console, folder, on_stop)
        return session.train(stop)
    except TrainingError as problem:  # raised on all ranks: the others wait until rank 0 has reported and recorded it
        if console is not None:
            complain(problem.lines)
        record_failure(folder, _closing(session), problem)
        accelerator.wait_for_everyone()
        return FAILED
    except RankError as problem:
        record_failure(folder, _closing(session), problem)
        return complain(problem.lines, FAILED, everywhere=True)
    except (MemoryError, OSError, RuntimeError) as problem:
        outage = outage_of(problem, folder)
        if (why := interruption_behind(outage, folder)) is not None:
            record_interruption(folder, _closing(session), why)
            return complain([why], INTERRUPTED)
        record_failure(folder, _closing(session), problem, outage)
        if outage is None:
            raise
        return complain([outage.line], FAILED, everywhere=True)
    except Interrupted as problem:
        if folder is None:
            stop.leaving(str(problem))
        cause = Cause.STOPPED if stop.is_requested else Cause.SIGNAL
        record_interruption(folder, _closing(session), str(problem), cause)
        raise
    except BaseException as problem:
        record_failure(folder, _closing(session), problem)
        raise
    finally:
        if console is not None:
            console.end_work()
        if session is not None and session.pushes is not None:
            session.pushes.stop()
        if folder is not None:
            folder.release()
        accelerator.end_training()


def _closing(session: "Session | None") -> Callable[[str], None] | None:
    return None if session is None else session.close


class Session:
    """A run on one rank. Only rank 0 has a console and a folder. `on_stop` is called, in another thread, once someone
    stops the run in W&B."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        job: str,
        accelerator: Accelerator,
        sharding: Sharding | None,
        console: Console | None,
        folder: RunFolder | None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.loaded, self.recipe, self.job, self.on_stop = loaded, loaded.recipe, job, on_stop
        self.accelerator, self.console, self.folder = accelerator, console, folder
        self.checkpoints = Checkpoints(loaded, accelerator, folder, console)
        if folder is not None:
            folder.status("running")
        micro_max = shared(accelerator, self.checkpoints.micro_max)
        self.plan, self.data = plan_and_data(self.recipe, accelerator, self._show, sharding, micro_max)
        if console is not None:
            console.end_work()
        if folder is not None:
            folder.micro_batch = self.plan.micro_batch
        self.checkpoints.fit(self.plan, self.data.facts.data_hash)
        if console is not None:
            console.plan(loaded.name, self.plan, (*loaded.notes, *self.data.notes, *notes_of(self.recipe.model)))
        self.tokenizer = tokenizer_of(self.data)
        if console is not None and folder is not None:
            rows = preview(self.data, self.tokenizer)
            console.preview(rows.lines())
            write_text(folder.path / "rows.json", json.dumps(rows.to_dict(), indent=1))
        self.setup = assemble(self.plan, self.data, self.tokenizer, accelerator, sharding, self._show)
        if console is not None:
            console.end_work()
            console.notes(self.setup.notes)
        self.model, self.optimizer = self.setup.model, self.setup.optimizer
        self.checkpoints.restore(self.model, self.optimizer)
        state = self.checkpoints.state
        saved_progress = state["progress"] if state is not None else None
        self.progress = Progress(accelerator.device, saved_progress, accelerator.process_index)
        self._micro_limit = self.progress.micro_limit
        self.begun = self.progress.at.step if self.checkpoints.is_branch else 0  # the step from which this run trains
        self.final = final_of(state)  # the newest evaluation; finally, that of the saved weights
        self.final_measures: dict[str, float] = {}  # of the evaluation of complete sets at the end
        self.last = Step(self.progress.at, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0)
        self.skipped = int(self.progress.skipped)
        self.measurements = Measurements(self.setup, state, self._warn)
        watch_state = state["watch"] if state is not None and self.checkpoints.same_evaluation_rows() else None
        self.watch = OverfittingMonitor(self.recipe.eval.patience, watch_state)
        quality = on_all(accelerator, lambda: Quality(self.recipe.row_kind, self.recipe.eval.metrics))
        self.reports = self._open_reports(folder.path, console) if folder is not None and console is not None else None
        self.pushes = open_pushes(folder.path, loaded, console) if folder is not None and console is not None else None
        self.evaluator = Evaluator(self.setup, self.watch, quality, self._show, warn=self._warn)
        self.scorer = Scorer(self.setup, self.emit, self._warn, self._show)
        self.saved_step = self.last.at.step  # of the weights of the saved model
        if console is not None:
            console.notes(self.evaluator.notes())

    def _open_reports(self, path: Path, console: Console) -> Reports:
        """Open the reports. Records after the checkpoint are removed, because those steps are trained again."""
        records = path / "records.jsonl"
        sent = trim(records, self.last.at.step) if records.is_file() else frozenset()
        state = self.checkpoints.state if self.checkpoints.is_own else None
        if state is not None:
            self.checkpoints.forget_after(self.last.at.step)
        names = (label(self.loaded, "model"), label(self.loaded, "data"))
        name = f"{names[0]}-{names[1]}-b{self.plan.largest_batch}-lr{self.plan.rate:g}"
        reports = Reports(
            path,
            console,
            self.plan,
            machine_of(self.accelerator, self.model),
            job=self.job,
            name=f"{name}-s{self.recipe.seed}",
            step=self.last.at.step,
            wandb_id=state["wandb_id"] if state is not None else None,
            sent=sent,
            stop=self.on_stop,
        )
        if reports.identity.artifacts in ("best", "checkpoints"):
            save_loader(self.setup, path / LOADER_FOLDER)
        return reports

    def _show(self, label: str, done: float, total: float) -> None:
        """Show the progress of a long operation."""
        if self.console is not None:
            self.console.work(label, done, total)

    def _warn(self, text: str) -> None:
        if self.console is not None:
            self.console.end_work()
            self.console.warn(text)

    def train(self, stop: Interrupt) -> int:
        """Train, evaluate and report to the end of the plan or until `stop` is true; save; returns the exit code."""
        self.lifecycle("resumed" if self.last.at.step else "running")
        if self.final is None:
            self.final = self.evaluate(self.last)
        stop.train()
        for step in self.steps(stop):
            if self.console is not None:
                self.console.step(step, self.plan)
                self._tell_of_memory(step)
            if step.logged:
                self.skipped = step.skipped or 0
                self.emit(self.measurements.reading(step, len(self.data.train)))
            self.decide_batch(step)
            before, self.last = self.last, step
            is_due = self.evaluate_if_due(before, step)
            self.score_if_due(before, step)
            if is_due:
                self.save_checkpoint()
            self.push_if_due(before, step)
        if self.ended:
            self.select_weights()
        else:
            self.save_checkpoint()
        cause, why = self.why_ended(stop)
        self.save("finished" if self.ended else "preempted", cause, why, stop)
        return 0 if self.ended else INTERRUPTED

    def _tell_of_memory(self, step: Step) -> None:
        """Warn where a step ran out of memory and was repeated with smaller micro-batches."""
        limit = self.progress.micro_limit
        if limit is not None and limit != self._micro_limit and self.console is not None:
            self.console.warn(
                f"step {step.at.step:,} ran out of memory and was repeated with micro-batches of {step.micro_batch}; "
                "the batch stays the same"
            )
        self._micro_limit = limit

    def decide_batch(self, step: Step) -> None:
        """Let an adaptive ramp decide the batch of the next step, on all ranks alike."""
        batch = self.measurements.decide(step)
        if batch is not None:
            self.progress.decisions.append((step.at.sequences, batch))
            if self.console is not None:
                self.console.ramp(step, batch)

    def why_ended(self, stop: Interrupt) -> tuple[Cause, str | None]:
        """Why training ended: the cause for programs, and a text for people (None: the budget was reached)."""
        if self.at_target and self.last.at.sequences < self.plan.total and self.final is not None:
            loss, target = self.final.values[LOSS], self.recipe.eval.target
            return Cause.TARGET, f"the validation loss {loss:.4f} reached eval.target={target:g} nats/target"
        if self.watch.stopped:
            return Cause.PATIENCE, why_stopped(self.watch)
        if self.ended:
            return Cause.BUDGET, None
        return Cause.STOPPED if stop.is_requested else Cause.SIGNAL, stop.reason or "a signal to another rank"

    @property
    def ended(self) -> bool:
        """Whether the budget is reached, or an evaluation has stopped the run."""
        return self.last.at.sequences >= self.plan.total or self.stopped

    @property
    def at_target(self) -> bool:
        """Whether the newest evaluation reached the loss of `eval.target`."""
        target, newest = self.recipe.eval.target, self.final
        if target is None or newest is None or newest.at.step <= self.begun:  # a run has at least one step
            return False
        return float(newest.values[LOSS]) <= target

    @property
    def stopped(self) -> bool:
        """Whether patience has run out or the target is reached."""
        return self.watch.stopped or self.at_target

    def steps(self, stop: Interrupt) -> Iterator[Step]:
        """The remaining steps, up to the end of the budget or until an evaluation stops the run."""
        collectors = self.measurements.collectors
        steps = self.setup.steps(progress=self.progress, collectors=collectors, stop=stop)
        while not self.stopped and (step := next(steps, None)) is not None:
            yield step

    def evaluate_if_due(self, before: Step, step: Step) -> bool:
        """Evaluate if an evaluation is due; returns whether a checkpoint of this step is due."""
        checkpoint, pinned = self.recipe.checkpoint, self.checkpoints.pinned
        save = self.plan.due(checkpoint.every, step.at.step, before.at.sequences, step.at.sequences)
        if self.plan.due(self.recipe.eval.every, step.at.step, before.at.sequences, step.at.sequences):
            self.final = self.evaluate(step)
            if self.watch.best_step == step.at.step and (checkpoint.best or checkpoint.save == "best"):
                pinned["best"], save = step.at.step, True
        if self.plan.last_before_decay(before.at.sequences, self.progress.decisions):
            pinned["before the decay"], save = step.at.step, True
        return save or self.stopped

    def score_if_due(self, before: Step, step: Step) -> None:
        """Score the current weights on the tasks of `eval.harness` if that is due; the saved model is scored later."""
        every = self.recipe.eval.harness.every
        at = (before.at.sequences, step.at.sequences)
        if every is not None and not self.ended and self.plan.due(every, step.at.step, *at):
            self.scorer.score(step.at, step.at.step)

    def select_weights(self) -> None:
        """Load the weights to save as the model (the last or the best ones), and evaluate them on complete sets."""
        self.check_finite()
        evaluator, last, complete = self.evaluator, self.last, self.recipe.eval.full is not False
        best = self.watch.best_step if self.recipe.checkpoint.save == "best" else None
        step = last.at.step if best is None else best
        if step != last.at.step:
            if complete:
                self.final_measures |= evaluator.evaluate_complete("last", [None])
            step = self.load_step(step)
        self.saved_step = step
        if complete:
            self.final_measures |= evaluator.evaluate_complete("full", self.data.evaluation_sets())
        if self.console is not None:
            self.console.end_work()
        self.emit(Reading("final", last.at, {"model/step": step, **self.final_measures}))
        self.check_finite()

    def load_step(self, step: int) -> int:
        """Load the weights of an earlier step; returns the step of the loaded weights. If the checkpoint cannot be
        read, that is the last step, with a warning."""
        try:
            self.final = self.checkpoints.load_step(step, self.model, self.optimizer) or self.final
        except UserError as problem:
            if self.console is not None:
                self.console.warn(f"{problem.lines[0]}: the last weights are saved, not the best ones")
            return self.last.at.step
        self.evaluator.newest.clear()
        return step

    def check_finite(self) -> None:
        """Raise Diverged, on all ranks, if the weights or, once training has ended, the newest validation loss are not
        finite."""
        name = weight_not_finite(self.model)
        if name is None and not (self.ended and self.evaluator.not_finite):
            return
        what = f"weights are not finite ({name})" if name else "the validation loss is not finite"
        raise Diverged(f"step {self.last.at.step:,}: {what}: the run has diverged; {self._after_divergence()}")

    def _after_divergence(self) -> str:
        """The newest checkpoint of a diverged run, and what to change."""
        finite = on_main(self.accelerator, lambda: self.folder and newest(self.folder.path, lambda message: None))
        remaining = f"{finite.path} is its newest finite checkpoint" if finite else "it has no checkpoint"
        return f"{remaining}; lower optim.lr, or lengthen schedule.warmup"

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the last step, and record its time and size; all ranks call it."""
        assert self.final is not None
        self.check_finite()
        if self.reports is not None:
            self.reports.records.sync()  # first: a checkpoint without its records could not be resumed from
        wandb_id = self.reports.wandb_id if self.reports is not None else None
        state = state_of(self.data.facts.data_hash, self.final, wandb_id) | {"watch": self.watch.to_dict()}
        state |= self.measurements.to_dict()
        self.checkpoints.save(self.model, self.optimizer, self.progress, self.plan, state)
        self.emit(self.checkpoints.reading(self.last))
        if self.reports is not None:
            self.reports.checkpoint(self.last.at.step)

    def emit(self, reading: Reading) -> None:
        """Send a reading to all reports; no-op on ranks other than 0."""
        if self.reports is not None:
            self.reports.emit(reading)

    def lifecycle(self, state: str) -> None:
        """Record a change of the run's state."""
        self.emit(Reading("lifecycle", self.last.at, {"state": state}))

    def close(self, state: str, status: Mapping[str, Any] | None = None) -> None:
        """Write the last record, end the W&B run and render the page, for failed runs too. `status` is the body that
        status.json will have."""
        self.lifecycle(state)
        if self.reports is not None:
            self.reports.close(state, status)

    def evaluate(self, step: Step) -> Reading:
        """Evaluate the fixed part of every set and record it. Raises Diverged if the weights are not finite."""
        reading = self.evaluator.evaluate(step)
        self.emit(reading)
        if self.evaluator.not_finite:
            self.check_finite()
        return reading

    def push_if_due(self, before: Step, step: Step) -> None:
        """Start a push of the current weights to the Hub if one is due and none is in progress; all ranks call it."""
        every = self.recipe.hub.every
        if every is None or self.ended:
            return
        if not self.plan.due(every, step.at.step, before.at.sequences, step.at.sequences):
            return
        if not shared(self.accelerator, self.pushes is not None and self.pushes.is_ready()):
            return
        self.check_finite()
        with self.optimizer.averaged():
            weights = full_weights(self.model)  # a collective call: on every rank
        if self.pushes is not None:
            self.pushes.start(lambda into: self._write_unfinished(weights, into))

    def _write_unfinished(self, weights: dict[str, torch.Tensor] | None, into: Path) -> None:
        """Rank 0: save the current weights and a card of the run so far to a folder."""
        assert self.folder is not None and self.console is not None
        save_model(self.setup, weights, into)
        at, state = self.last.at, f"In training: these are the weights of step {self.last.at.step:,}."
        write_card(self.folder.path, into, self.loaded, self.plan, state, self._results(), at.step, self.console.warn)

    def _results(self) -> dict[str, str]:
        """What the run has reached, for people."""
        assert self.final is not None
        counts, noise = self.data.manifest.validation, self.measurements.noise
        return reached(self.plan, counts, self.watch, self.last, self.final, self.final_measures, self.skipped, noise)

    def save(self, state: str, cause: Cause, why: str | None, stop: Interrupt) -> None:
        """Save the model in Hugging Face format, its card and the page; the status last, so that it is always true. A
        finished run is then pushed to the Hub, if the recipe asks for it."""
        with self.optimizer.averaged():
            weights = full_weights(self.model)  # a collective call: on every rank
        if self.folder is not None and self.console is not None:
            folder, path, last = self.folder, self.folder.path, self.last
            files = save_model(self.setup, weights, path)
            results = self._results()
            if state == "finished":  # after the model is saved: this may take long
                results |= self.scorer.score_alone(last.at, self.saved_step)
            ended = f"Stopped before the end of its budget: {why}." if why else "Trained to the end of its budget."
            step = None if state == "finished" else last.at.step
            write_card(path, path, self.loaded, self.plan, ended, results, step, self.console.warn)
            self.checkpoints.prune()
            position = {"step": last.at.step, "clock": last.at.sequences, "of": self.plan.total}
            body = folder.body(state, cause, why, **position, reached=results, saved=folder.saved(files))
            self.close(state, body)
            folder.write(body)  # last: until then, the same command repeats what is missing
            pushed = None
            if self.pushes is not None and state == "finished":
                pushed = self.pushes.finish(self.console.work, stop)
            self.console.last_page(f"{self.loaded.name} {state}", results, path, hints(path, self.loaded, pushed))
        self.accelerator.wait_for_everyone()  # a launcher ends all ranks once one has exited
