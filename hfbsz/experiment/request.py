"""Parses a comparison request: command-line words, a file in recipes/comparisons, and options on how to run it."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.display import command, file_name
from hfbsz.errors import UserError, did_you_mean
from hfbsz.experiment.jobs import Job, split_values, words_of
from hfbsz.recipe.fields import code_of, fields
from hfbsz.recipe.load import script_in_file
from hfbsz.recipe.presets import ROOTS, find_preset, names_of
from hfbsz.recipe.words import read_pairs
from hfbsz.records.comparison_results import MARK
from hfbsz.system.command_name import command_name
from hfbsz.system.files import refuse_others
from hfbsz.system.yaml import read_yaml

OPTIONS = {
    "jobs": "number of runs at a time (default: 1)",
    "launch": "accelerate or python: how a run is started (default: accelerate)",
    "config": "FILE for accelerate launch, such as accelerate_configs/ddp.yaml: how each run uses the devices",
    "tune": "FIELD:N tries N values of a field, a factor of two apart, on the first seed, and uses the best",
    "equal": "epochs or steps: what all arms share (default: epochs; steps: those of the largest batch)",
    "name": "the comparison's name: its folder in comparisons/ and its W&B group",
    "checkpoints": "drop or keep the checkpoints of runs that finish (default: drop, to save disk space)",
    "out": "FILE.json for the results, which are in comparisons/NAME/results.json too",
    "picture": "FILE.png or .svg for a figure of loss over steps",
    "format": "text or json: what is printed at the end (json: the results alone, progress goes to stderr)",
}
_WORDS = {
    "launch": ("accelerate", "python"),
    "equal": ("epochs", "steps"),
    "checkpoints": ("drop", "keep"),
    "format": ("text", "json"),
}
_FOLDER = "comparisons"
_WITHOUT_EFFECT = ("jobs", "launch", "checkpoints", "out", "picture", "format", "threads")  # do not affect results
_MARKERS = {  # bytes in files that compare wrote; those of a table: in earlier versions
    "out": (MARK.encode(), b'[\n {\n  "choices": '),
    "picture": (b"Matplotlib",),
}
MIN_VALUES, MAX_VALUES = 3, 15  # of a tuned field


@dataclass(frozen=True)
class Tune:
    """A field to tune, and the number of values to try first."""

    field: str
    count: int

    @classmethod
    def parse(cls, text: str) -> "Tune":
        """The request for `FIELD:COUNT`. Raises UserError for an unknown field or a count outside 3 to 15."""
        name, _, count = text.partition(":")
        names = [name for name, _ in fields()]
        if name not in names:
            raise UserError(f"tune={text}: {name!r} is not a recipe field{did_you_mean(name, names)}")
        if not (count.isdigit() and MIN_VALUES <= int(count) <= MAX_VALUES):
            raise UserError(
                f"tune={text}: the number of values to try must be {MIN_VALUES} to {MAX_VALUES}, as in tune={name}:5"
            )
        return cls(name, int(count))


@dataclass(frozen=True)
class Request:
    """A parsed comparison. `pretrain`: words of the pretraining runs whose models the runs of `words` fine-tune."""

    name: str
    command: str
    words: tuple[str, ...]
    jobs: int = 1
    launch: str = "accelerate"
    config: Path | None = None
    tune: Tune | None = None
    equal: str = "epochs"
    pretrain: tuple[str, ...] = ()
    match: float = 0.02  # largest difference in loss between the models of `pretrain`, nats/target
    keep_checkpoints: bool = False
    out: Path | None = None
    picture: Path | None = None
    format: str = "text"  # text | json
    typed: tuple[str, ...] = ()  # the words of the command line, without those of a file

    @property
    def folder(self) -> Path:
        """The comparison's folder, for its page, W&B files and models."""
        return Path(_FOLDER) / self.name


def parse(words: Sequence[str]) -> Request:
    """The request of `[NAME] key=value …` words. Raises UserError for anything invalid."""
    preset = _preset(words)
    errors: list[str] = []
    pairs, _ = read_pairs([word for word in words if word not in preset], errors, OPTIONS)
    if errors:
        raise UserError(errors)
    base = _file(preset[0]) if preset else {}
    pretrain, match = base.pop("pretrain", None), base.pop("match", Request.match)
    typed = dict(pairs)
    in_file = dict(word.split("=", 1) for word in words_of(base))
    merged = _override(in_file, typed)
    options = {key: merged.pop(key) for key in list(merged) if key in OPTIONS}
    if "recipe" not in merged:
        raise UserError("no recipe=NAME to compare")
    run_words = tuple(f"{key}={value}" for key, value in merged.items())
    jobs = options.get("jobs", "1")
    if not jobs.isdigit() or int(jobs) < 1:
        raise UserError(f"jobs={jobs}: the number of runs at a time must be 1 or more")
    launch, equal, checkpoints, form = (_one_of(options, name, *allowed) for name, allowed in _WORDS.items())
    tune = options.get("tune")
    picture = options.get("picture")
    if picture and not picture.endswith((".png", ".svg")):
        raise UserError(f"picture={picture}: the name must end in .png or .svg")
    refuse_overwriting(options)
    return Request(
        _valid_name(options.get("name") or _default_name(preset, typed, run_words, tune, equal)),
        f"{command_name('compare')} {command(*words)}",
        run_words,
        int(jobs),
        launch,
        _config(options, launch),
        Tune.parse(tune) if tune else None,
        equal,
        tuple(words_of(pretrain)) if pretrain else (),
        _tolerance(match),
        checkpoints == "keep",
        Path(options["out"]) if options.get("out") else None,
        Path(picture) if picture else None,
        form,
        tuple(words),
    )


def refuse_overwriting(options: Mapping[str, str]) -> None:
    """Raise UserError if the table or the picture would overwrite a file that compare did not write."""
    for option, markers in _MARKERS.items():
        if options.get(option):
            refuse_others(option, Path(options[option]), *markers)


def _valid_name(name: str) -> str:
    if name != file_name(name) or name in (".", ".."):
        raise UserError(
            f"name={name}: not a valid folder name in {_FOLDER}/: use at most 100 characters, without /, .. and "
            "control characters"
        )
    return name


def refuse_scripts(jobs: Iterable[Job], typed: Sequence[str]) -> None:
    """Raise UserError for a script that only a comparison file names: it is code that runs on this machine, so
    it must be on the command line."""
    words = [word for word in typed if word.lstrip("-").startswith("eval")]
    for field, script in {pair for job in jobs for pair in code_of(job.loaded.recipe)}:
        if not any(script in word for word in words):
            raise UserError(script_in_file(field, script, "the comparison's file"))


def _preset(words: Sequence[str]) -> list[str]:
    """The word that names a file of recipes/comparisons, else a first word without `=`; a list of one or none."""
    bare = [word for word in words if "=" not in word and not word.startswith("-") and word not in OPTIONS]
    names = names_of([root / _FOLDER for root in ROOTS])
    matching = [word for word in bare if Path(word).stem in names]
    return (matching or [word for word in words[:1] if word in bare])[:1]


def _one_of(options: Mapping[str, str], name: str, *allowed: str) -> str:
    """The value of an option that has few values; the first is the default."""
    value = options.get(name, allowed[0])
    if value not in allowed:
        raise UserError(f"{name}={value}: must be {' or '.join(allowed)}{did_you_mean(value, allowed)}")
    return value


def _tolerance(match: object) -> float:
    if isinstance(match, bool) or not isinstance(match, int | float) or match < 0:
        raise UserError(
            f"match: {match}: must be the largest difference between pretrained models in nats/target, such as 0.02"
        )
    return float(match)


def _config(options: Mapping[str, str], launch: str) -> Path | None:
    if (text := options.get("config")) is None:
        return None
    if launch != "accelerate":
        raise UserError("config= requires launch=accelerate")
    if not os.path.isfile(text):
        raise UserError(f"config={text}: no such file")
    return Path(text)


def _override(base: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Overrides replace base words and come last, since a preset resets earlier words of its section."""
    return {**{key: value for key, value in base.items() if key not in overrides}, **overrides}


def _file(name: str) -> dict[str, Any]:
    return read_yaml(find_preset([root / _FOLDER for root in ROOTS], name, "comparison"))


def _default_name(
    preset: Sequence[str], typed: Mapping[str, str], words: Sequence[str], tune: str | None, equal: str
) -> str:
    """The file's name if no typed word affects results, else a name with 8 hex digits of the request's digest."""
    if preset and not [key for key in typed if key not in _WITHOUT_EFFECT and not key.startswith("log.")]:
        return file_name(Path(preset[0]).stem)
    recipe = next(value for key, _, value in (word.partition("=") for word in words) if key == "recipe")
    digest = hashlib.sha256("\n".join([*sorted(words), str(tune), equal]).encode()).hexdigest()[:8]
    stem = Path(preset[0]).stem if preset else "-".join(Path(name).stem for name in split_values(recipe)[:3])
    return f"{file_name(stem)[:90]}-{digest}"
