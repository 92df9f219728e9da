"""Models that were pretrained at different batches, taken where their validation losses agree, for fine-tuning.

What a batch did in pretraining is not told from what more or less training did, unless the models compared are as good:
so each run hands over the checkpoint whose loss is nearest to the others'.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfbsz.display import file_name
from hfbsz.errors import UserError
from hfbsz.experiment.jobs import Job
from hfbsz.records.evaluations import LOSS, is_evaluation
from hfbsz.records.run_data import STEPS, read_run
from hfbsz.system.files import read_object, write_text

_MARK = "handed_over.json"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint and the validation loss (fixed part, nats/target) at it."""

    step: int
    loss: float
    path: Path


def model_folder(folder: Path, job: Job, tolerance: float) -> Path:
    """Where the model of a pretraining run lies once it is handed over: another for other words, which fine-tuning runs
    know only by this path."""
    made_by = hashlib.sha256("\n".join([*sorted(job.words), str(tolerance)]).encode()).hexdigest()[:8]
    name = "-".join(choice.replace("=", "-").replace(" ", "") for choice in job.choices) or "model"
    return folder / "models" / f"{file_name(name)}-{made_by}"


def hand_over(folder: Path, jobs: Sequence[Job], tolerance: float) -> list[str]:
    """Save the matched checkpoints as models that transformers loads; returns what a reader must know of them.

    Raises UserError where a run has not finished or has no checkpoint at an evaluation.
    """
    found = [candidates(job) for job in jobs]
    chosen = match(found, tolerance)
    mismatch = _apart(chosen)
    told = []
    for job, one in zip(jobs, chosen, strict=True):
        _save(job, one, model_folder(folder, job, tolerance))
        told.append(f"{' '.join(job.choices)} at step {one.step:,} ({one.loss:.4f} nats/target)")
    apart = f"{mismatch:.4f} nats/target apart"
    within = (
        f", within {tolerance:g}" if mismatch <= tolerance else f", NOT within {tolerance:g}: models of another quality"
    )
    return [
        f"pretrained models taken from the checkpoints nearest in validation loss: {'; '.join(told)}: {apart}{within}",
        "one pretraining run a model: what sets the models apart may be that run's luck as well as its batch; seeds "
        "are those of the fine-tuning",
    ]


def match(found: Sequence[Sequence[Candidate]], tolerance: float) -> tuple[Candidate, ...]:
    """One candidate of each run: the lowest losses that agree within the tolerance, else the nearest ones."""
    tops = sorted({one.loss for several in found for one in several})
    below = ([[one for one in several if one.loss <= top] for several in found] for top in tops)
    nearest = [tuple(max(several, key=_loss) for several in each) for each in below if all(each)]
    agreeing = [chosen for chosen in nearest if _apart(chosen) <= tolerance]
    return agreeing[0] if agreeing else min(nearest, key=_apart)


def _loss(one: Candidate) -> float:
    return one.loss


def _apart(chosen: Sequence[Candidate]) -> float:
    return max(map(_loss, chosen)) - min(map(_loss, chosen))


def candidates(job: Job) -> list[Candidate]:
    """The checkpoints of a finished run at which it was evaluated."""
    run = read_run(job.folder)
    if run.status.get("state") != "finished":
        raise UserError(f"{job.folder}: the pretraining has not finished: its log, {job.log}, says why")
    losses = {
        int(record[STEPS]): float(record[LOSS])
        for record in run.records
        if is_evaluation(record) and math.isfinite(record[LOSS])
    }
    found = [
        Candidate(step, loss, path)
        for step, loss in losses.items()
        if (path := job.folder / f"checkpoint-{step}" / "complete.json").is_file()
    ]
    if not found:
        raise UserError(
            f"{job.folder}: no checkpoint at an evaluation: give `pretrain` eval.every, checkpoint.every, keep"
        )
    return [Candidate(one.step, one.loss, one.path.parent) for one in found]


def _save(job: Job, chosen: Candidate, folder: Path) -> None:
    """The run's model with the checkpoint's weights, its tokenizer beside it."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    mark = {"from": str(chosen.path), "loss": chosen.loss}
    if read_object(folder / _MARK) == mark:
        return
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(load_file(chosen.path / "model.safetensors"), strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    if unexpected or set(missing) - tied:
        raise UserError(
            f"{chosen.path}: its weights are not those of {job.folder}'s model: {[*unexpected, *missing][:3]}"
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(job.folder).save_pretrained(folder)
    write_text(folder / _MARK, json.dumps(mark))
