"""Probes beside an exhaustive search of the micro-batch, for `scripts/bench.py knee`."""

import time

import numpy as np

from hfbsz.data.order import Order
from hfbsz.recipe.load import load
from hfbsz.train.device import to_device
from hfbsz.train.distributed import set_threads
from hfbsz.train.micro_batch import Parts, probe
from hfbsz.train.setup import setup

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # rows
BLOCK_SECONDS = 0.1  # of passes of one size, at least


def knees_and_search(words: list[str], repeats: int, rounds: int) -> tuple[list[int], list[dict[int, float]]]:
    """The knees of `repeats` probes in rows, and all rounds of the search: seconds of a micro-batch by its rows.

    As many `rounds` follow each probe, so that a slow minute meets both. Memory is not limited: all sizes must fit.
    """
    recipe = load(words).recipe
    set_threads(recipe)
    parts = setup(recipe).parts()
    knees: list[int] = []
    times: list[dict[int, float]] = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = probe(parts, {}, largest=SIZES[-1], prices=False)
        knees.append(result.knee)
        speeds = ", ".join(f"{one.micro_batch}: {one.rows_per_second:.1f}" for one in result.trials)
        seconds = time.perf_counter() - started
        print(f"probe of {seconds:.0f} s: knee {result.knee}; rows/s at micro-batch {speeds}", flush=True)
        for number in range(rounds):
            order = SIZES if number % 2 else SIZES[::-1]
            measured = {size: _seconds(parts, size) for size in order}
            times.append({size: measured[size] for size in SIZES})
    return knees, times


def _seconds(parts: Parts, size: int) -> float:
    """The mean time of forward and backward passes over `size` rows, in a block of `BLOCK_SECONDS` or one pass."""
    rows, passes, device = parts.windows.rows, 0, parts.accelerator.device
    numbers = Order(len(rows), parts.plan.recipe.seed).take(0, min(256, len(rows)))
    batch = parts.task.collate([rows[int(number)] for number in np.resize(numbers, size)])
    started = time.perf_counter()
    while not passes or time.perf_counter() - started < BLOCK_SECONDS:
        loss = parts.task.loss_sum(parts.model, to_device(batch, device))
        (loss / batch.targets).backward()
        float(loss.detach())  # waits for the device
        passes += 1
    return (time.perf_counter() - started) / passes
