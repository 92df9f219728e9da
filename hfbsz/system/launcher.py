"""Settings of the launcher (environment variables, `accelerate launch` options), checked before torch is imported."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfbsz.errors import LaunchError, UserError

_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_REQUIRED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # every launcher sets all of them
_DEFAULTS = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "-1"))
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "CROSS_RANK")
_HOW = "start several processes with accelerate launch or torchrun (docs/launching.md)"
_ACCUMULATION = "gradient_accumulation_steps"


def check_launch(environment: Mapping[str, str]) -> None:
    """Raise UserError if the variables of a launcher are invalid: incomplete, not numbers, or set without a launcher.

    Without this check, the process would wait for other processes that are never started.
    """
    threads = environment.get("OMP_NUM_THREADS") or "1"  # empty is treated as unset
    if not threads.isdecimal():
        raise UserError(
            f"OMP_NUM_THREADS={threads!r} is not a number of threads: set a whole number, or unset OMP_NUM_THREADS"
        )
    for name in _NUMBERS:
        text = environment.get(name, "0")
        if not text.isdecimal() and (name, text) != ("LOCAL_RANK", "-1"):
            raise LaunchError(f"{name}={text!r} is not a whole number: unset {name}; {_HOW}")
    names = [name for name in _REQUIRED if name in environment and environment[name] != "-1"]
    world, rank, local_rank = (int(environment.get(name, default)) for name, default in _DEFAULTS)
    advice = f"unset {' '.join(names)}"
    shown = " ".join(f"{name}={environment[name]}" for name in names)
    local_world = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if world and not 1 <= local_world <= world:
        raise LaunchError(
            f"LOCAL_WORLD_SIZE={local_world} in the environment is not from 1 to WORLD_SIZE={world}: "
            f"unset LOCAL_WORLD_SIZE; {_HOW}"
        )
    if "LOCAL_RANK" not in names and (world, rank) == (1, 0):
        return  # one process, set explicitly or by default
    if missing := [name for name in _REQUIRED if name not in names]:
        raise LaunchError(
            f"{shown} in the environment, without {', '.join(missing)}: no launcher set that: {advice}; {_HOW}"
        )
    if rank >= world or local_rank >= world:
        raise LaunchError(f"{shown}: RANK and LOCAL_RANK must be below WORLD_SIZE: {advice}; {_HOW}")
    if world > 1 and not any(name in environment for name in _LAUNCHERS):
        raise LaunchError(
            f"{shown} in the environment, but no launcher started this process: it would wait for {world - 1} more: "
            f"{advice}; {_HOW}"
        )


def check_precision(precision: str) -> None:
    """Raise UserError if --mixed_precision of the launch command contradicts the run's precision (fp32, bf16, fp64).

    This reads the command line, because in the environment `no` may also be accelerate's default.
    """
    launched = _option(_command(), "mixed_precision")
    if launched is not None and launched != ("bf16" if precision == "bf16" else "no"):
        instead = {"no": ", or write precision=fp32", "bf16": ", or write precision=bf16"}.get(launched, "")
        raise UserError(
            f"--mixed_precision {launched} of the launch command contradicts precision={precision}: remove it "
            f"there{instead}"
        )


def environment() -> Mapping[str, str]:
    """The environment variables, with the gradient accumulation of the launch command or its config file added.

    accelerate itself sets ACCELERATE_GRADIENT_ACCUMULATION_STEPS only for DeepSpeed.
    """
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    command = _command()
    accumulation = _option(command, _ACCUMULATION)
    if accumulation is None and command:
        accumulation = next(_values_of(_config(command), _ACCUMULATION), None)
    return os.environ if accumulation is None else {name: accumulation, **os.environ}


def _command() -> list[str]:
    """The words of the `accelerate launch` command that started this process, up to the script; empty if none did."""
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
        for index, word in enumerate(words):
            is_launch = Path(word).name == "accelerate" and words[index + 1 : index + 2] == ["launch"]
            if is_launch or word == "accelerate.commands.launch":
                options = words[index + 1 :]
                ends = [number for number, option in enumerate(options) if Path(option).name == script]
                return options[: ends[0]] if ends else options
    return []


def _option(command: Sequence[str], name: str) -> str | None:
    """The last value of an option, as `--a_b 4`, `--a-b 4` or `--a_b=4`; None if it is not set."""
    last = None
    for index, word in enumerate(command):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            last = value if equals else next(iter(command[index + 1 :]), None)
    return last


def _config(command: Sequence[str]) -> Any:
    """The content of accelerate's config file as plain data; None if there is none that can be read."""
    import yaml

    home = Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))) / "accelerate"
    config_file = _option(command, "config_file")
    for path in [Path(config_file)] if config_file else [home / "default_config.yaml", home / "default_config.json"]:
        try:
            return yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue
    return None


def _values_of(data: Any, name: str) -> Iterator[str]:
    """The values of a key at any depth of nested mappings, as text."""
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if key == name:
            yield str(value)
        yield from _values_of(value, name)
