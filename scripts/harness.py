"""Run `hfbsz harness` from a clone: `python scripts/harness.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("harness")
