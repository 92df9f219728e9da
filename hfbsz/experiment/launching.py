"""Many runs as subprocesses: the product of lists of values, each an ordinary run, finished ones never repeated."""

import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hfbsz.errors import UserError
from hfbsz.folder import cpu_cores, path_of, read_status
from hfbsz.loading import Loaded, load


@dataclass(frozen=True)
class Arm:
    """One run of an experiment: the words that ask for it, and the choices that set it apart from the others."""

    words: tuple[str, ...]
    choices: tuple[str, ...]
    loaded: Loaded

    @property
    def folder(self) -> Path:
        return path_of(self.loaded)


@dataclass(frozen=True)
class Outcome:
    """What a finished run reached."""

    loss: float  # validation, nats/target, the full set
    bits_per_byte: float
    steps: int
    tokens: int
    seconds: float


def arms(words: Sequence[str]) -> Iterator[Arm]:
    """The product of `key=a,b,c` words; a comma inside brackets or quotes does not part. Raises UserError."""
    options = [[f"{key}={value}" for value in split_values(text)] for key, _, text in (w.partition("=") for w in words)]
    varied = [len(values) > 1 for values in options]
    for combination in itertools.product(*options):
        choices = tuple(word for word, varies in zip(combination, varied, strict=True) if varies)
        yield Arm(combination, choices, load(combination))


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


def refuse_shared_folders(wanted: Sequence[Arm]) -> None:
    """Raise UserError where two arms would be one run: their choices differ only in what does not decide the result."""
    owner: dict[Path, Arm] = {}
    for arm in wanted:
        other = owner.setdefault(arm.folder.resolve(), arm)
        if other is not arm:
            names = " and ".join(f"'{' '.join(one.choices)}'" for one in (other, arm))
            raise UserError(f"{names} are one run ({arm.folder}): leave one out, and no output_dir= in a comparison")


def run_all(
    wanted: Sequence[Arm], scripts: Path, jobs: int, launch: Sequence[str], report: Callable[[Arm, str], None]
) -> None:
    """Run what is not finished by the folder `scripts`, `jobs` at a time; `report` hears of every arm's end. A run's
    output goes to `<folder>.log`."""
    threads = [f"threads={max(1, cpu_cores() // jobs)}"] if jobs > 1 else []

    def one(arm: Arm) -> None:
        if read_status(arm.folder).get("state") == "finished":
            return report(arm, "finished earlier")
        arm.folder.parent.mkdir(parents=True, exist_ok=True)
        with arm.folder.with_name(f"{arm.folder.name}.log").open("w") as log:
            job = "pretrain" if arm.loaded.recipe.task == "language_modeling" else "finetune"
            command = [*launch, str(scripts / f"{job}.py"), *arm.words, *threads]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        report(arm, "finished" if code == 0 else f"failed, see {log.name}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, wanted))


def launcher(name: str) -> list[str]:
    """The command that starts a script: `accelerate` (launch) or `python`."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--quiet"] if name == "accelerate" else [sys.executable]


def outcome(folder: Path) -> Outcome | None:
    """What a run's records say of its last full evaluation; None where it has not finished."""
    if read_status(folder).get("state") != "finished":
        return None
    lines = (folder / "records.jsonl").read_text().splitlines()
    last = next(r for r in map(json.loads, reversed(lines)) if r["event"] == "eval")
    return Outcome(
        last.get("eval/loss", math.nan),
        last.get("eval/bits_per_byte", math.nan),
        last["train/global_step"],
        last["train/num_input_tokens_seen"],
        last["train/seconds"],
    )


def table(wanted: Sequence[Arm]) -> list[dict[str, object]]:
    """One row for every set of choices other than the seed: mean and standard deviation of the loss over seeds."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for arm in wanted:
        key = tuple(choice for choice in arm.choices if not choice.startswith("seed="))
        groups.setdefault(key, [])
        if (reached := outcome(arm.folder)) is not None:
            groups[key].append(reached)
    return [_row(key, found) for key, found in groups.items()]


def _row(key: tuple[str, ...], found: Sequence[Outcome]) -> dict[str, object]:
    losses = [one.loss for one in found]
    return {
        "choices": " ".join(key) or "(one recipe)",
        "runs": len(found),
        "loss": statistics.fmean(losses) if found else None,
        "loss_sd": statistics.stdev(losses) if len(found) > 1 else None,
        "losses": losses,
        "bits_per_byte": statistics.fmean(one.bits_per_byte for one in found) if found else None,
        "steps": found[0].steps if found else None,
        "seconds": statistics.fmean(one.seconds for one in found) if found else None,
    }
