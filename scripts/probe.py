"""Run `hfbsz probe` from a clone: `python scripts/probe.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("probe")
