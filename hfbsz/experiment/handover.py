"""Selects pretrained models of equal validation loss, one per pretraining run, for fine-tuning.

The effect of the pretraining batch can only be separated from the effect of more or less training if the models have
about the same loss: so each run hands over the checkpoint whose loss is nearest to the others'.
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

_MARKER = "handed_over.json"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint and its validation loss (on the fixed part, nats/target)."""

    step: int
    loss: float
    path: Path


def model_folder(folder: Path, job: Job, tolerance: float) -> Path:
    """The folder for the selected model of a pretraining run.

    Its name has a digest of the run's words and the tolerance, since fine-tuning runs identify the model by this path.
    """
    digest = hashlib.sha256("\n".join([*sorted(job.words), str(tolerance)]).encode()).hexdigest()[:8]
    name = "-".join(choice.replace("=", "-").replace(" ", "") for choice in job.choices) or "model"
    return folder / "models" / f"{file_name(name)}-{digest}"


def hand_over(folder: Path, jobs: Sequence[Job], tolerance: float) -> list[str]:
    """Save the matched checkpoints as models that transformers can load; returns notes for the reader.

    Raises UserError if a run has not finished or has no checkpoint at an evaluation.
    """
    matched = match([candidates(job) for job in jobs], tolerance)
    spread = _loss_range(matched)
    models = []
    for job, candidate in zip(jobs, matched, strict=True):
        _save(job, candidate, model_folder(folder, job, tolerance))
        models.append(f"{' '.join(job.choices)} at step {candidate.step:,} ({candidate.loss:.4f} nats/target)")
    within = "within" if spread <= tolerance else "NOT within"
    return [
        f"pretrained models are the checkpoints nearest in validation loss: {'; '.join(models)}; their losses differ "
        f"by {spread:.4f} nats/target, {within} the tolerance of {tolerance:g}",
        "one pretraining run per model: models differ by that run's randomness as well as by its batch; the seeds are "
        "those of fine-tuning",
    ]


def match(runs: Sequence[Sequence[Candidate]], tolerance: float) -> tuple[Candidate, ...]:
    """One candidate per run: those of the lowest losses that agree within the tolerance (nats/target), else those whose
    losses are nearest."""
    limits = sorted({candidate.loss for run in runs for candidate in run})
    below = ([[candidate for candidate in run if candidate.loss <= limit] for run in runs] for limit in limits)
    nearest = [tuple(max(run, key=_loss) for run in each) for each in below if all(each)]
    agreeing = [chosen for chosen in nearest if _loss_range(chosen) <= tolerance]
    return agreeing[0] if agreeing else min(nearest, key=_loss_range)


def _loss(candidate: Candidate) -> float:
    return candidate.loss


def _loss_range(chosen: Sequence[Candidate]) -> float:
    return max(map(_loss, chosen)) - min(map(_loss, chosen))


def candidates(job: Job) -> list[Candidate]:
    """The complete checkpoints of a finished run at which it was evaluated. Raises UserError if there are none, or if
    the run has not finished."""
    run = read_run(job.folder)
    if run.status.get("state") != "finished":
        raise UserError(f"{job.folder}: pretraining has not finished: see its log, {job.log}")
    losses = {
        int(record[STEPS]): float(record[LOSS])
        for record in run.records
        if is_evaluation(record) and math.isfinite(record[LOSS])
    }
    checkpoints = [
        Candidate(step, loss, path)
        for step, loss in losses.items()
        if ((path := job.folder / f"checkpoint-{step}") / "complete.json").is_file()
    ]
    if not checkpoints:
        raise UserError(
            f"{job.folder}: no checkpoint at an evaluation: in `pretrain`, set eval.every and checkpoint.every to the "
            "same interval, and checkpoint.keep"
        )
    return checkpoints


def _save(job: Job, chosen: Candidate, folder: Path) -> None:
    """Save the run's model with the checkpoint's weights, and its tokenizer."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    marker = {"from": str(chosen.path), "loss": chosen.loss}
    if read_object(folder / _MARKER) == marker:
        return
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(load_file(chosen.path / "model.safetensors"), strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    if unexpected or set(missing) - tied:
        raise UserError(
            f"{chosen.path}: the weights do not match the model of {job.folder}: {[*unexpected, *missing][:3]}"
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(job.folder).save_pretrained(folder)
    write_text(folder / _MARKER, json.dumps(marker))
