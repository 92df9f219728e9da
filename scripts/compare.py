"""Run the product of lists of values and lay the results side by side.

    python scripts/compare.py recipe=small_batch_pretrain,large_batch seed=0,1,2 [key.path=a,b …]

Every combination is an ordinary run of scripts/pretrain.py, or of scripts/finetune.py where its task asks for that;
finished ones are not repeated. Options: jobs=N runs at a time (1), launch=accelerate|python (accelerate), out=FILE.json
for the table, picture=FILE.png for loss over steps.
"""

import json
import sys
from pathlib import Path

from hfbsz.errors import UserError, complain
from hfbsz.experiment import Arm, arms, launcher, refuse_shared_folders, run_all, table


def main(words: list[str]) -> int:
    options = {"jobs": "1", "launch": "accelerate", "out": "", "picture": ""}
    options |= {key: value for key, _, value in (w.partition("=") for w in words) if key in options}
    rest = [word for word in words if word.partition("=")[0] not in options]
    if not any(word.startswith("recipe=") for word in rest):
        print(__doc__)
        return 2
    if not options["jobs"].isdigit() or int(options["jobs"]) < 1 or options["launch"] not in ("accelerate", "python"):
        return complain(["jobs= is a whole number above 0, launch= is accelerate or python"])
    try:
        wanted = list(arms(rest))
        refuse_shared_folders(wanted)
    except UserError as problem:
        return complain(problem.lines)
    done = 0

    def report(arm: Arm, ended: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(wanted)}] {' '.join(arm.choices)}: {ended} ({arm.folder})", flush=True)

    run_all(wanted, Path(__file__).parent, int(options["jobs"]), launcher(options["launch"]), report)
    rows = table(wanted)
    width = max(len(str(row["choices"])) for row in rows)
    print(f"\n{'':<{width}}  runs  loss (nats/target)      sd  bits/byte   steps  training (s)")
    for row in rows:
        cells = [_cell(row[key], form) for key, form in _COLUMNS]
        print(f"{row['choices']:<{width}}  {row['runs']:>4}  " + "  ".join(cells))
    if options["out"]:
        Path(options["out"]).write_text(json.dumps(rows, indent=1))
    if options["picture"] and any(row["runs"] for row in rows):
        from hfbsz.report.picture import draw  # matplotlib, only where it is wanted

        draw(rows, Path(options["picture"]))
    return 0 if all(row["runs"] for row in rows) else 1


_COLUMNS = (("loss", "18.4f"), ("loss_sd", "6.4f"), ("bits_per_byte", "9.4f"), ("steps", "6,d"), ("seconds", "12.0f"))


def _cell(value: object, form: str) -> str:
    width = form.split(".")[0].split(",")[0].rstrip("fd")
    return f"{'–':>{width}}" if value is None or value != value else f"{value:>{form}}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
