"""The runs that a comparison asks for: the product of lists of values, each an ordinary run with its own folder."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hfbsz.errors import UserError
from hfbsz.recipe.load import Loaded, load
from hfbsz.records.folder import path_of
from hfbsz.system.yaml import as_text

_SPLIT = ("batch.micro_max=", "batch.micro_tokens=")


@dataclass(frozen=True)
class Job:
    """One run: the words that ask for it, and the choices that set it apart from the others of its comparison."""

    words: tuple[str, ...]
    choices: tuple[str, ...]
    loaded: Loaded
    added: tuple[str, ...] = ()  # words that were not asked for: a value that is tried, a duration of equal steps
    apart: str = ""  # added to the folder's name, where the recipe's digest does not tell what sets the run apart

    @cached_property
    def folder(self) -> Path:
        return Path(f"{path_of(self.loaded)}{self.apart}")

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the script that runs it."""
        return (*self.words, f"output_dir={self.folder}") if self.apart else self.words

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def seed(self) -> int:
        return self.loaded.recipe.seed

    @property
    def arm(self) -> tuple[str, ...]:
        return tuple(choice for choice in self.choices if not choice.startswith("seed="))

    @property
    def script(self) -> str:
        return "pretrain" if self.loaded.recipe.task == "language_modeling" else "finetune"

    def but(self, *words: str) -> "Job":
        """The same run with some words added or changed; its choices stay. Raises UserError."""
        changed = (*self.words, *words)
        return replace(self, words=changed, loaded=load(changed), added=(*self.added, *words))


def product(words: Sequence[str]) -> list[Job]:
    """The product of `key=a,b,c` words; a comma inside brackets or quotes does not part. Raises UserError with all that
    is wrong."""
    options = [[f"{key}={value}" for value in split_values(text)] for key, _, text in (w.partition("=") for w in words)]
    varied = [len(values) > 1 for values in options]
    jobs: list[Job] = []
    errors: list[str] = []
    for combination in itertools.product(*options):
        choices = tuple(word for word, varies in zip(combination, varied, strict=True) if varies)
        try:
            jobs.append(Job(combination, choices, load(combination)))
        except UserError as problem:
            errors += problem.lines
    if errors:
        raise UserError(dict.fromkeys(errors))
    return jobs


def split_values(text: str) -> list[str]:
    """Values parted by commas outside brackets; a ramp such as linear:8,64,50% must be quoted: 'linear:8,64,50%'."""
    values, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == "'"
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            values.append("")
        elif character != "'":
            values[-1] += character
    return values


def words_of(values: Mapping[str, object]) -> list[str]:
    """A comparison's file as words: a list is what is varied."""
    return [
        f"{key}={','.join(map(_word, value)) if isinstance(value, list) else _word(value)}"
        for key, value in values.items()
    ]


def _word(value: object) -> str:
    text = as_text(json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value))
    return f"'{text}'" if "," in text and text[0] not in "[{" else text


def in_folders_of_their_own(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that differ in the split of a batch alone, which decides speed and memory and nothing else, get a folder
    each. Raises UserError where two are one run."""
    owner: dict[Path, Job] = {}
    settled = []
    for job in jobs:
        if job.folder.resolve() in owner:
            split = [choice for choice in job.choices if choice.startswith(_SPLIT)]
            job = replace(job, apart=f"-{'-'.join(split).replace('=', '-')}") if split else job
        other = owner.setdefault(job.folder.resolve(), job)
        if other is not job:
            names = " and ".join(f"'{' '.join(one.choices)}'" for one in (other, job))
            raise UserError(f"{names} are one run ({job.folder}): leave one out, and no output_dir= in a comparison")
        settled.append(job)
    return settled


def by_arm(jobs: Sequence[Job]) -> dict[tuple[str, ...], list[Job]]:
    """Jobs in order, those of one arm together."""
    arms: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        arms.setdefault(job.arm, []).append(job)
    return arms


def seeds_first(arms: Mapping[tuple[str, ...], Sequence[Job]]) -> Iterator[Job]:
    """One seed of every arm before the next: a comparison that is looked at early shows all of them."""
    for row in itertools.zip_longest(*arms.values()):
        yield from (job for job in row if job is not None)
