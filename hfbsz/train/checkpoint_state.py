"""The schema of a checkpoint's state.json. It may have been written by anyone, so its types are checked on reading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hfbsz.errors import UserError
from hfbsz.plan.resolve import from_dict

_LARGEST = 2**63
Number = Annotated[int, Field(gt=-_LARGEST, lt=_LARGEST)] | float
Count = Annotated[int, Field(ge=0, lt=_LARGEST)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Progress(_Part):
    step: Count = 0
    clock: Count = 0
    tokens: Count = 0
    seconds: Number = 0
    device_seconds: Number = 0
    since_log: list[Number] = []
    decisions: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] = []
    skipped: Number = 0
    streak: Number = 0
    worst: Number = 0
    worst_clock: Count = 0
    losses: list[Number] = []


class _Overfitting(_Part):
    best_step: Count | None = None
    train_loss: Number | None = None
    onset: Number | None = None
    worse: Count = 0
    moved: bool = False
    best_nll: list[Number] = []
    targets: list[Number] = []
    start_nll: list[Number] = []


class _Noise(_Part):
    last: list[Number] = Field(default=[0, 0, 0, 0.0], min_length=4, max_length=5)
    two_batch: dict[str, Number] = {}
    per_sequence: dict[str, Number] = {}
    dual: dict[str, Number] = {}
    layers: dict[str, dict[str, Number]] = {}


class _Ramp(_Part):
    confirmed: Count = 0


class _Final(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    event: str
    step: Count
    clock: Count
    tokens: Number
    seconds: Number
    device_seconds: Number = 0.0
    values: dict[str, Number]


class _State(_Part):
    digest: str = ""
    plan: dict[str, Any] = {}
    progress: _Progress = _Progress()
    kept: dict[str, Count] = {}
    data_hash: str | None = None
    optimizer: list[dict[str, bool | Number]] = []
    frozen: str | None = None
    final: _Final | None = None
    wandb_id: str | None = None
    watch: _Overfitting | None = None
    noise: _Noise | None = None
    ramp: _Ramp | None = None


def check_complete(state: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for a state that lacks keys that a run needs to resume."""
    required = {"digest", "plan", "progress", "kept", "data_hash", "final", "watch", "wandb_id"}
    missing = required - state.keys() or {"step", "clock", "tokens"} - state["progress"].keys()
    if missing:
        raise UserError(f"{path}: not the checkpoint of a run: its state.json lacks {', '.join(sorted(missing))}")


def check_state(state: Mapping[str, Any]) -> None:
    """Raise ValueError with a one-line message for a state with values of wrong types."""
    try:
        _State.model_validate(state)
    except ValidationError as problem:
        error = problem.errors()[0]
        raise ValueError(f"state.json: {'.'.join(map(str, error['loc']))}: {error['msg']}") from None
    try:
        if "plan" in state:
            from_dict(state["plan"])
    except UserError:
        return  # a plan that no longer fits is reported where it is used
    except Exception as problem:  # values that are no plan's can raise anything
        raise ValueError(f"state.json: plan: {type(problem).__name__}: {problem}") from None
