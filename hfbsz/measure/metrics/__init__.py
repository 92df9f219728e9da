"""Metrics as `evaluate` modules, loaded from this folder without network access; others by path or Hub name."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import is_script

_KINDS = ("metric", "comparison", "measurement")  # of the metrics that Hugging Face publishes
_LABEL_METRICS = ("accuracy", "macro_f1", "matthews")  # from predicted and true labels


def load(name: str) -> Any:
    """Load a metric: one of this folder by name, a script by its path, else one that Hugging Face publishes.

    A script runs code, so a bare name never loads one from the working directory, and scripts of other Hub users are
    never loaded. Raises UserError for a metric that does not exist or cannot be loaded. Importing `evaluate` takes
    seconds, so call this only when the metric is used.
    """
    import evaluate

    built_in, path = _built_in(), Path(name)
    if name in built_in:
        return evaluate.load(str(built_in[name]), keep_in_memory=True)
    if not is_script(name):
        return _from_hub(name)
    for script in (path, path / f"{path.name}.py"):
        if script.suffix == ".py" and script.is_file():
            with _user_errors(name):
                return evaluate.load(str(script), keep_in_memory=True)
    if path.suffix == ".py" or name.count("/") > 1:
        raise UserError(f"metric {name!r}: no such file")
    raise UserError(
        f"metric {name!r}: scripts of other users on the Hub are not run: download it, review it and give its path"
    )


def _from_hub(name: str) -> Any:
    """A metric that Hugging Face publishes, of any kind.

    It is loaded by its full name, because `evaluate` looks in the working directory first. Offline, only cached metrics
    are found; `evaluate` is told so, because it would otherwise retry for seconds.
    """
    import evaluate
    import huggingface_hub

    before, offline = evaluate.config.HF_EVALUATE_OFFLINE, huggingface_hub.is_offline_mode()
    evaluate.config.HF_EVALUATE_OFFLINE = before or offline
    try:
        for path in (f"evaluate-{kind}/{name}" for kind in _KINDS):
            if Path(path).exists():
                raise UserError(
                    f"metric {name!r}: the folder {path} would be loaded instead of the Hub's metric: rename it"
                )
            with _user_errors(name), suppress(FileNotFoundError):
                return evaluate.load(path, keep_in_memory=True)
        reason = "in the cache, and HF_HUB_OFFLINE is set" if offline else "on the Hub, or the Hub cannot be reached"
        raise UserError(f"metric {name!r}: not {reason}: give the path of its script{did_you_mean(name, _built_in())}")
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before


@contextmanager
def _user_errors(name: str) -> Iterator[None]:
    """Raise UserError with one line for any exception of a metric's script."""
    try:
        yield
    except ImportError as problem:  # its message names the packages that the metric needs
        raise UserError(f"metric {name!r}: {_line(problem)}") from None
    except Exception as problem:  # a script may do anything
        raise UserError(
            f"metric {name!r}: its script does not load: {type(problem).__name__}: {_line(problem)}"
        ) from None


def _built_in() -> dict[str, Path]:
    """The scripts of this folder by metric name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))}


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy`, `macro_f1`, `matthews` and `calibration_error` of logits [rows, classes] against true labels [rows].

    The predicted class is the one with the largest logit, the first of equal ones; a row with a NaN predicts none.
    Without rows all metrics are NaN.
    """
    values: dict[str, float] = {}
    logits = np.asarray(logits, dtype=np.float64)
    predicted = np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))
    for name in _LABEL_METRICS:
        values |= _loaded(name).compute(predictions=predicted, references=labels)
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    return values | _loaded("calibration_error").compute(predictions=probabilities, references=labels)


@cache
def _loaded(name: str) -> Any:
    return load(name)
