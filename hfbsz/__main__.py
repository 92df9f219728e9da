"""The entry point of `hfbsz COMMAND …` and `python -m hfbsz COMMAND …`."""

import importlib
import sys

from hfbsz.commands import COMMANDS
from hfbsz.errors import MISUSED, complain, did_you_mean
from hfbsz.system.command_name import LAUNCHABLE, TRAINING
from hfbsz.system.streams import leave, script


def run(name: str) -> None:
    """Run a command with the arguments of this process, and exit."""
    if name in TRAINING:
        from hfbsz.run.cli import entry

        entry(name)
    leave(script(importlib.import_module(f"hfbsz.commands.{name}").main, ranks=name in LAUNCHABLE))


def main() -> None:
    """Run the command named by the first argument, and exit."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "--version"):
        sys.exit(script(_usage))
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        sys.exit(complain([f"{name}: no such command{near}; there are {', '.join(COMMANDS)}"], MISUSED))
    sys.argv = [sys.argv[0], *words]
    run(name)


def _usage(words: list[str]) -> int:
    if "--version" in words:
        import hfbsz

        print(hfbsz.__version__)
        return 0
    print("usage: hfbsz COMMAND [word …]\n\ncommands:")
    print("\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items()))
    print("\nhfbsz COMMAND --help shows the help of a command")
    return 0


if __name__ == "__main__":
    main()
