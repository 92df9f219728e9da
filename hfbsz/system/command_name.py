"""How a user runs a command: as a script if the working directory is a clone, else as the installed `hfbsz`."""

from pathlib import Path

TRAINING = ("pretrain", "finetune")  # commands that need a launcher
LAUNCHABLE = ("probe",)  # commands that run with a launcher or without


def command_name(name: str) -> str:
    """The shell command that runs a command of hfbsz, without its words: `hfbsz plan`, `python scripts/plan.py`, …"""
    is_clone = Path("scripts", f"{name}.py").is_file()
    if name in TRAINING:
        return f"accelerate launch {f'scripts/{name}.py' if is_clone else f'-m hfbsz {name}'}"
    return f"python scripts/{name}.py" if is_clone else f"hfbsz {name}"
