"""Measure throughput and memory over the micro-batch on this hardware: its knee, its wall, the price of accumulation.

    hfbsz probe recipe=NAME [limit=8GB] [share=0.5] [largest=4096] [out=FOLDER] [format=text|json] [key.path=value …]
    accelerate launch -m hfbsz probe recipe=NAME …

Forward and backward passes of the recipe's model are timed at micro-batches of 1, 2, 4, … rows, each only if the trials
before predict that it fits into memory, until two in a row are no faster. The knee is the smallest micro-batch within
5 % of the best throughput; the wall is the largest that fits. The batch of a step does not depend on either: take the
knee as batch.micro_max. Nothing is trained.

limit: peak memory of a process (default: share of the free memory, 0.5 on CPUs and 0.95 on GPUs). largest: the largest
micro-batch to try. out: the folder for report.html and probe.json (default: probes/NAME-…).
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.commands.options import wants_json
from hfbsz.display import one_line, visible
from hfbsz.errors import (
    MISUSED,
    LaunchError,
    RankError,
    UserError,
    complain,
    ignore_rank,
    rank,
)
from hfbsz.recipe.amounts import counted
from hfbsz.recipe.words import split_options
from hfbsz.records.probe import Probe, shown_bytes
from hfbsz.run.cli import asks_for_help, read_words
from hfbsz.system.command_name import command_name
from hfbsz.system.files import refuse_others
from hfbsz.system.launcher import check_launch
from hfbsz.system.streams import leave

if TYPE_CHECKING:
    from hfbsz.plan.plan import Plan
    from hfbsz.recipe.load import LoadedRecipe

_OPTIONS = ("limit", "share", "largest", "out", "format")


def main(words: list[str]) -> int:
    """Probe the hardware, print the result and save it with a page; returns the exit code."""
    if asks_for_help(words) or not words:
        print(__doc__.strip())
        return 0 if words else MISUSED
    options, others = split_options(words, _OPTIONS)
    try:
        check_launch(os.environ)
        wants_json(options)  # refused before anything is read
        loaded = read_words(command_name("probe"), others)
        if loaded is not None and loaded.recipe.batch.micro_max == "auto":  # which this command finds
            loaded = read_words(command_name("probe"), [*others, "batch.micro_max=1"])
        return MISUSED if loaded is None else _probe(loaded, options)
    except LaunchError as problem:
        ignore_rank()
        return complain(problem.lines)
    except RankError as problem:
        return complain(problem.lines, everywhere=True)
    except UserError as problem:
        return complain(problem.lines)


def _probe(loaded: "LoadedRecipe", options: Mapping[str, str]) -> int:
    share = _number(options, "share", lambda value: 0 < value <= 1, "a share above 0, at most 1") or None
    largest = _number(options, "largest", lambda value: value >= 1 and value == int(value), "a whole number above 0")
    is_text, is_main = not wants_json(options), rank() == 0
    folder = Path(options.get("out") or f"probes/{loaded.name}-{loaded.recipe.digest()}")
    from hfbsz.report.console import Console  # imports torch: only once the words are checked
    from hfbsz.report.page.probe import FILES, save
    from hfbsz.train.distributed import set_threads
    from hfbsz.train.memory_limit import bytes_of
    from hfbsz.train.micro_batch import LARGEST, about, probe
    from hfbsz.train.setup import setup

    limit = None
    if "limit" in options:
        try:
            limit = bytes_of(options["limit"])
        except ValueError as problem:
            raise UserError(f"limit: {problem}") from None
    console = Console() if is_main and is_text else None
    show = console.work if console is not None else lambda *_: None
    set_threads(loaded.recipe)
    with _claimed(folder, FILES) if is_main else nullcontext():
        prepared = setup(loaded.recipe, show=show)
        plan, parts = prepared.plan, prepared.parts()
        most = int(largest or LARGEST)
        result = probe(parts, about(parts, loaded.name), limit=limit, share=share, largest=most, show=show)
        if not is_main:
            leave(0, at_once=True)  # with the model in place: its destructor may wait for the other rank for ever
        if console is not None:
            console.end_work()
        page = save(result, plan, folder)
    if is_text:
        print(visible("\n".join([*lines_of(result, plan), f"page      {one_line(str(page))}"])))
    else:
        print(json.dumps(result.to_dict(), indent=1))
    if plan.world_size > 1:
        leave(0, at_once=True)
    return 0


@contextmanager
def _claimed(folder: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    """Create the folder for the result, and remove it again if there is none. Raises UserError if it cannot be written,
    or has other files of the same names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, mark in files.items():
            refuse_others("out", folder / name, mark)
        if not os.access(folder, os.W_OK):
            raise UserError(f"out={folder}: not writable: choose another folder")
        yield
    except OSError as problem:
        raise UserError(f"out={folder}: {problem.strerror}") from None
    finally:
        with suppress(OSError):
            folder.rmdir()  # if it is empty


def _number(options: Mapping[str, str], name: str, valid: Any, meaning: str) -> float:
    """An option as a number; 0 if it is not given. Raises UserError."""
    if name not in options:
        return 0
    try:
        value = float(options[name].replace(",", ""))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and valid(value)):
        raise UserError(f"{name}={options[name]}: not {meaning}")
    return value


def lines_of(probe: Probe, plan: "Plan") -> list[str]:
    """A probe as lines of text: its trials, and what they say for the batches of a plan."""
    processes = plan.world_size
    rows = plan.largest_batch // processes
    best = max(probe.tokens_per_second(trial) for trial in probe.trials)
    lines = [f"probe     {', '.join(one_line(text) for text in probe.about.values())}"]
    lines.append(f"{'micro-batch':>21} {'tokens/s':>10} {'of the best':>12} {'error':>7} {'peak memory':>12}")
    for trial in probe.trials:
        speed = probe.tokens_per_second(trial)
        lines.append(
            f"{trial.micro_batch:>17,} seq {speed:>10,.0f} {speed / best:>12.0%} {trial.error:>7.1%} "
            f"{shown_bytes(trial.peak_bytes):>12}"
        )
    wall, limit = probe.wall, f"{shown_bytes(probe.limit_bytes)}, {probe.limit_source}"
    measured = "measured" if probe.failed is not None else "predicted from a line through the peaks"
    lines += [
        f"knee      {counted(probe.knee, 'sequence')}: the smallest micro-batch within 5 % of the best throughput",
        f"wall      {counted(int(wall), 'sequence') if math.isfinite(wall) else 'not known'}: the largest that fits "
        f"into {limit} ({measured})",
        *_price_lines(probe, rows),
        f"optimizer {probe.step_seconds * 1e3:,.3g} ms a step",
        *checkpointing_lines(probe),
    ]
    if probe.sync_seconds is not None:
        shares = {count: probe.sync_share(count) or 0.0 for count in (1, max(1, rows // probe.knee))}
        shown = ", ".join(f"{share:.0%} of a step at accumulation {count}" for count, share in shares.items())
        lines.append(
            f"averaging {probe.sync_seconds * 1e3:,.3g} ms a step for gradients over {processes} processes: {shown}"
        )
    field = "micro_max" if plan.recipe.batch.micro_tokens is None else "micro_tokens"
    value = probe.knee if field == "micro_max" else round(probe.knee * probe.tokens_per_row)
    lines.append(f"take      batch.{field}={value}: the batch of a step stays the same")
    return lines


def checkpointing_lines(probe: Probe) -> Sequence[str]:
    """What activation checkpointing costs and gains, as at most one line."""
    price, wall = probe.checkpointing, probe.checkpointed_wall
    if price is None:
        return []
    gain = "" if wall is None else f", and moves the wall to {counted(wall, 'sequence')}"
    return [
        f"recompute model.activation_checkpointing=true takes {price.time_ratio:.2f} times as long at the knee{gain}"
    ]


def _price_lines(probe: Probe, rows: int) -> Sequence[str]:
    price = probe.accumulation_price(rows)
    if price is None:
        return []
    largest = max(trial.micro_batch for trial in probe.trials if trial.micro_batch <= rows)
    return [
        f"price     a step of {counted(rows, 'sequence')} a process takes {price:.2f} times as long in micro-batches "
        f"of {probe.trials[0].micro_batch} as in micro-batches of {largest}"
    ]
