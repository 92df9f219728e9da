"""Run `hfbsz plan` from a clone: `python scripts/plan.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("plan")
