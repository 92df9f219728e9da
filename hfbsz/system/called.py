"""How a command is called: as a script of the clone that is the working directory, else as it is installed."""

from pathlib import Path

TRAINING = ("pretrain", "finetune")  # commands that a launcher starts


def called(name: str) -> str:
    """What a person types before the words of a command."""
    is_clone, launched = Path("scripts", f"{name}.py").is_file(), name in TRAINING
    if launched:
        return f"accelerate launch {f'scripts/{name}.py' if is_clone else f'-m hfbsz {name}'}"
    return f"python scripts/{name}.py" if is_clone else f"hfbsz {name}"
