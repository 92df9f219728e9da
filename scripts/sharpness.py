"""Run `hfbsz sharpness` from a clone: `python scripts/sharpness.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("sharpness")
