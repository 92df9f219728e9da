"""The runs of a comparison: the product of lists of values, each an ordinary run with its own folder."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hfbsz.errors import UserError
from hfbsz.recipe.load import LoadedRecipe, load
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.folder import path_of
from hfbsz.system.command_name import command_name
from hfbsz.system.yaml import as_text

_SPLIT_FIELDS = ("batch.micro_max=", "batch.micro_tokens=")


@dataclass(frozen=True)
class Job:
    """One run: its command-line words, and the choices that distinguish it from the other runs of the comparison."""

    words: tuple[str, ...]
    choices: tuple[str, ...]
    loaded: LoadedRecipe
    added: tuple[str, ...] = ()  # words added by the comparison: a tuned value, a duration of equal steps
    folder_suffix: str = ""  # distinguishes folders of runs whose recipes have the same digest

    @cached_property
    def folder(self) -> Path:
        """The run's output folder."""
        return Path(f"{path_of(self.loaded)}{self.folder_suffix}")

    @property
    def command(self) -> tuple[str, ...]:
        """The command-line words of the run."""
        return (*self.words, f"output_dir={self.folder}") if self.folder_suffix else self.words

    @property
    def log(self) -> Path:
        """The file of the run's standard output and errors, beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.loaded.recipe.seed

    @property
    def arm(self) -> tuple[str, ...]:
        """The choices without the seed: equal for all runs of an arm."""
        return tuple(choice for choice in self.choices if not choice.startswith("seed="))

    @property
    def script(self) -> str:
        """The hfbsz command that runs the task: pretrain or finetune."""
        return "pretrain" if self.loaded.recipe.row_kind is RowKind.TEXT else "finetune"

    def with_words(self, *words: str) -> "Job":
        """The same run with words added or replaced; its choices stay. Raises UserError if the recipe is invalid."""
        changed = (*self.words, *words)
        return replace(self, words=changed, loaded=load(changed), added=(*self.added, *words))


def product(words: Sequence[str]) -> list[Job]:
    """The jobs for the product of `key=a,b,c` words; commas inside brackets or quotes do not separate values. Raises
    UserError with all errors of all combinations, each once."""
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


def with_group(words: Sequence[str], name: str) -> tuple[str, ...]:
    """The words with `name` as W&B group, unless they set a group."""
    has_group = any(word.startswith("log.group=") for word in words)
    return tuple(words) if has_group else (*words, f"log.group={name}")


def split_values(text: str) -> list[str]:
    """Values separated by commas outside brackets and single quotes; quote a ramp with commas: 'linear:8,64,50%'."""
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
    """The entries of a comparison file as `key=value` words; a list becomes `key=a,b,c`, which is varied."""
    return [
        f"{key}={','.join(map(_word, value)) if isinstance(value, list) else _word(value)}"
        for key, value in values.items()
    ]


def _word(value: object) -> str:
    text = as_text(json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value))
    return f"'{text}'" if "," in text and text[0] not in "[{" else text


def assign_folders(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with distinct folders. The recipe's digest leaves out the micro-batch, which affects only speed and
    memory: jobs that differ in it alone get a suffix. Raises UserError if two jobs are the same run, or would be pushed
    to the same repository of the Hub."""
    repositories = [name for job in jobs if (name := job.loaded.recipe.hub.id) is not None]
    for name in repositories:
        if repositories.count(name) > 1:
            raise UserError(
                f"hub.id={name}: {repositories.count(name)} runs would replace each other there: leave it out, and "
                f"push one of them with {command_name('push')}"
            )
    owner: dict[Path, Job] = {}
    assigned = []
    for job in jobs:
        if job.folder.resolve() in owner:
            split = [choice for choice in job.choices if choice.startswith(_SPLIT_FIELDS)]
            job = replace(job, folder_suffix=f"-{'-'.join(split).replace('=', '-')}") if split else job
        other = owner.setdefault(job.folder.resolve(), job)
        if other is not job:
            names = " and ".join(f"'{' '.join(duplicate.choices)}'" for duplicate in (other, job))
            raise UserError(
                f"{names} are the same run ({job.folder}): leave one out, and do not set output_dir= in a comparison"
            )
        assigned.append(job)
    return assigned


def by_arm(jobs: Sequence[Job]) -> dict[tuple[str, ...], list[Job]]:
    """Jobs by the choices of their arm, in the given order."""
    arms: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        arms.setdefault(job.arm, []).append(job)
    return arms


def seeds_first(arms: Mapping[tuple[str, ...], Sequence[Job]]) -> Iterator[Job]:
    """Jobs in running order: the first seed of every arm, then the second, so that early results cover all arms."""
    for row in itertools.zip_longest(*arms.values()):
        yield from (job for job in row if job is not None)
