"""Options that several commands share. All functions raise UserError for values that are not valid."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hfbsz.errors import UserError, did_you_mean
from hfbsz.system.command_name import command_name


def wants_json(options: Mapping[str, str]) -> bool:
    """Whether `format` is json; text otherwise."""
    form = options.get("format", "text")
    if form not in ("text", "json"):
        raise UserError(f"format={form}: neither text nor json{did_you_mean(form, ('text', 'json'))}")
    return form == "json"


def whole_number(options: Mapping[str, str], name: str, least: int = 1) -> int | None:
    """A whole number of at least `least`, 0 or 1; None if the option is not given."""
    text = options.get(name)
    if text is not None and not (text.isascii() and text.isdigit() and int(text) >= least):
        raise UserError(f"{name}={text}: not a whole number{' above 0' if least else ''}")
    return None if text is None else int(text)


def run_folders(command: str, words: Sequence[str]) -> list[Path]:
    """The folders of runs, or of checkpoints in them, that a command is given: at least one, and all exist."""
    if not words:
        raise UserError(f"name at least one run: {command_name(command)} RUN [RUN …]")
    for word in words:
        if not Path(word).is_dir():
            raise UserError(f"{word}: no such folder: name the folder of a run, or of a checkpoint in one")
    return [Path(word) for word in words]
