"""Measure what hfbsz promises of speed: `python scripts/bench.py startup [repeats=5]`.

startup: wall time of `import hfbsz`, of scripts/plan.py and of `--help`, in fresh processes, against their limits.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANY = ["recipe=small_batch_pretrain", "batch.size=2048seq", "world_size=1024"]
STARTUP = {  # name: (command, limit in seconds)
    "import hfbsz": (["-c", "import hfbsz"], 0.1),
    "plan.py for 1,024 processes": ([HERE / "plan.py", *MANY], 1.0),
    "pretrain.py --help": ([HERE / "pretrain.py", "recipe=large_batch", "--help"], 1.0),
}


def seconds(arguments: list[object]) -> float:
    """Wall time of one fresh interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - started


def startup(repeats: int) -> bool:
    """Print the medians beside that of an empty interpreter; whether all limits hold (the interpreter taken off)."""
    times = {name: [] for name in ("empty", *STARTUP)}
    for _ in range(repeats):  # in alternation: what slows the machine slows all
        for name, found in times.items():
            found.append(seconds(STARTUP[name][0] if name in STARTUP else ["-c", ""]))
    empty, held = statistics.median(times["empty"]), True
    print(f"empty interpreter: {empty:.3f} s (median of {repeats})")
    for name, (_, limit) in STARTUP.items():
        median, spread = statistics.median(times[name]), max(times[name]) - min(times[name])
        held &= median - empty <= limit
        print(f"{name}: {median:.3f} s, {median - empty:.3f} s of it ours (limit {limit:g} s; spread {spread:.3f} s)")
    return held


def main(words: list[str]) -> int:
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if words[:1] != ["startup"] or not options.get("repeats", "5").isdigit():
        print(__doc__)
        return 2
    return 0 if startup(int(options.get("repeats", "5"))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
