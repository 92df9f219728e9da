"""Run `hfbsz critical` from a clone: `python scripts/critical.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("critical")
