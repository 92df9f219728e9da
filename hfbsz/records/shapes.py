"""The schemas of the JSON files in a run's folder, as far as they are read back. Invalid content counts as missing.

Fields may be missing or unknown: another version of hfbsz, or another program, may have written the folder.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hfbsz.records.jsonl import from_json
from hfbsz.system.files import json_object

_LARGEST = 2.0**63  # bound on the absolute value of a number
Number = Annotated[int | float, Field(gt=-_LARGEST, lt=_LARGEST)]
AXES = (
    "train/global_step",
    "train/sequences",
    "train/num_input_tokens_seen",
    "train/seconds",
    "train/device_seconds",
)
_TEXTS = ("event", "state")  # the fields of a record that are strings; others are numbers and flags


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
    first_batch: int | float = 0  # without a bound: a diverged run is shown too
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


def parse_plan(text: str) -> dict[str, Any] | None:
    """The plan in the text of a plan.json, as plain data; None if the text is not a valid plan."""
    data = json_object(text)
    try:
        _Plan.model_validate(data)
    except ValidationError:
        return None
    return data


def parse_record(line: str) -> dict[str, Any] | None:
    """The record in a line of records.jsonl, without fields of an unexpected type; None if the line is not a record, or
    its event is missing or an axis is invalid."""
    data = json_object(line) or {}
    values = {name: from_json(value) for name, value in data.items() if isinstance(name, str)}
    record = {name: value for name, value in values.items() if is_number(value) or _is_flag_or_text(name, value)}
    has_axes = all(_is_position(data.get(axis, 0)) for axis in AXES)
    return record if has_axes and record.get("event") else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number (not a bool): NaN, infinite, or below 2⁶³ in absolute value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST < value < _LARGEST or (isinstance(value, float) and not math.isfinite(value))


def _is_flag_or_text(name: str, value: object) -> bool:
    return isinstance(value, bool) or (name in _TEXTS and isinstance(value, str))


def _is_position(value: object) -> bool:
    """Whether a value is a valid position on an axis."""
    return is_number(value) and math.isfinite(value) and value >= 0


def parse_machine(text: str) -> Mapping[str, Any]:
    """The strings and numbers in the text of a machine.json; empty if it is not a JSON object."""
    plain = str | int | float | None
    return {name: value for name, value in (json_object(text) or {}).items() if isinstance(value, plain)}
