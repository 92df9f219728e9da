"""Advise on batch, ramp, rate, split and devices for a recipe, from what was measured and from laws.

    hfbsz advise recipe=NAME [devices=1..1024] [deadline=2h | budget=100] [target_loss=3.2] [evidence=FOLDER]
                 [out=FOLDER] [check=true] [format=text|json] [parameters=N] [train_rows=N] [frontier.*=…]
                 [key.path=value …]

Reads the finished runs, sweeps and probes of the recipe's model and data in runs/, comparisons/ and probes/, and
answers what to take, how sure that is and why, what half and twice the batch or the devices would cost, and what to
measure next. Saves the advised recipe, which pretrain and finetune take, with a page.

devices: a number, or a range from which the one is taken beyond which twice the devices are less than √2 times as fast
(default: 1; with deadline or budget 1..1024). deadline: the cheapest number of devices that is done by then (such as
40min, 2h, 3d). budget: the fastest within so many device-hours, or so much money with frontier.price. target_loss:
validation loss in nats/target to train to, in place of the recipe's duration. Batch, ramp and length are advised anew,
also where the recipe or the command line sets them; a rate or micro-batch of the command line is kept.
evidence: the folder that has runs/, comparisons/ and probes/ (default: here). out: the folder of the advice (default:
advice/NAME). check: predict each schedule of the finished runs from the others instead. parameters, train_rows and
frontier.*: those of plan.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from hfbsz.advice.advice import Advice, Wish
from hfbsz.advice.frontier import PREFIX
from hfbsz.display import command, one_line, visible
from hfbsz.errors import MISUSED, UserError, exit_code
from hfbsz.recipe.amounts import counted, duration, parse_seconds, short
from hfbsz.recipe.load import load
from hfbsz.recipe.tasks import RowKind
from hfbsz.recipe.words import split_options
from hfbsz.run.cli import asks_for_help
from hfbsz.system.command_name import command_name

_OPTIONS = (
    "devices", "deadline", "budget", "target_loss", "evidence", "out", "check", "format", "parameters", "train_rows",
)  # fmt: skip


def main(words: list[str]) -> int:
    """Print the advice, and save its recipe and page; returns the exit code."""
    if asks_for_help(words) or not words:
        print(__doc__.strip())
        return 0 if words else MISUSED
    return exit_code(partial(_advise, words))


def _advise(words: list[str]) -> int:
    options, rest = split_options(words, _OPTIONS)
    asked = f"{command_name('advise')} {command(*words)}"
    given = {key.removeprefix(PREFIX): value for key, _, value in (word.partition("=") for word in rest)
             if key.startswith(PREFIX)}  # fmt: skip
    recipe_words = [word.lstrip("-") for word in rest if not word.startswith(PREFIX)]
    if not any(word.startswith("recipe=") for word in recipe_words):
        raise UserError("recipe=NAME is missing: the recipe to advise on")
    is_text = options.get("format", "text") == "text"
    for name, allowed in (("format", ("text", "json")), ("check", ("true", "false"))):
        if options.get(name, allowed[0]) not in allowed:
            raise UserError(f"{name}={options[name]}: neither {' nor '.join(allowed)}")
    loaded = load(recipe_words)
    wish = _wish(options, recipe_words, given)
    from hfbsz.advice.evidence import gather  # imports numpy: only once the words are checked

    evidence = gather(loaded.recipe, wish.folder)
    if options.get("check") == "true":
        from hfbsz.advice.check import check, lines_of

        print(visible("\n".join(lines_of(check(evidence, loaded.recipe.optim.name)))))
        return 0
    from hfbsz.advice import finetuning, pretraining
    from hfbsz.advice.save import finite, save

    if loaded.recipe.row_kind is RowKind.TEXT:
        if wish.parameters is None:
            from hfbsz.train.model import count_parameters  # imports torch: only if needed

            parameters = count_parameters(loaded.recipe.model, loaded.recipe.data.vocab_size)
            wish = replace(wish, parameters=parameters)
        advice = pretraining.advise(loaded, evidence, wish, asked)
    else:
        advice = finetuning.advise(loaded, evidence, wish, asked)
    folder = Path(options.get("out") or f"advice/{loaded.name}")
    saved, page = save(advice, recipe_words, folder)
    if is_text:
        counts = (len(evidence.runs), len(evidence.sweeps), len(evidence.probes))
        print(visible("\n".join(lines_of_advice(advice, counts, saved, page))))
    else:
        print(json.dumps(finite({**advice.to_dict(), "saved": str(saved), "page": str(page)}), indent=1))
    return 0


def _wish(options: Mapping[str, str], words: list[str], given: dict[str, str]) -> Wish:
    """The options as values. Raises UserError."""
    if "deadline" in options and "budget" in options:
        raise UserError("deadline and budget: give one of them")

    def number(name: str) -> float | None:
        if name not in options:
            return None
        try:
            value = float(options[name].replace(",", ""))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}={options[name]}: not a number above 0")
        return value

    def whole(name: str) -> int | None:
        if (value := number(name)) is not None and value != int(value):
            raise UserError(f"{name}={options[name]}: not a whole number above 0")
        return None if value is None else int(value)

    folder = Path(options.get("evidence", "."))
    if not folder.is_dir():
        raise UserError(f"evidence={folder}: no such folder")
    return Wish(
        devices=_devices(options),
        deadline=_seconds(options["deadline"]) if "deadline" in options else None,
        budget=number("budget"),
        target_loss=number("target_loss"),
        words=tuple(words),
        given=given,
        parameters=whole("parameters"),
        train_rows=whole("train_rows"),
        folder=folder,
    )


def _devices(options: Mapping[str, str]) -> str:
    """The devices to choose from: those asked for; with a deadline or budget 1 to 1,024, else 1. Raises UserError."""
    text = options.get("devices", "1..1024" if {"deadline", "budget"} & options.keys() else "1")
    low, dots, high = text.partition("..")
    ends = (low, high if dots else low)
    if not all(end.isdigit() and int(end) > 0 for end in ends) or int(ends[0]) > int(ends[1]):
        raise UserError(f"devices={text}: not a number of devices: write 8, or a range such as 1..1024")
    return text


def _seconds(text: str) -> float:
    """A time above 0 such as 40min, 2h or 3d in seconds. Raises UserError."""
    try:
        if (seconds := parse_seconds(text)) > 0:
            return seconds
    except ValueError:
        pass
    raise UserError(f"deadline={text}: not a time: write 40min, 2h or 3d")


def lines_of_advice(advice: Advice, counts: tuple[int, int, int], saved: Path, page: Path) -> Iterator[str]:
    """The advice as text."""
    runs, sweeps, probes = counts
    known = f"{counted(runs, 'finished run')}, {counted(sweeps, 'sweep')} and {counted(probes, 'probe')}"
    yield f"advice    {advice.name}: from {known} of its model and data"
    for line in advice.lines:
        yield f"  {line.name:<16} {line.value}"
        yield from (f"  {'':<16} {part}" for part in textwrap.wrap(f"{line.sure}: {one_line(line.why)}", 100))
    if advice.choices:
        head = f"{'devices':>8} {'batch':>14} {'tokens':>8} {'steps':>9} {'time':>9} {'device time':>12} {'loss':>7}"
        yield f"{'choices':<28} {head}"
    for each in advice.choices:
        loss = "–" if each.loss is None else f"{each.loss:.3f}"
        yield (
            f"  {each.name:<26} {each.devices:>8,} {each.batch:>14} {short(each.tokens):>8} {each.steps:>9,.0f} "
            f"{duration(each.seconds):>9} {duration(each.device_seconds):>12} {loss:>7}"
        )
    for note in advice.notes:
        yield f"note      {one_line(note)}"
    if advice.next is not None:
        time = "" if advice.next.seconds is None else f" (about {duration(advice.next.seconds)})"
        yield f"measure   {advice.next.settles}{time}: {advice.next.command}"
    launch, processes = f"{command_name(advice.script)} recipe={saved}", advice.plan.world_size
    if processes > 1:
        launch = launch.replace("accelerate launch", f"accelerate launch --multi_gpu --num_processes {processes}", 1)
    yield f"train     {launch}"
    yield f"page      {one_line(str(page))}"
