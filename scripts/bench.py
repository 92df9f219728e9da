"""Benchmark hfbsz: `python scripts/bench.py startup [repeats=5]`, or `python scripts/bench.py finetune`.

startup: wall time of `import hfbsz`, scripts/plan.py and `--help` in new processes, compared with their limits. Exits
with 1 if a limit is exceeded.
finetune [recipe=small_batch repeats=5 steps=20 key.path=value …]: training rows per second of hfbsz and of
transformers' Trainer with dynamic padding, with rows in random order and grouped by length. Both train the same model
on the same rows with the same batch and optimizer, alternating in one process, without evaluation and saving. Exits
with 1 if hfbsz is not the fastest.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from hfbsz.system.streams import script

HERE = Path(__file__).resolve().parent
MANY = ["recipe=small_batch_pretrain", "batch.size=2048seq", "world_size=1024"]
STARTUP = {  # name: (command, limit in seconds)
    "import hfbsz": (["-c", "import hfbsz"], 0.1),
    "plan.py for 1,024 processes": ([HERE / "plan.py", *MANY], 1.0),
    "pretrain.py --help": ([HERE / "pretrain.py", "recipe=large_batch", "--help"], 1.0),
}


def seconds(arguments: list[object]) -> float:
    """Return the wall time of a new interpreter with these arguments, in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - started


def startup(repeats: int) -> bool:
    """Print the median times; return whether all are within their limits, net of the time of an empty interpreter."""
    times = {name: [] for name in ("empty", *STARTUP)}
    for _ in range(repeats):  # alternating, so that other load on the machine affects all of them
        for name, measured in times.items():
            measured.append(seconds(STARTUP[name][0] if name in STARTUP else ["-c", ""]))
    empty, within_limits = statistics.median(times["empty"]), True
    print(f"empty interpreter: {empty:.3f} s (median of {repeats})")
    for name, (_, limit) in STARTUP.items():
        median, spread = statistics.median(times[name]), max(times[name]) - min(times[name])
        within_limits &= median - empty <= limit
        print(f"{name}: {median:.3f} s, {median - empty:.3f} s of it ours (limit {limit:g} s; spread {spread:.3f} s)")
    return within_limits


def finetune(words: list[str], repeats: int, steps: int) -> bool:
    """Print the rows per second of each trainer; return whether hfbsz has the highest median."""
    from finetune_speed import ways

    trainers = ways(words, steps)
    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(repeats + 1):
        for name, rows_per_second in trainers.items():
            speed = rows_per_second()
            if number:  # the first round warms up
                speeds[name].append(speed)
    ours = speeds["hfbsz"]
    for name, measured in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(ours, measured, strict=True)]
        low, high = min(measured), max(measured)
        print(
            f"{name:<26} {statistics.median(measured):7.1f} rows/s ({repeats} times, {low:.1f} to {high:.1f}); "
            f"hfbsz is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return all(statistics.median(ours) >= statistics.median(measured) for measured in speeds.values())


def main(words: list[str]) -> int:
    pairs = [word.split("=", 1) for word in words[1:] if "=" in word]
    options = {key: value for key, value in pairs if key in ("repeats", "steps")}
    if words[:1] not in (["startup"], ["finetune"]) or not all(value.isdigit() for value in options.values()):
        print(__doc__)
        return 2
    repeats = int(options.get("repeats", "5"))
    if words[0] == "startup":
        return 0 if startup(repeats) else 1
    recipe = [f"{key}={value}" for key, value in pairs if key not in options]
    return 0 if finetune(recipe or ["recipe=small_batch"], repeats, int(options.get("steps", "20"))) else 1


if __name__ == "__main__":
    sys.exit(script(main))
