"""Metrics as `evaluate` modules that load from this folder, without a network; others by path or Hub name."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.errors import UserError, did_you_mean

_OF_LABELS = ("accuracy", "macro_f1", "matthews")  # from predicted and true labels


def load(name: str) -> Any:
    """A metric: this folder's of that name, else the script at that path, else Hugging Face's own of that name.

    A script is code that runs here, so one that somebody else keeps on the Hub is not taken by name. Raises UserError
    where there is no such metric, or it cannot be had. Imports `evaluate`, which takes seconds: call it where it is
    used.
    """
    import evaluate

    own, given = _own(), Path(name)
    if name in own:
        return evaluate.load(str(own[name]), keep_in_memory=True)
    for script in (given, given / f"{given.name}.py"):
        if script.suffix == ".py" and script.is_file():
            return _load(name, str(script), "its script does not load")
    if given.suffix == ".py" or name.count("/") > 1:
        raise UserError(f"metric {name!r}: no such file")
    if "/" in name:
        raise UserError(
            f"metric {name!r}: scripts that others keep on the Hub are not run unseen: save it, and give its path"
        )
    return _from_hub(name)


def _from_hub(name: str) -> Any:
    """Offline only what was fetched before is found, and at once: left to itself `evaluate` tries for seconds."""
    import evaluate
    import huggingface_hub

    before, offline = evaluate.config.HF_EVALUATE_OFFLINE, huggingface_hub.is_offline_mode()
    evaluate.config.HF_EVALUATE_OFFLINE = before or offline
    try:
        where = "in the cache, and HF_HUB_OFFLINE is set" if offline else "on the Hub, or the Hub cannot be reached"
        return _load(name, name, f"not {where}")
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before


def _load(name: str, path: str, otherwise: str) -> Any:
    import evaluate

    try:
        return evaluate.load(path, keep_in_memory=True)
    except ImportError as problem:  # names the packages that the metric needs
        raise UserError(f"metric {name!r}: {_line(problem)}") from None
    except FileNotFoundError:
        near = did_you_mean(name, _own())
        raise UserError(f"metric {name!r}: {otherwise}: give the path of its script{near}") from None
    except Exception as problem:  # a script may do anything
        raise UserError(f"metric {name!r}: {otherwise}: {type(problem).__name__}: {_line(problem)}") from None


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
