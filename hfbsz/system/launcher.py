"""What the launcher has said, in the environment and on its command line; checked before torch is imported."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfbsz.errors import LaunchError, UserError

_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_PLACE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets, all of them
_DEFAULTS = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "-1"))
_SIGNS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "CROSS_RANK")
_HOW = "several processes are started by accelerate launch or torchrun (docs/launching.md)"
_ACCUMULATION = "gradient_accumulation_steps"


def check_launch(environment: Mapping[str, str]) -> None:
    """Raise UserError where the variables of a launcher are stray: set in part, no numbers, or without a launcher, so
    that this process would wait for others that nobody starts."""
    threads = environment.get("OMP_NUM_THREADS") or "1"  # empty: as if it were not set
    if not threads.isdecimal():
        raise UserError(
            f"OMP_NUM_THREADS={threads!r} is not a number of threads: a whole number, or unset OMP_NUM_THREADS"
        )
    for name in _NUMBERS:
        text = environment.get(name, "0")
        if not text.isdecimal() and (name, text) != ("LOCAL_RANK", "-1"):
            raise LaunchError(f"{name}={text!r} is not a whole number: unset {name}; {_HOW}")
    there = [name for name in _PLACE if name in environment and environment[name] != "-1"]
    world, rank, local = (int(environment.get(name, default)) for name, default in _DEFAULTS)
    stray = f"unset {' '.join(there)}"
    shown = " ".join(f"{name}={environment[name]}" for name in there)
    here = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if world and not 1 <= here <= world:
        raise LaunchError(
            f"LOCAL_WORLD_SIZE={here} in the environment is not from 1 to WORLD_SIZE={world}: "
            f"unset LOCAL_WORLD_SIZE; {_HOW}"
        )
    if "LOCAL_RANK" not in there and (world, rank) == (1, 0):
        return  # one process, as they say, or nothing said
    if missing := [name for name in _PLACE if name not in there]:
        raise LaunchError(
            f"{shown} in the environment, without {', '.join(missing)}: no launcher set that: {stray}; {_HOW}"
        )
    if rank >= world or local >= world:
        raise LaunchError(f"{shown}: RANK and LOCAL_RANK must be below WORLD_SIZE: {stray}; {_HOW}")
    if world > 1 and not any(name in environment for name in _SIGNS):
        raise LaunchError(
            f"{shown} in the environment, but no launcher started this process: it would wait for {world - 1} more: "
            f"{stray}; {_HOW}"
        )


def check_precision(precision: str) -> None:
    """Raise UserError where the launch command names another precision than the run has (fp32, bf16 or fp64).

    The environment does not tell whether `no` was asked for, or is what accelerate sets where nothing was.
    """
    asked = _option(_command(), "mixed_precision")
    if asked is not None and asked != ("bf16" if precision == "bf16" else "no"):
        instead = {"no": ", or write precision=fp32", "bf16": ", or write precision=bf16"}.get(asked, "")
        raise UserError(
            f"--mixed_precision {asked} of the launch command contradicts precision={precision}: remove it "
            f"there{instead}"
        )


def environment() -> Mapping[str, str]:
    """The environment, with the accumulation that the launch command or its config file names: accelerate passes that
    on for DeepSpeed alone."""
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    command = _command()
    asked = _option(command, _ACCUMULATION)
    if asked is None and command:
        asked = next(_named(_config(command), _ACCUMULATION), None)
    return os.environ if asked is None else {name: asked, **os.environ}


def _command() -> list[str]:
    """The words of `accelerate launch` before the script, where such a command started this process."""
    import psutil

    script = Path(sys.argv[0]).name
    script = "hfbsz" if script == "__main__.py" else script  # after -m
    try:
        parents = psutil.Process().parents()
    except psutil.Error:
        return []
    for parent in parents:
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        for place, word in enumerate(words):
            launches = Path(word).name == "accelerate" and words[place + 1 : place + 2] == ["launch"]
            if launches or word == "accelerate.commands.launch":
                own = words[place + 1 :]
                ends = [number for number, other in enumerate(own) if Path(other).name == script]
                return own[: ends[0]] if ends else own
    return []


def _option(command: Sequence[str], name: str) -> str | None:
    """The last value of an option: `--a_b 4`, `--a-b 4` or `--a_b=4`."""
    found = None
    for place, word in enumerate(command):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            found = value if equals else next(iter(command[place + 1 :]), None)
    return found


def _config(command: Sequence[str]) -> Any:
    """The launcher's config file, as plain data; None where there is none that can be read."""
    import yaml

    home = Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))) / "accelerate"
    named = _option(command, "config_file")
    for path in [Path(named)] if named else [home / "default_config.yaml", home / "default_config.json"]:
        try:
            return yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue
    return None


def _named(data: Any, name: str) -> Iterator[str]:
    """The values of a key at any depth."""
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if key == name:
            yield str(value)
        yield from _named(value, name)
