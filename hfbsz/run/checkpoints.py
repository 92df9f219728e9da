"""The checkpoints of one run: which one it resumes from, and which ones it retains."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hfbsz.errors import TrainingError, UserError
from hfbsz.plan.plan import Plan
from hfbsz.plan.resolve import from_dict
from hfbsz.recipe.fields import differences
from hfbsz.recipe.load import LoadedRecipe
from hfbsz.records.folder import RunFolder
from hfbsz.records.record import Reading, Step
from hfbsz.report.console import Console
from hfbsz.system.disk import FULL
from hfbsz.train.checkpoint import Checkpoint, collect, forget_after, newest, prune, read, restore, save
from hfbsz.train.checkpoint_state import check_complete
from hfbsz.train.distributed import gathered, on_main, shared
from hfbsz.train.optimizers import Optimizers
from hfbsz.train.progress import Progress


class Checkpoints:
    """Finds, restores and writes the checkpoints of a run. Rank 0 holds the folder and the checkpoint; the other ranks
    take part in collective calls.

    Created before the data and the model, so that an unusable checkpoint is reported at once: raises UserError.
    """

    def __init__(
        self, loaded: LoadedRecipe, accelerator: Accelerator, folder: RunFolder | None, console: Console | None
    ) -> None:
        self.loaded, self.recipe, self.accelerator = loaded, loaded.recipe, accelerator
        self.folder, self.console = folder, console
        self.is_branch = False  # whether the run starts from the checkpoint of `branch`
        self.checkpoint: Checkpoint | None = on_main(accelerator, self._find)  # to resume from
        self.state: Mapping[str, Any] | None = None  # the checkpoint's state.json, on every rank
        self.is_own = False  # whether the checkpoint is in this run's folder, not in another one
        self.pinned: dict[str, int] = {}  # reason: step of a checkpoint that is retained in addition to the newest ones
        self.count, self.seconds = 0, 0.0  # checkpoints written by this process, and the time that took
        self._last_seconds, self._last_bytes = 0.0, 0

    def _find(self) -> Checkpoint | None:
        """The checkpoint to resume from. None: the run starts over, and earlier files in its folder are moved aside."""
        if self.folder is None or self.console is None:
            return None
        resume, path = self.recipe.resume, self.folder.path
        checkpoint = None
        if resume == "auto":
            checkpoint = self._with_readable_best(newest(path, self.console.warn))
        elif resume != "never":
            checkpoint = read(Path(resume))
        if checkpoint is None and self.recipe.branch is not None:
            self.is_branch, checkpoint = True, read(Path(self.recipe.branch))
        if checkpoint is not None:
            check_complete(checkpoint.state, checkpoint.path)
        if checkpoint is not None and not self.is_branch and checkpoint.state["digest"] != self.recipe.digest():
            before = from_dict(checkpoint.state["plan"]).recipe
            changed = "; ".join(differences(before, self.recipe)[:4])
            raise UserError(
                f"resume: {checkpoint.path} is a checkpoint of another recipe ({changed}): resume=never starts over"
            )
        self.folder.begin(self.loaded, from_scratch=checkpoint is None or not self._in_folder(checkpoint))
        return checkpoint

    @property
    def micro_max(self) -> int | None:
        """On rank 0: where batch.micro_max is auto, that of an earlier start, so that a resumed run is the unbroken
        one; half of its micro-batch if it ran out of memory; None: to be probed."""
        if self.folder is not None and (exceeded := self.folder.exceeded) is not None:
            return max(1, exceeded // 2)
        if self.checkpoint is None or self.is_branch:
            return None
        facts = self.checkpoint.state["plan"]["facts"]
        return facts.get("micro_max")

    def _with_readable_best(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """With `checkpoint.save=best`, a checkpoint whose best checkpoint can be read: if it cannot, the newest earlier
        one, so that training reaches the best weights again."""
        if self.recipe.checkpoint.save != "best" or self.folder is None or self.console is None:
            return checkpoint
        while checkpoint is not None and (best := checkpoint.state["kept"].get("best")) is not None:
            try:
                read(self.folder.path / f"checkpoint-{best}")
                return checkpoint
            except UserError as problem:
                earlier = newest(self.folder.path, lambda message: None, below=best)
                if earlier is None:
                    self.console.warn(f"{problem.lines[0]}: it was the best one, and there is no earlier one")
                    return checkpoint
                self.console.warn(f"{problem.lines[0]}: it was the best one: skipped, and all later ones too")
                checkpoint = earlier
        return checkpoint

    def fit(self, plan: Plan, data_hash: str | None) -> None:
        """Select the newest checkpoint whose steps are those of the plan as well; all ranks call it.

        Raises UserError if there is none, and if the data have changed.
        """
        self.checkpoint = checkpoint = on_main(self.accelerator, lambda: self._compatible(plan, data_hash))
        self.is_branch = shared(self.accelerator, self.is_branch)
        if checkpoint is not None and self.console is not None:
            verb = "branches" if self.is_branch else "resumes"
            self.console.line(f"{verb} from {checkpoint.path}, step {checkpoint.state['progress']['step']:,}")
        self.state = shared(self.accelerator, checkpoint and dict(checkpoint.state))
        if self.state is not None and self.is_branch:
            self.state = branched(self.state)
        if self.state is not None and self.state["plan"]["micro_batch"] != plan.micro_batch:
            self.state = {**self.state, "progress": {**self.state["progress"], "micro_limit": None}}
        self.is_own = shared(self.accelerator, checkpoint is not None and self._in_folder(checkpoint))
        if self.state is not None and self.is_own:
            self.pinned = dict(self.state["kept"])

    def same_evaluation_rows(self) -> bool:
        """Whether the checkpoint is this run's own and was evaluated on the rows that are evaluated now. If not, the
        best evaluation so far cannot be compared with the next ones."""
        if self.state is None or not self.is_own:
            return False
        before = self.state["plan"]["recipe"]["eval"]
        if before.get("rows") == self.recipe.eval.rows:
            return True
        if self.console is not None:
            change = f"eval.rows: {before.get('rows')} before, {self.recipe.eval.rows} now"
            self.console.warn(f"{change}: losses are of other rows, and the best evaluation so far is discarded")
        return False

    def _compatible(self, plan: Plan, data_hash: str | None) -> Checkpoint | None:
        checkpoint = self.checkpoint
        if checkpoint is None or self.folder is None:
            return None
        if checkpoint.state["data_hash"] != data_hash and self.is_branch:
            raise UserError(f"branch: {checkpoint.path} was trained on other data: take the data section of its run")
        if checkpoint.state["data_hash"] != data_hash:
            raise UserError(
                "resume: the data have changed since the checkpoint: restore them, or start over with resume=never"
            )
        if self.is_branch:
            return self._branch(checkpoint, plan)
        before = from_dict(checkpoint.state["plan"])
        if before.recipe.duration == plan.recipe.duration:
            return checkpoint
        trained = checkpoint.state["progress"]["clock"]
        if trained > plan.total:
            raise UserError(
                f"duration: {plan.recipe.duration} is {plan.total:,} sequences, {checkpoint.path} has already "
                f"trained on {trained:,}: a longer duration resumes from it, resume=never starts over"
            )
        until = plan.same_until(before)
        if trained <= until:
            return checkpoint
        earlier = newest(self.folder.path, lambda message: None, until) if self.recipe.resume == "auto" else None
        if earlier is None:
            raise UserError(
                f"duration: {checkpoint.path} was trained for {before.recipe.duration}, whose steps equal those of "
                f"{plan.recipe.duration} only up to {until:,} sequences, and there is no checkpoint before that: "
                "resume=never starts over"
            )
        return earlier

    def _branch(self, checkpoint: Checkpoint, plan: Plan) -> Checkpoint:
        """The checkpoint to branch from, if the plan has steps after it and the same optimizer."""
        before, trained = from_dict(checkpoint.state["plan"]).recipe, checkpoint.state["progress"]["clock"]
        if trained >= plan.total:
            raise UserError(
                f"duration: {plan.recipe.duration} is {plan.total:,} sequences, {checkpoint.path} has already trained "
                f"on {trained:,}: a branch needs a longer duration"
            )
        if before.optim.name != plan.recipe.optim.name:
            raise UserError(f"branch: {checkpoint.path} is of optim.name={before.optim.name}: set the same optimizer")
        return checkpoint

    def _in_folder(self, checkpoint: Checkpoint) -> bool:
        return self.folder is not None and checkpoint.is_in(self.folder.path)

    def restore(self, model: Any, optimizer: Optimizers) -> None:
        """Load the checkpoint to resume from, if any, into the model and its optimizer; all ranks call it."""
        if self.state is not None:
            restore(self.checkpoint, model, optimizer)

    def forget_after(self, step: int) -> None:
        """Rank 0: delete the checkpoints after `step`, because those steps are trained again."""
        if self.folder is not None:
            forget_after(self.folder.path, step)

    def load_step(self, step: int, model: Any, optimizer: Optimizers) -> Reading | None:
        """Restore the weights and moments of an earlier step of this run; all ranks call it. Returns their evaluation
        on rank 0, None on the others. Raises UserError if the checkpoint cannot be read."""
        folder = self.folder
        checkpoint = on_main(self.accelerator, lambda: folder and read(folder.path / f"checkpoint-{step}"))
        restore(checkpoint, model, optimizer)
        return final_of(checkpoint.state) if checkpoint else None

    def save(self, model: Any, optimizer: Optimizers, progress: Progress, plan: Plan, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of the current step; all ranks call it. Raises TrainingError if it cannot be written; the
        previous one is then retained."""
        started = time.perf_counter()
        collected = collect(model, optimizer)  # not None on rank 0 only
        losses = gathered(self.accelerator, float(progress.loss))
        full_state = {
            "digest": self.recipe.digest(),
            "plan": plan.to_dict(),
            "progress": progress.to_dict(losses),
            "kept": self.pinned,
            **state,
        }

        def write() -> None:
            assert self.folder is not None and collected is not None
            folder = self.folder.path
            try:
                path = save(folder, progress.at.step, collected, full_state)
            except OSError as problem:
                room = ": make room" if problem.errno in FULL else ""
                raise UserError(
                    f"{folder}: the checkpoint of step {progress.at.step:,} cannot be written: {problem.strerror}"
                    f"{room}; the same command resumes from the previous one"
                ) from None
            self._last_bytes = sum(file.stat().st_size for file in path.iterdir())
            self.prune()

        try:
            on_main(self.accelerator, write)
        except UserError as problem:
            raise TrainingError(problem.lines) from None
        self._last_seconds = time.perf_counter() - started
        self.count, self.seconds = self.count + 1, self.seconds + self._last_seconds

    def prune(self) -> None:
        """Rank 0: delete the checkpoints that are neither among the newest nor pinned."""
        if self.folder is not None:
            prune(self.folder.path, self.recipe.checkpoint.keep, self.pinned.values())

    def reading(self, last: Step) -> Reading:
        """Seconds and bytes of the last checkpoint."""
        values = {"perf/checkpoint_seconds": round(self._last_seconds, 4), "perf/checkpoint_bytes": self._last_bytes}
        return Reading("measure", last.at, values)


def branched(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint to branch from, without what belongs to the other run: its evaluations, decisions and
    measurements."""
    return {
        **state,
        "progress": {**state["progress"], "decisions": [], "micro_limit": None},
        "final": None,
        "noise": None,
        "sharpness": None,
        "ramp": None,
    }


def final_of(state: Mapping[str, Any] | None) -> Reading | None:
    """The newest evaluation in the state of a checkpoint; None without a state."""
    return Reading.from_dict(state["final"]) if state is not None and state["final"] is not None else None


def state_of(data_hash: str | None, final: Reading, wandb_id: str | None) -> dict[str, Any]:
    """The session's part of a checkpoint's state, as plain data."""
    return {"data_hash": data_hash, "final": final.to_dict(), "wandb_id": wandb_id}
