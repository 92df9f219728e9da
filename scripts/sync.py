"""Run `hfbsz sync` from a clone: `python scripts/sync.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("sync")
