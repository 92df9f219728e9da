"""Run `hfbsz runs` from a clone: `python scripts/runs.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("runs")
