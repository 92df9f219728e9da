"""Create a view and a report of a W&B project: all curves over tokens, runs grouped by their largest batch.

    hfbsz dashboard entity=TEAM [project=hfbsz] [group=NAME] [report=yes|no] [format=json]

entity: the W&B team or user. project: default WANDB_PROJECT, or else hfbsz. group: only the runs of one experiment
(log.group=NAME); default: all runs of the project.
report=no: create only the view. format=json: print what would be created, without contacting the server.
"""

import json
import os
import sys
from collections.abc import Iterator

from hfbsz.errors import UserError, complain, did_you_mean
from hfbsz.report.wandb.dashboard import Place, save, specification
from hfbsz.report.wandb.identity import PROJECT

CHOICES = {"report": ("yes", "no"), "format": ("json",)}
WORDS = ("entity", "project", "group", *CHOICES)


def main(words: list[str]) -> int:
    """Create the view and the report, and print their addresses; returns the exit code."""
    if "--help" in words or not words:
        print(__doc__.strip(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    options = dict(word.lstrip("-").partition("=")[::2] for word in words)
    if errors := list(mistakes(options)):
        return complain(errors)
    project = options.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT
    place = Place(options["entity"], project, options.get("group"))
    report = options.get("report") != "no"
    try:
        if "format" in options:
            print(json.dumps(specification(place, report), indent=1, ensure_ascii=False))
        else:
            for kind, address in save(place, report):
                print(f"{kind:<9} {address}", flush=True)
    except UserError as problem:
        return complain(problem.lines)
    return 0


def mistakes(options: dict[str, str]) -> Iterator[str]:
    """Yield an error line for each unknown, invalid, empty or missing option."""
    for key, value in options.items():
        if key not in WORDS:
            yield f"{key}: no such word{did_you_mean(key, WORDS)}; there are {', '.join(WORDS)}"
        elif value not in CHOICES.get(key, (value,)):
            yield f"{key}={value}: it is {' or '.join(CHOICES[key])}"
        elif not value:
            yield f"{key}= is empty"
    if "entity" not in options:
        yield "entity=… is missing: the W&B team or user whose project it is"
