"""What the JSON of a run's folder looks like, as far as it is read back: what looks otherwise counts as missing.

Fields may be missing, and others may be there: a folder may be of another version of hfbsz, or of somebody else.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hfbsz.records.jsonl import from_json
from hfbsz.system.files import json_object

_LARGEST = 2.0**63  # of a number, in size
Number = Annotated[int | float, Field(gt=-_LARGEST, lt=_LARGEST)]
AXES = ("train/global_step", "train/sequences", "train/num_input_tokens_seen", "train/seconds")
_TEXTS = ("event", "state")  # of a record: all else in it is a number


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Phase(_Part):
    batch: Number
    clock: Number = 0
    steps: Number = 0


class _Facts(_Part):
    rows: Number | None = None
    data_hash: str | None = None


class _Model(_Part):
    path: str | None = None
    package: str | None = None
    shape: dict[str, Any] | None = None


class _Batch(_Part):
    micro_tokens: Number | None = None
    ramp: str | None = None


class _Named(_Part):
    name: str = ""


class _Schedule(_Part):
    shape: str = ""


class _Checkpoint(_Part):
    save: str = ""


class _Eval(_Part):
    patience: Number | None = None


class _Recipe(_Part):
    task: str = ""
    model: _Model = _Model()
    batch: _Batch = _Batch()
    optim: _Named = _Named()
    schedule: _Schedule = _Schedule()
    checkpoint: _Checkpoint = _Checkpoint()
    eval: _Eval = _Eval()


class _Rates(_Part):
    first_batch: int | float = 0  # of any size: a run at 1e30 has diverged, and is shown
    largest_batch: int | float = 0


class _Plan(_Part):
    world_size: Number = 1
    steps: Number = 0
    sequences: Number = 0
    micro_batch: Number | None = None
    accumulation: list[Number | None] = []
    phases: list[_Phase] = []
    facts: _Facts = _Facts()
    rule: _Named = _Named()
    learning_rate: _Rates = _Rates()
    recipe: _Recipe = _Recipe()


def plan_in(text: str) -> dict[str, Any] | None:
    """The plan that a plan.json holds; None where it holds none."""
    found = json_object(text)
    try:
        _Plan.model_validate(found)
    except ValidationError:
        return None
    return found


def record_in(line: str) -> dict[str, Any] | None:
    """The record that a line of records.jsonl holds, without what is neither a number nor one of its texts; None where
    it holds none, or one that stands nowhere."""
    found = json_object(line) or {}
    read = {name: from_json(value) for name, value in found.items() if isinstance(name, str)}
    kept = {name: value for name, value in read.items() if is_number(value) or _is_other(name, value)}
    placed = all(_is_place(found.get(axis, 0)) for axis in AXES)
    return kept if placed and kept.get("event") else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number, finite or not, that a 64-bit one can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST < value < _LARGEST or (isinstance(value, float) and not math.isfinite(value))


def _is_other(name: str, value: object) -> bool:
    return isinstance(value, bool) or (name in _TEXTS and isinstance(value, str))


def _is_place(value: object) -> bool:
    return is_number(value) and math.isfinite(value) and value >= 0


def machine_in(text: str) -> Mapping[str, Any]:
    """What a machine.json says in texts and numbers."""
    plain = str | int | float | None
    return {name: value for name, value in (json_object(text) or {}).items() if isinstance(value, plain)}
