"""Push a run that has ended to the Hugging Face Hub: model, tokenizer, card, recipe, plan, records and page.

    hfbsz push RUN [id=OWNER/NAME] [private=true|false]

RUN: the folder of a run that has finished or was interrupted. id: the repository (default: hub.id of the run's recipe).
private: whether a new repository is private (default: hub.private of the recipe, true). A second push of the same run
makes no commit unless something changed.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hfbsz.errors import UserError, did_you_mean, exit_code
from hfbsz.recipe.fields import Hub
from hfbsz.recipe.load import from_mapping
from hfbsz.recipe.values import why_invalid
from hfbsz.records.folder import claim, read_status
from hfbsz.records.run_data import read_run
from hfbsz.system.yaml import read_yaml

if TYPE_CHECKING:
    from hfbsz.report.console import Console

_WORDS = ("id", "private")


def main(words: list[str]) -> int:
    """Push the run and print the address of its repository; returns the exit code."""
    if "--help" in words or not words:
        print(__doc__.strip(), file=sys.stdout if "--help" in words else sys.stderr)
        return 0 if "--help" in words else 2
    return exit_code(partial(_push, words), "interrupted: the same command pushes the run")


def _push(words: list[str]) -> None:
    from hfbsz.report.console import Console

    folder, options = _parse(words)
    read_run(folder)  # first, since the lock creates a file, which must not happen outside a run's folder
    lock = claim(folder, "push it once that has ended", "its lock must be held")
    try:
        with Console() as console:
            _push_to(_target(folder, options), folder, console)
    finally:
        lock.release()


def _push_to(target: Hub, folder: Path, console: "Console") -> None:
    from hfbsz.report.hub.pushes import Push

    assert target.id is not None
    outcome = Push(folder, folder, target.id, target.private).wait(console.work)
    console.end_work()
    for note in outcome.notes:
        console.warn(note)
    if outcome.error is not None:
        raise UserError(f"{folder}: not pushed to {target.id}: {outcome.error}")
    console.line(f"{'pushed to' if outcome.is_new else 'nothing has changed since the last push to'} {outcome.url}")


def _parse(words: list[str]) -> tuple[Path, dict[str, str]]:
    """The folder and the options. Raises UserError for each word that is neither."""
    folders = [Path(word) for word in words if "=" not in word or Path(word).is_dir()]
    options = dict(word.lstrip("-").partition("=")[::2] for word in words if Path(word) not in folders)
    unknown = [key for key in options if key not in _WORDS]
    errors = [f"{key}: no such word{did_you_mean(key, _WORDS)}; there are id and private" for key in unknown]
    if len(folders) != 1:
        errors.append(f"one folder of a run is pushed at a time, not {len(folders)}: hfbsz push RUN id=OWNER/NAME")
    for key in _WORDS:
        if key in options and (problem := why_invalid(f"hub.{key}", options[key])) is not None:
            errors.append(f"{key}: {problem}")
    if errors:
        raise UserError(errors)
    return folders[0], options


def _target(folder: Path, options: dict[str, str]) -> Hub:
    """The repository to push to: by the options, else by the run's recipe. Raises UserError if neither names one, or
    the run has not ended."""
    state = read_status(folder).get("state", "unknown")
    if state not in ("finished", "preempted"):
        raise UserError(f"{folder}: its state is {state}: a run that has finished or was interrupted is pushed")
    recipe = from_mapping(read_yaml(folder / "recipe.yaml"))
    target = Hub.model_validate({**recipe.hub.model_dump(), **options})
    if target.id is None:
        raise UserError(
            "id=OWNER/NAME is missing: the repository on the Hub; the recipe of the run names none (hub.id)"
        )
    return target
