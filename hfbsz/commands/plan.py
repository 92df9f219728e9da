"""Print the plan of a recipe for any number of processes, without torch, data or GPUs.

    hfbsz plan recipe=large_batch [world_size=64] [rows=3] [train_rows=N] [parameters=N] [frontier=1..1024]
        [export=trainer|trl|axolotl|torchtitan|megatron|litgpt] [format=text|json] [key=value …]

rows: prepare the data, print this many training rows with the trained tokens marked, and use the data's size in the
plan. train_rows: number of training rows in an epoch, if known. parameters: number of weights of the model outside its
embeddings, for scaling laws; by default counted from the model of the recipe (takes a few seconds). frontier: time and
cost of the recipe's loss over the number of devices; its assumptions are shown, each with the word that replaces it.
export: the plan as settings of another trainer instead, with what that trainer cannot express.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfbsz.advice.frontier import PREFIX, frontier_of, lines_of, save_picture
from hfbsz.display import visible
from hfbsz.errors import UserError, complain
from hfbsz.plan.explain import explain
from hfbsz.plan.export import Exported, export
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import LoadedRecipe
from hfbsz.run.cli import asks_for_help, read_words
from hfbsz.system.command_name import command_name

_FRONTIER = "frontier"
NUMBERS = ("world_size", "rows", "train_rows", "parameters")


def main(words: list[str]) -> int:
    """Print the plan as text or JSON; returns the exit code."""
    options = {"world_size": "1", "rows": "", "train_rows": "", "parameters": "", "format": "text", "export": ""}
    options |= {key: value for key, _, value in (word.partition("=") for word in words) if key in options}
    asked = [word.partition("=") for word in words if word.partition("=")[0].split(".")[0] == _FRONTIER]
    about = {key.removeprefix(PREFIX): value for key, _, value in asked if key != _FRONTIER}
    devices = [value for key, _, value in asked if key == _FRONTIER]
    own = {*options, *(key for key, *_ in asked)}
    try:
        loaded = read_words(command_name("plan"), [word for word in words if word.partition("=")[0] not in own])
        if loaded is None:
            return 0 if asks_for_help(words) else 2
        for name in NUMBERS:
            if options[name] and not (options[name].isdigit() and int(options[name]) > 0):
                raise UserError(f"{name}: {options[name]!r} is not a whole number above 0")
        if options["format"] not in ("text", "json"):
            raise UserError(f"format: {options['format']!r} is neither text nor json")
        world_size, count, train_rows, parameters = (int(options[name] or 0) or None for name in NUMBERS)
        if asked and not devices:
            raise UserError(f"{asked[0][0]}: an option of frontier=1..1024, which is missing")
        if parameters is None and (loaded.recipe.uses_law() or devices):
            from hfbsz.train.model import count_parameters  # imports torch: only if needed

            parameters = count_parameters(loaded.recipe.model, loaded.recipe.data.vocab_size)
        facts = Facts(rows=train_rows, parameters=parameters)
        preview: dict[str, Any] = {}
        if count is not None:
            facts, preview = preview_rows(loaded, count, parameters)
        plan = resolve(loaded.recipe, world_size or 1, facts)
        exported = export(plan, options["export"]) if options["export"] else Exported("", [])
        result = frontier_of(plan, devices[-1], about, parameters) if devices else None
        if result is not None and "picture" in about:
            save_picture(result, Path(about["picture"]))
    except UserError as problem:
        return complain(problem.lines)
    lines = preview.pop("lines", [])
    if options["export"]:
        print(visible("\n".join(exported.lines())))
    elif options["format"] == "json":
        more = {} if result is None else {_FRONTIER: result.to_dict()}
        print(json.dumps({**plan.to_dict(), **preview, **more}, indent=1))
    else:
        print(visible("\n".join([explain(plan), *lines, *(lines_of(result) if result is not None else [])])))
    return 0


def preview_rows(loaded: LoadedRecipe, count: int, parameters: int | None) -> tuple[Facts, dict[str, Any]]:
    """Prepare the data and preview `count` training rows.

    Returns the facts about the data for the plan, and a mapping of `lines` (text), `preview` (plain data) and `notes`.
    """
    from hfbsz.data.preview import preview  # imports transformers and datasets: only if rows are shown
    from hfbsz.data.tokenizer.tokenizer import load_tokenizer
    from hfbsz.report.console import Console
    from hfbsz.train.inputs import prepare_inputs

    console = Console(sys.stderr)
    prepared = prepare_inputs(loaded.recipe, console.work, parameters)
    console.end_work()
    tokenizer = load_tokenizer(prepared.tokenizer_path, needs_end=prepared.manifest.labels is None)
    rows = preview(prepared, tokenizer, count)
    notes = [f"note      {note}" for note in (*loaded.notes, *prepared.notes)]
    return replace(prepared.facts, parameters=parameters), {
        "lines": [*notes, *rows.lines()],
        "preview": rows.to_dict(),
        "notes": [*loaded.notes, *prepared.notes],
    }
