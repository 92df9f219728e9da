"""Metrics as `evaluate` modules that load from this folder, without a network; others by path or Hub name."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import is_script

_KINDS = ("metric", "comparison", "measurement")  # of Hugging Face's own
_OF_LABELS = ("accuracy", "macro_f1", "matthews")  # from predicted and true labels


def load(name: str) -> Any:
    """A metric: this folder's of that name, the script of a name that is written as a path, else Hugging Face's own.

    A script is code that runs here: one of the working folder is not taken by a bare name, nor one that somebody else
    keeps on the Hub by any. Raises UserError where there is no such metric, or it cannot be had. Imports `evaluate`,
    which takes seconds: call it where it is used.
    """
    import evaluate

    own, given = _own(), Path(name)
    if name in own:
        return evaluate.load(str(own[name]), keep_in_memory=True)
    if not is_script(name):
        return _from_hub(name)
    for script in (given, given / f"{given.name}.py"):
        if script.suffix == ".py" and script.is_file():
            with _in_a_line(name):
                return evaluate.load(str(script), keep_in_memory=True)
    if given.suffix == ".py" or name.count("/") > 1:
        raise UserError(f"metric {name!r}: no such file")
    raise UserError(
        f"metric {name!r}: scripts that others keep on the Hub are not run unseen: save it, and give its path"
    )


def _from_hub(name: str) -> Any:
    """A metric of Hugging Face's own, of whichever kind; by its full name, for `evaluate` looks in the working folder
    first. Offline only what was fetched before is found, and at once: left to itself it tries for seconds."""
    import evaluate
    import huggingface_hub

    before, offline = evaluate.config.HF_EVALUATE_OFFLINE, huggingface_hub.is_offline_mode()
    evaluate.config.HF_EVALUATE_OFFLINE = before or offline
    try:
        for path in (f"evaluate-{kind}/{name}" for kind in _KINDS):
            if Path(path).exists():
                raise UserError(f"metric {name!r}: the folder {path} would be run in place of the Hub's: rename it")
            with _in_a_line(name), suppress(FileNotFoundError):
                return evaluate.load(path, keep_in_memory=True)
        where = "in the cache, and HF_HUB_OFFLINE is set" if offline else "on the Hub, or the Hub cannot be reached"
        near = did_you_mean(name, _own())
        raise UserError(f"metric {name!r}: not {where}: give the path of its script{near}")
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before


@contextmanager
def _in_a_line(name: str) -> Iterator[None]:
    """Raises UserError for whatever a metric's script raises."""
    try:
        yield
    except ImportError as problem:  # names the packages that the metric needs
        raise UserError(f"metric {name!r}: {_line(problem)}") from None
    except Exception as problem:  # a script may do anything
        why = f"{type(problem).__name__}: {_line(problem)}"
        raise UserError(f"metric {name!r}: its script does not load: {why}") from None


def _own() -> dict[str, Path]:
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))}


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy`, `macro_f1`, `matthews` and `calibration_error` of logits [rows, classes] against true labels [rows].

    The likeliest class is what is predicted, the first of equals; a row with a NaN predicts none. Without rows all are
    NaN.
    """
    found: dict[str, float] = {}
    logits = np.asarray(logits, dtype=np.float64)
    predicted = np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))
    for name in _OF_LABELS:
        found |= _kept(name).compute(predictions=predicted, references=labels)
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    return found | _kept("calibration_error").compute(predictions=probabilities, references=labels)


@cache
def _kept(name: str) -> Any:
    return load(name)
