"""The state of the training loop between two steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from hfbsz.records.record import Clock

_AXES = ("step", "clock", "tokens", "seconds", "device_seconds")  # names of a Clock's fields in a checkpoint
NOTHING = (0, 0, 0, 0, 0.0)  # targets, tokens, positions, steps, seconds


class Progress:
    """The state of the training loop: counters, sums since the last log and decisions. Values that are computed on the
    device stay there, to avoid a synchronization at every step. A checkpoint contains `to_dict()`."""

    def __init__(self, device: torch.device, saved: Mapping[str, Any] | None = None, rank: int = 0) -> None:
        """`saved`: the result of `to_dict`, from any number of ranks; None: the start of a run."""
        saved = saved or {}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        in_checkpoint = {"device_seconds": saved.get("seconds", 0) * ranks, **saved}  # absent in earlier versions
        self.at = Clock(*(in_checkpoint.get(name, 0) for name in _AXES))
        self.since_log = list(saved.get("since_log", NOTHING))[: len(NOTHING)]
        # (clock, batch) of an adaptive ramp; grows between two steps, on all ranks alike
        self.decisions = [(clock, batch) for clock, batch in saved.get("decisions", [])]
        # the most rows of a micro-batch, once larger ones have run out of memory
        self.micro_limit: int | None = saved.get("micro_limit")
        losses = saved.get("losses", [0.0])
        rank_loss = losses[rank] if len(losses) == ranks else sum(losses) * (rank == 0)

        def on_device(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        self.loss = on_device(rank_loss, torch.float64)  # this rank's loss sum since the last log, in nats
        self.skipped = on_device(saved.get("skipped", 0))
        self.streak = on_device(saved.get("streak", 0))  # non-finite steps in a row
        self.worst = on_device(saved.get("worst", 0))  # the longest streak, and the clock that ended it
        self.worst_clock = on_device(saved.get("worst_clock", 0), torch.int64)
        self.norm = on_device(0)

    def to_dict(self, losses: Sequence[float]) -> dict[str, Any]:
        """Plain data for JSON; `losses` holds the `loss` of every rank."""
        device = {name: float(getattr(self, name)) for name in ("skipped", "streak", "worst")}
        host = {name: getattr(self, name) for name in ("since_log", "decisions", "micro_limit")}
        return {
            **dict(zip(_AXES, self.at, strict=True)),
            **host,
            **device,
            "worst_clock": int(self.worst_clock),
            "losses": list(losses),
        }
