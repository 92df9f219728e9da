"""Metrics as `evaluate` modules that load from this folder, without a network."""

from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """The metric `name` of this folder. Imports `evaluate`, which takes seconds: call it where it is used."""
    import evaluate

    return evaluate.load(str(Path(__file__).with_name(f"{name}.py")))
