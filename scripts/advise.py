"""Run `hfbsz advise` from a clone: `python scripts/advise.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("advise")
