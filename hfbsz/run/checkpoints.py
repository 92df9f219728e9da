"""The checkpoints of one run: which one it goes on from, and which it keeps."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hfbsz.errors import TrainingError, UserError
from hfbsz.plan.plan import Plan
from hfbsz.plan.resolve import from_dict
from hfbsz.recipe.fields import differences
from hfbsz.recipe.load import Loaded
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
    """Rank 0 holds the folder and the checkpoint that was found; the others take part where tensors are gathered.

    Made before data and model, so that a checkpoint that cannot be used is told of at once; raises UserError then.
    """

    def __init__(
        self, loaded: Loaded, accelerator: Accelerator, folder: RunFolder | None, console: Console | None
    ) -> None:
        self.loaded, self.recipe, self.accelerator = loaded, loaded.recipe, accelerator
        self.folder, self.console = folder, console
        self.found: Checkpoint | None = on_main(accelerator, self._find)
        self.saved: Mapping[str, Any] | None = None  # what its state.json says, on every rank
        self.own = False  # whether the run goes on where it was, rather than from a checkpoint of elsewhere
        self.kept: dict[str, int] = {}  # what for: the step of a checkpoint that is kept beside the newest ones
        self.count, self.seconds = 0, 0.0  # of the checkpoints that this start has written
        self._last_seconds, self._last_bytes = 0.0, 0

    def _find(self) -> Checkpoint | None:
        """The checkpoint to go on from; None where the run begins: what its folder held before is moved aside."""
        if self.folder is None or self.console is None:
            return None
        wish, path = self.recipe.resume, self.folder.path
        found = None
        if wish == "auto":
            found = self._with_its_best(newest(path, self.console.warn))
        elif wish != "never":
            found = read(Path(wish))
        if found is not None:
            check_complete(found.state, found.path)
        if found is not None and found.state["digest"] != self.recipe.digest():
            before = from_dict(found.state["plan"]).recipe
            changed = "; ".join(differences(before, self.recipe)[:4])
            raise UserError(
                f"resume: {found.path} is a checkpoint of another recipe ({changed}): resume=never starts over"
            )
        self.folder.begin(self.loaded, anew=found is None or not self._is_own(found))
        return found

    def _with_its_best(self, found: Checkpoint | None) -> Checkpoint | None:
        """A checkpoint whose best one is whole too, where the best weights are to be saved: else one from before that,
        from which training comes to the best again."""
        if self.recipe.checkpoint.save != "best" or self.folder is None or self.console is None:
            return found
        while found is not None and (best := found.state["kept"].get("best")) is not None:
            try:
                read(self.folder.path / f"checkpoint-{best}")
                return found
            except UserError as problem:
                earlier = newest(self.folder.path, lambda told: None, below=best)
                if earlier is None:
                    self.console.warn(f"{problem.lines[0]}: it was the best, and none is left from before it")
                    return found
                self.console.warn(f"{problem.lines[0]}: it was the best: skipped, with those after it")
                found = earlier
        return found

    def fit(self, plan: Plan, data_hash: str | None) -> None:
        """Settle on the newest checkpoint that the plan would have come to as well; all ranks call it.

        Raises UserError where there is none, and where the data have changed.
        """
        self.found = on_main(self.accelerator, lambda: self._fitting(plan, data_hash))
        if self.found is not None and self.console is not None:
            self.console.line(f"going on from {self.found.path}, step {self.found.state['progress']['step']:,}")
        self.saved = shared(self.accelerator, self.found and dict(self.found.state))
        self.own = shared(self.accelerator, self.found is not None and self._is_own(self.found))
        if self.saved is not None and self.own:
            self.kept = dict(self.saved["kept"])

    def evaluates_alike(self) -> bool:
        """Whether the run goes on where it was, and evaluates the rows that it evaluated before: else no evaluation is
        the best so far."""
        if self.saved is None or not self.own:
            return False
        before = self.saved["plan"]["recipe"]["eval"]
        if before.get("rows") == self.recipe.eval.rows:
            return True
        if self.console is not None:
            told = f"eval.rows: {before.get('rows')} before, {self.recipe.eval.rows} now"
            self.console.warn(f"{told}: losses are of other rows, and the best so far is forgotten")
        return False

    def _fitting(self, plan: Plan, data_hash: str | None) -> Checkpoint | None:
        found = self.found
        if found is None or self.folder is None:
            return None
        if found.state["data_hash"] != data_hash:
            raise UserError(
                "resume: the data have changed since the checkpoint: bring them back, or start over with resume=never"
            )
        before = from_dict(found.state["plan"])
        if before.recipe.duration == plan.recipe.duration:
            return found
        trained = found.state["progress"]["clock"]
        if trained > plan.total:
            raise UserError(
                f"duration: {plan.recipe.duration} is {plan.total:,} sequences, {found.path} has trained on "
                f"{trained:,} already: a longer duration goes on from there, resume=never starts over"
            )
        until = plan.same_until(before)
        if trained <= until:
            return found
        earlier = newest(self.folder.path, lambda told: None, until) if self.recipe.resume == "auto" else None
        if earlier is None:
            raise UserError(
                f"duration: {found.path} was trained on for {before.recipe.duration}, whose steps are those of "
                f"{plan.recipe.duration} only up to {until:,} sequences, and no checkpoint lies before that: "
                "resume=never starts over"
            )
        return earlier

    def _is_own(self, checkpoint: Checkpoint) -> bool:
        return self.folder is not None and checkpoint.is_in(self.folder.path)

    def restore(self, model: Any, optimizer: Optimizers) -> None:
        if self.saved is not None:
            restore(self.found, model, optimizer)

    def forget_after(self, step: int) -> None:
        """Rank 0: delete the checkpoints of steps that are trained again."""
        if self.folder is not None:
            forget_after(self.folder.path, step)

    def load_step(self, step: int, model: Any, optimizer: Optimizers) -> Reading | None:
        """Put the weights and moments of an earlier step of this run back; all ranks call it. Rank 0 gets their
        evaluation. Raises UserError where the checkpoint is gone."""
        folder = self.folder
        found = on_main(self.accelerator, lambda: folder and read(folder.path / f"checkpoint-{step}"))
        restore(found, model, optimizer)
        return final_of(found.state) if found else None

    def save(self, model: Any, optimizer: Optimizers, progress: Progress, plan: Plan, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of this moment; all ranks call it. Raises TrainingError where the disk does not take it;
        the one before then stays."""
        started = time.perf_counter()
        collected = collect(model, optimizer)  # rank 0 alone has something in the end
        losses = gathered(self.accelerator, float(progress.loss))
        whole = {
            "digest": self.recipe.digest(),
            "plan": plan.to_dict(),
            "progress": progress.to_dict(losses),
            "kept": self.kept,
            **state,
        }

        def write() -> None:
            assert self.folder is not None and collected is not None
            folder = self.folder.path
            try:
                path = save(folder, progress.at.step, collected, whole)
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
        """Rank 0: delete the checkpoints that are not to be kept."""
        if self.folder is not None:
            prune(self.folder.path, self.recipe.checkpoint.keep, self.kept.values())

    def reading(self, last: Step) -> Reading:
        """What the last checkpoint cost."""
        values = {"perf/checkpoint_seconds": round(self._last_seconds, 4), "perf/checkpoint_bytes": self._last_bytes}
        return Reading("measure", last.at, values)


def final_of(saved: Mapping[str, Any] | None) -> Reading | None:
    """The newest evaluation that a checkpoint tells of."""
    return Reading.from_dict(saved["final"]) if saved is not None else None


def state_of(data_hash: str | None, final: Reading, wandb_id: str | None) -> dict[str, Any]:
    return {"data_hash": data_hash, "final": final.to_dict(), "wandb_id": wandb_id}
