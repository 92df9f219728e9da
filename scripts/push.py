"""Run `hfbsz push` from a clone: `python scripts/push.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("push")
