"""Draw runs as one HTML page that needs no network.

    hfbsz report RUN [RUN …] [out=FILE]

RUN: the folder of a run. out: the page (default: RUN/report.html for one run, ./report.html for several).
"""

import sys
from pathlib import Path

from hfbsz.display import one_line, visible
from hfbsz.errors import UserError, complain


def main(words: list[str]) -> int:
    folders = [Path(word) for word in words if not word.startswith("out=")]
    named = [Path(word.removeprefix("out=")) for word in words if word.startswith("out=")]
    if "--help" in words or not folders:
        print(__doc__.strip(), file=sys.stdout if "--help" in words else sys.stderr)
        return 0 if "--help" in words else 2
    from hfbsz.report.page.page import write  # matplotlib: only once there is something to draw

    try:
        print(visible(str(write(folders, named[-1] if named else None, tell))))
    except UserError as problem:
        return complain(problem.lines)
    return 0


def tell(note: str) -> None:
    print(f"note: {one_line(note)}", file=sys.stderr, flush=True)
