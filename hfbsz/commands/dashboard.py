"""Save a view of a W&B project, and a report: every curve over tokens, runs grouped by their largest batch.

    hfbsz dashboard entity=TEAM [project=hfbsz] [group=NAME] [report=yes|no] [format=json]

entity: the team or user. group: the runs of one experiment (log.group=NAME); left out, all of the project's. report=no:
the view alone. format=json prints what would be saved, and needs no server.
"""

import json
import sys
from collections.abc import Iterator

from hfbsz.errors import UserError, complain, did_you_mean
from hfbsz.report.wandb.dashboard import Place, save, specification

CHOICES = {"report": ("yes", "no"), "format": ("json",)}
WORDS = ("entity", "project", "group", *CHOICES)


def main(words: list[str]) -> int:
    if "--help" in words or not words:
        print(__doc__.strip(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    given = dict(word.lstrip("-").partition("=")[::2] for word in words)
    if wrong := list(mistakes(given)):
        return complain(wrong)
    place = Place(given["entity"], given.get("project", "hfbsz"), given.get("group"))
    report = given.get("report") != "no"
    try:
        if "format" in given:
            print(json.dumps(specification(place, report), indent=1, ensure_ascii=False))
        else:
            for kind, address in save(place, report):
                print(f"{kind:<9} {address}", flush=True)
    except UserError as problem:
        return complain(problem.lines)
    return 0


def mistakes(given: dict[str, str]) -> Iterator[str]:
    """A line for each."""
    for key, value in given.items():
        if key not in WORDS:
            yield f"{key}: no such word{did_you_mean(key, WORDS)}; there are {', '.join(WORDS)}"
        elif value not in CHOICES.get(key, (value,)):
            yield f"{key}={value}: it is {' or '.join(CHOICES[key])}"
        elif not value:
            yield f"{key}= is empty"
    if "entity" not in given:
        yield "entity=… is missing: the W&B team or user whose project it is"
