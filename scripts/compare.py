"""Run `hfbsz compare` from a clone: `python scripts/compare.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("compare")
