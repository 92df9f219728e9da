"""Run `hfbsz dashboard` from a clone: `python scripts/dashboard.py --help`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("dashboard")
