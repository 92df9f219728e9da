"""Run `hfbsz report` from a clone: `python scripts/report.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("report")
