"""Records a run that did not finish: its state, the cause for programs, and a line for people."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch.distributed as dist

from hfbsz.errors import Diverged, RankError, TrainingError, UserError, describe_error
from hfbsz.records.folder import Cause, RunFolder, read_status
from hfbsz.system.disk import FULL
from hfbsz.train.device import is_out_of_memory

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Outage(NamedTuple):
    """A fault of the machine: its cause for programs, and a line for people."""

    cause: Cause
    line: str


def outage_of(problem: BaseException, folder: RunFolder | None) -> Outage | None:
    """The fault of the machine that caused an exception; None for other exceptions."""
    resume = "the same command resumes from the newest checkpoint"
    if isinstance(problem, OSError) and problem.strerror and folder is not None:
        path = os.fsdecode(problem.filename) if problem.filename else str(folder.path)
        if problem.errno in FULL:
            return Outage(Cause.DISK_FULL, f"{path}: {problem.strerror}; make room; {resume}")
        remedy = "check its permissions; " if problem.errno in _DENIED else ""
        return Outage(Cause.SYSTEM, f"{path}: {problem.strerror}; {remedy}{resume}")
    if is_out_of_memory(problem):
        detail = str(problem).partition(" Including")[0].splitlines()[0][:200] if str(problem) else "of the host"
        return Outage(
            Cause.MEMORY,
            "out of memory: lower batch.micro_max, or eval.micro_batch if it was an evaluation (the batch, and what a "
            f"step does, stay the same); {resume} ({detail})",
        )
    if isinstance(problem, dist.DistError) or any(word in str(problem) for word in ("gloo", "NCCL", "Connection")):
        detail = str(problem).splitlines()[0][:120]
        return Outage(
            Cause.RANK,
            f"another rank has ended: see its output, or its launcher's, for the reason; {resume} ({detail})",
        )
    return None


def interruption_behind(outage: Outage | None, folder: RunFolder | None) -> str | None:
    """Why a signal ended the rank that is missing, if that is the outage."""
    if folder is None or outage is None or outage.cause is not Cause.RANK:
        return None
    return folder.interruption_elsewhere()


def cause_of(problem: BaseException) -> Cause:
    """The cause of a failed run, by the class of the exception."""
    causes: list[tuple[type[BaseException], Cause]] = [
        (Diverged, Cause.DIVERGED),
        (TrainingError, Cause.TRAINING),
        (RankError, Cause.RANK),
        (UserError, Cause.REFUSED),
        (KeyboardInterrupt, Cause.SIGNAL),
    ]
    return next((cause for kind, cause in causes if isinstance(problem, kind)), Cause.EXCEPTION)


def record_failure(
    folder: RunFolder | None,
    close: Callable[[str], None] | None,
    problem: BaseException,
    outage: Outage | None = None,
) -> None:
    """Mark a run as failed or diverged, unless it had ended before; on a full disk, as far as that is possible. `close`
    ends the records and reports; None: they had not been opened."""
    if folder is None or read_status(folder.path).get("state") in ("finished", "preempted"):
        return
    cause, why = outage or (cause_of(problem), describe_error(problem))
    state = "diverged" if cause is Cause.DIVERGED else "failed"
    with suppress(OSError):
        folder.fail(cause, why, close is not None, state)
    if close is not None:
        with suppress(OSError):
            close(state)


def record_interruption(
    folder: RunFolder | None, close: Callable[[str], None] | None, why: str, cause: Cause = Cause.SIGNAL
) -> None:
    """Mark a run that a signal, or a stop in W&B, ended before its first step."""
    if folder is None:
        return
    with suppress(OSError):
        folder.interrupt(why, cause)
    if close is not None:
        close("preempted")
