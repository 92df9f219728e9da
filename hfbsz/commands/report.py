"""Write an HTML report of one or more runs, in one self-contained file.

    hfbsz report RUN [RUN …] [out=FILE]

RUN: the folder of a run. out: the file to write (default: RUN/report.html for one run, ./report.html for several).
"""

import sys
from functools import partial
from pathlib import Path

from hfbsz.display import one_line, visible
from hfbsz.errors import exit_code


def main(words: list[str]) -> int:
    """Write the report and print its path; returns the exit code."""
    folders = [Path(word) for word in words if not word.startswith("out=")]
    outputs = [Path(word.removeprefix("out=")) for word in words if word.startswith("out=")]
    if "--help" in words or not folders:
        print(__doc__.strip(), file=sys.stdout if "--help" in words else sys.stderr)
        return 0 if "--help" in words else 2
    return exit_code(partial(_write, folders, outputs[-1] if outputs else None))


def _write(folders: list[Path], output: Path | None) -> None:
    from hfbsz.report.page.page import write  # imports matplotlib: only if needed

    print(visible(str(write(folders, output, print_note))))


def print_note(note: str) -> None:
    """Print a note to stderr, as one line."""
    print(f"note: {one_line(note)}", file=sys.stderr, flush=True)
