"""What is asked of a comparison: its words, or its file in recipes/comparisons, and how it is to be run."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.display import command, file_name
from hfbsz.errors import UserError, did_you_mean
from hfbsz.experiment.jobs import Job, split_values, words_of
from hfbsz.recipe.fields import fields, is_script
from hfbsz.recipe.load import script_in_file
from hfbsz.recipe.presets import ROOTS, find_preset, names_of
from hfbsz.recipe.words import read_pairs
from hfbsz.system.called import called
from hfbsz.system.files import refuse_others
from hfbsz.system.yaml import read_yaml

OPTIONS = {
    "jobs": "runs at a time (1)",
    "launch": "accelerate or python: what starts a run (accelerate)",
    "config": "FILE for accelerate launch, such as accelerate_configs/ddp.yaml: how each run is spread over devices",
    "tune": "FIELD:N tries N values of a field, each twice the one before, on the first seed, and keeps the best",
    "equal": "epochs or steps: what arms have in common (epochs; steps: those of the largest batch)",
    "name": "the comparison's name, its folder in comparisons/ and its group in W&B",
    "checkpoints": "drop or keep those of the runs that finish here (drop: with many runs they fill a disk)",
    "out": "FILE.json for the table",
    "picture": "FILE.png or .svg for loss over steps",
}
_WORDS = {"launch": ("accelerate", "python"), "equal": ("epochs", "steps"), "checkpoints": ("drop", "keep")}
_FOLDER = "comparisons"
_OUTSIDE = ("jobs", "launch", "checkpoints", "out", "picture", "threads")  # words that decide no result
_OURS = {"out": (b'[\n {\n  "choices": ',), "picture": (b"Matplotlib",)}  # what stands in tables and pictures of ours
_FEWEST, _MOST = 3, 15  # values that are tried


@dataclass(frozen=True)
class Tune:
    field: str
    count: int

    @classmethod
    def parse(cls, text: str) -> "Tune":
        name, _, count = text.partition(":")
        known = [known for known, _ in fields()]
        if name not in known:
            raise UserError(f"tune={text}: {name!r} is no field of a recipe{did_you_mean(name, known)}")
        if not (count.isdigit() and _FEWEST <= int(count) <= _MOST):
            raise UserError(f"tune={text}: say how many values are tried, {_FEWEST} to {_MOST}: tune={name}:5")
        return cls(name, int(count))


@dataclass(frozen=True)
class Request:
    """A comparison before anything is run. `pretrain`: words of runs whose models are fine-tuned by `words`."""

    name: str
    command: str
    words: tuple[str, ...]
    jobs: int = 1
    launch: str = "accelerate"
    config: Path | None = None
    tune: Tune | None = None
    equal: str = "epochs"
    pretrain: tuple[str, ...] = ()
    match: float = 0.02  # nats/target between the models that `pretrain` hands over
    keeps_checkpoints: bool = False
    out: Path | None = None
    picture: Path | None = None
    typed: tuple[str, ...] = ()  # the words of the command line, beside those of a file

    @property
    def folder(self) -> Path:
        return Path(_FOLDER) / self.name


def parse(words: Sequence[str]) -> Request:
    """A request from `[NAME] key=value …` words; raises UserError with what is wrong."""
    named = _named(words)
    errors: list[str] = []
    pairs, _ = read_pairs([word for word in words if word not in named], errors, OPTIONS)
    if errors:
        raise UserError(*errors)
    base = _file(named[0]) if named else {}
    pretrain, match = base.pop("pretrain", None), base.pop("match", Request.match)
    own = dict(pairs)
    in_file = dict(word.split("=", 1) for word in words_of(base))
    merged = _later(in_file, own)
    options = {key: merged.pop(key) for key in list(merged) if key in OPTIONS}
    if "recipe" not in merged:
        raise UserError("no recipe=NAME to compare")
    rest = tuple(f"{key}={value}" for key, value in merged.items())
    jobs = options.get("jobs", "1")
    if not jobs.isdigit() or int(jobs) < 1:
        raise UserError(f"jobs={jobs}: say how many runs at a time, 1 or more")
    launch, equal, checkpoints = (_one_of(options, name, *known) for name, known in _WORDS.items())
    tune = options.get("tune")
    picture = options.get("picture")
    if picture and not picture.endswith((".png", ".svg")):
        raise UserError(f"picture={picture}: write it as .png or .svg")
    refuse_overwriting(options)
    return Request(
        _checked(options.get("name") or _name(named, own, rest, tune, equal)),
        f"{called('compare')} {command(*words)}",
        rest,
        int(jobs),
        launch,
        _config(options, launch),
        Tune.parse(tune) if tune else None,
        equal,
        tuple(words_of(pretrain)) if pretrain else (),
        _nats(match),
        checkpoints == "keep",
        Path(options["out"]) if options.get("out") else None,
        Path(picture) if picture else None,
        tuple(words),
    )


def refuse_overwriting(options: Mapping[str, str]) -> None:
    """Raise UserError where the table or the picture would replace a file that is none."""
    for option, marks in _OURS.items():
        if options.get(option):
            refuse_others(option, Path(options[option]), *marks)


def _checked(name: str) -> str:
    if name != file_name(name) or name in (".", ".."):
        raise UserError(
            f"name={name}: it names a folder in {_FOLDER}/: without /, control characters and .., up to 100 long"
        )
    return name


def refuse_scripts(jobs: Iterable[Job], typed: Sequence[str]) -> None:
    """Raise UserError for a metric's script that a comparison's file names, for it runs here: it has to stand in the
    words that were typed."""
    words = [word for word in typed if word.lstrip("-").startswith("eval")]
    for script in {metric for job in jobs for metric in job.loaded.recipe.eval.metrics if is_script(metric)}:
        if not any(script in word for word in words):
            raise UserError(script_in_file(script, "the comparison's file"))


def _named(words: Sequence[str]) -> list[str]:
    """The word that names a file of recipes/comparisons, if there is one: else a first word that looks like one."""
    bare = [word for word in words if "=" not in word and not word.startswith("-") and word not in OPTIONS]
    known = names_of([root / _FOLDER for root in ROOTS])
    named = [word for word in bare if Path(word).stem in known]
    return (named or [word for word in words[:1] if word in bare])[:1]


def _one_of(options: Mapping[str, str], name: str, *known: str) -> str:
    """An option that has few values, the first by default."""
    value = options.get(name, known[0])
    if value not in known:
        raise UserError(f"{name}={value}: it is {' or '.join(known)}{did_you_mean(value, known)}")
    return value


def _nats(match: object) -> float:
    if isinstance(match, bool) or not isinstance(match, int | float) or match < 0:
        raise UserError(f"match: {match}: nats/target by which the pretrained models may differ, such as 0.02")
    return float(match)


def _config(options: Mapping[str, str], launch: str) -> Path | None:
    if (text := options.get("config")) is None:
        return None
    if launch != "accelerate":
        raise UserError("config= is for launch=accelerate")
    if not os.path.isfile(text):
        raise UserError(f"config={text}: no such file")
    return Path(text)


def _later(earlier: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """Later words replace earlier ones, and stand after them: a preset clears what was said of its part before."""
    return {**{key: value for key, value in earlier.items() if key not in later}, **later}


def _file(name: str) -> dict[str, Any]:
    return read_yaml(find_preset([root / _FOLDER for root in ROOTS], name, "comparison"))


def _name(named: Sequence[str], own: Mapping[str, str], words: Sequence[str], tune: str | None, equal: str) -> str:
    """A file's own name as long as nothing that decides a result was added to it, else one with 8 hex digits."""
    if named and not [key for key in own if key not in _OUTSIDE and not key.startswith("log.")]:
        return file_name(Path(named[0]).stem)
    recipe = next(value for key, _, value in (word.partition("=") for word in words) if key == "recipe")
    whole = hashlib.sha256("\n".join([*sorted(words), str(tune), equal]).encode()).hexdigest()[:8]
    stem = Path(named[0]).stem if named else "-".join(Path(one).stem for one in split_values(recipe)[:3])
    return f"{file_name(stem)[:90]}-{whole}"
