"""Generate files from the code: recipes/**/schema.json for editors, docs/fields.md and docs/metrics.md for readers,
docs/compare.schema.json for programs.

    python scripts/schema.py [check]

check: write nothing; exit with 1 if a file is out of date.
"""

import sys
from pathlib import Path

from hfbsz.recipe.schema import files
from hfbsz.records.comparison_results import schema_text
from hfbsz.records.metrics import metrics_page
from hfbsz.system.streams import script

ROOT = Path(__file__).resolve().parent.parent


def main(words: list[str]) -> int:
    if words not in ([], ["check"]):
        print(__doc__)
        return 0 if words == ["--help"] else 2
    generated = files() | {"docs/metrics.md": metrics_page(), "docs/compare.schema.json": schema_text()}
    stale = [
        name for name, text in generated.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text
    ]
    for name in stale:
        if not words:
            (ROOT / name).write_text(generated[name])
        print(f"{'written' if not words else 'stale: python scripts/schema.py'} {name}")
    return 1 if words and stale else 0


if __name__ == "__main__":
    sys.exit(script(main))
