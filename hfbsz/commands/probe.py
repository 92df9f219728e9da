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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.display import one_line, visible
from hfbsz.errors import MISUSED, UserError, complain, did_you_mean, number_of, rank
from hfbsz.recipe.amounts import counted
from hfbsz.records.probe import Probe
from hfbsz.run.cli import asks_for_help, read_words
from hfbsz.system.command_name import command_name
from hfbsz.system.launcher import check_launch

if TYPE_CHECKING:
    from hfbsz.plan.plan import Plan
    from hfbsz.recipe.load import LoadedRecipe

_OPTIONS = ("limit", "share", "largest", "out", "format")


def main(words: list[str]) -> int:
    """Probe the hardware, print the result and save it with a page; returns the exit code."""
    if asks_for_help(words) or not words:
        print(__doc__.strip())
        return 0 if words else MISUSED
    options, others = {}, []
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if equals and name in _OPTIONS:
            options[name] = value
        else:
            others.append(word)
    try:
        check_launch(os.environ)
        if options.get("format", "text") not in ("text", "json"):
            near = did_you_mean(options["format"], ("text", "json"))
            raise UserError(f"format={options['format']}: neither text nor json{near}")
        loaded = read_words(command_name("probe"), others)
        return MISUSED if loaded is None else _probe(loaded, options)
    except UserError as problem:
        return complain(problem.lines)


def _probe(loaded: "LoadedRecipe", options: Mapping[str, str]) -> int:
    from hfbsz.train.micro_batch import (
        LARGEST,
        about,
        bytes_of,
        probe,
    )  # imports torch: only once the words are checked

    share = _number(options, "share", lambda value: 0 < value <= 1, "a share above 0, at most 1") or None
    largest = _number(options, "largest", lambda value: value >= 1 and value == int(value), "a whole number above 0")
    limit = None
    if "limit" in options:
        try:
            limit = bytes_of(options["limit"])
        except ValueError as problem:
            raise UserError(f"limit: {problem}") from None
    from hfbsz.report.console import Console
    from hfbsz.train.distributed import set_threads
    from hfbsz.train.setup import setup

    is_main = rank() == 0
    console = Console() if is_main and options.get("format") != "json" else None
    show = console.work if console is not None else lambda *_: None
    set_threads(loaded.recipe)
    prepared = setup(loaded.recipe, show=show)
    plan, parts, accelerator = prepared.plan, prepared.parts(), prepared.accelerator
    result = probe(
        parts, about(parts, loaded.name), limit=limit, share=share, largest=int(largest or LARGEST), show=show
    )
    accelerator.end_training()
    if not is_main:
        return 0
    folder = Path(options.get("out") or f"probes/{loaded.name}-{loaded.recipe.digest()}")
    if console is not None:
        console.end_work()
    from hfbsz.report.page.probe import save

    try:
        page = save(result, plan, folder)
    except OSError as problem:
        raise UserError(f"out={folder}: {problem.strerror}") from None
    if options.get("format") == "json":
        print(json.dumps(result.to_dict(), indent=1))
    else:
        print(visible("\n".join([*lines_of(result, plan), f"page      {one_line(str(page))}"])))
    return 0


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
    processes = number_of("WORLD_SIZE", 1)
    rows = plan.largest_batch // processes
    best = max(probe.tokens_per_second(trial) for trial in probe.trials)
    lines = [f"probe     {', '.join(one_line(text) for text in probe.about.values())}"]
    lines.append(f"{'micro-batch':>21} {'tokens/s':>10} {'of the best':>12} {'spread':>7} {'peak memory':>12}")
    for trial in probe.trials:
        speed = probe.tokens_per_second(trial)
        lines.append(
            f"{trial.micro_batch:>17,} seq {speed:>10,.0f} {speed / best:>12.0%} {trial.spread:>7.0%} "
            f"{shown_bytes(trial.peak_bytes):>12}"
        )
    wall, limit = probe.wall, f"{shown_bytes(probe.limit_bytes)}, {probe.limit_source}"
    measured = "measured" if probe.failed is not None else "predicted from a line through the peaks"
    lines += [
        f"knee      {counted(probe.knee, 'sequence')}: the smallest micro-batch within 5 % of the best throughput",
        f"wall      {counted(int(wall), 'sequence') if math.isfinite(wall) else 'not in reach'}: the largest that fits "
        f"into {limit} ({measured})",
        *_price_lines(probe, rows),
        f"optimizer {probe.step_seconds * 1e3:,.3g} ms a step",
    ]
    if probe.sync_seconds is not None:
        shares = {count: probe.sync_share(count) or 0.0 for count in (1, max(1, rows // probe.knee))}
        shown = ", ".join(f"{share:.0%} of a step at accumulation {count}" for count, share in shares.items())
        lines.append(
            f"averaging {probe.sync_seconds * 1e3:,.3g} ms a step for gradients over {processes} processes: {shown}"
        )
    lines.append(f"take      batch.micro_max={probe.knee}: the batch of a step stays the same")
    return lines


def _price_lines(probe: Probe, rows: int) -> Sequence[str]:
    price = probe.accumulation_price(rows)
    if price is None:
        return []
    largest = max(trial.micro_batch for trial in probe.trials if trial.micro_batch <= rows)
    return [
        f"price     a step of {counted(rows, 'sequence')} a process takes {price:.2f} times as long in micro-batches "
        f"of {probe.trials[0].micro_batch} as in micro-batches of {largest}"
    ]


def shown_bytes(count: float) -> str:
    """An amount of memory in the larger of MiB and GiB that fits: `612 MiB`, `12.3 GiB`."""
    return f"{count / 2**30:,.3g} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
