"""The time of each part of a step, without waiting for the device."""

import time
from collections import defaultdict

import torch


class StepTimer:
    """Time per part of a step: on a GPU between events that the device records as it reaches them, on a CPU between
    readings of the clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []
        self._totals: dict[str, float] = defaultdict(float)
        self._part: str | None = None
        self._since, self._steps = 0.0, 0

    def start_step(self) -> None:
        """Called at the start of every step, whose first part is `data`."""
        self._steps += 1
        self.start("data")

    def start(self, part: str | None) -> None:
        """End the current part and start another (None: none)."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
            return
        now = time.perf_counter()
        if self._part is not None:
            self._totals[self._part] += now - self._since
        self._part, self._since = part, now

    def take(self) -> dict[str, float]:
        """Mean seconds of a step by part, since the last call. The device has finished these steps."""
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                self._totals[part] += begin.elapsed_time(end) / 1000
        means = {part: seconds / max(1, self._steps) for part, seconds in self._totals.items()}
        self._marks, self._steps = self._marks[-1:], 0
        self._totals.clear()
        return means
