"""Benchmark hfbsz: `python scripts/bench.py NAME [repeats=…] [steps=…] [out=FILE.json] [key.path=value …]`.

startup: wall time of `import hfbsz`, scripts/plan.py and `--help` in new processes, compared with their limits. Exits
with 1 if a limit is exceeded.
finetune [recipe=small_batch duration=15epochs repeats=10 steps=31 key.path=value …]: input tokens per second of hfbsz
and of transformers' Trainer with dynamic padding, with rows in random order and grouped by length. Both train the same
model on the same rows (31 steps: an epoch) with the same batch and optimizer, in alternating blocks, on a CPU each in a
process of its own, without evaluation and saving. Exits with 1 if hfbsz is not the fastest.
pretrain [recipe=small_batch_pretrain repeats=10 steps=5 key.path=value …]: the same for a language model on packed
rows, with a plain PyTorch loop as a further trainer, at several micro-batches; each is compared at its own best one.
data [recipe=small_batch_pretrain repeats=10 key.path=value …]: tokenizing and packing documents, by hfbsz and by the
steps of transformers' language modeling example. Exits with 1 if hfbsz is not the fastest.
time_to_loss [recipe=large_batch key.path=value …]: wall time of a recipe to the final loss of the Trainer with AdamW,
whose batch and learning rate are tuned, three seeds, one run at a time (an hour on 2 cores); with out, a picture beside
it. Exits with 1 if hfbsz is not faster.
optimizers [recipe=small_batch_pretrain repeats=10 key.path=value …]: the time of a step of each optimizer.
knee [recipe=small_batch_pretrain repeats=5 steps=12 key.path=value …]: probes, each followed by `steps` rounds of an
exhaustive search over 14 micro-batches. Exits with 1 if a knee is not within 5 % of the search's best throughput.
out: a file for all numbers.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hfbsz.errors import exit_code
from hfbsz.recipe.amounts import counted
from hfbsz.system.streams import script

HERE = Path(__file__).resolve().parent
MANY = ["recipe=small_batch_pretrain", "batch.size=2048seq", "world_size=1024"]
STARTUP = {  # name: (command, limit in seconds)
    "import hfbsz": (["-c", "import hfbsz"], 0.1),
    "plan.py for 1,024 processes": ([HERE / "plan.py", *MANY], 1.0),
    "runs.py in an empty folder": ([HERE / "runs.py", HERE.parent / "accelerate_configs"], 1.0),
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


def measure(trainers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The speed of each trainer in `repeats` blocks, in alternation; a first block of each warms up, and drops
    the trainer if it runs out of memory."""
    from hfbsz.train.device import is_out_of_memory

    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(repeats + 1):
        if number > 1:
            medians = ", ".join(f"{name} {statistics.median(measured):.4g}" for name, measured in speeds.items())
            print(f"after {counted(number - 1, 'block')}: {medians} per second", flush=True)
        for name in list(speeds):
            started = time.perf_counter()
            try:
                speed = trainers[name]()
            except RuntimeError as problem:
                if number or not is_out_of_memory(problem):
                    raise
                print(f"{name}: out of memory")
                del speeds[name]
                continue
            if number:
                speeds[name].append(speed)
            else:
                print(f"{name}: {time.perf_counter() - started:.1f} s to the end of the first block", flush=True)
    return speeds


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median: the order statistics that a binomial distribution gives (0: the extremes)."""
    ordered, count = sorted(values), len(values)
    outside, tail = 0, 0.0
    while (tail := tail + math.comb(count, outside) / 2**count) <= 0.025:
        outside += 1
    return ordered[max(0, outside - 1)], ordered[min(count - 1, count - outside)]


def compare(speeds: Mapping[str, Sequence[float]], ours: str, unit: str) -> dict[str, dict[str, object]]:
    """Print each trainer's median speed in `unit`, and the ratio of `ours` to it; returns the numbers."""
    numbers: dict[str, dict[str, object]] = {}
    for other, measured in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(speeds[ours], measured, strict=True)]
        low, high = interval(ratios)
        median = statistics.median(measured)
        numbers[other] = {"speed": median, "ratio": statistics.median(ratios), "low": low, "high": high}
        print(
            f"{other:<26} {median:9,.0f} {unit} ({counted(len(measured), 'block')}, {min(measured):,.0f} to "
            f"{max(measured):,.0f}); {ours} is {statistics.median(ratios):.2f} times as fast "
            f"({'95 %: ' if len(ratios) > 5 else ''}{low:.2f} to {high:.2f})"
        )
    return numbers


def finetune(words: list[str], repeats: int, steps: int) -> tuple[bool, object]:
    """Time the trainers of a classifier; returns whether hfbsz has the highest median, and the numbers."""
    from trainer_speed import finetuning

    speeds = measure(finetuning(words, steps), repeats)
    medians = {name: statistics.median(measured) for name, measured in speeds.items()}
    return medians["hfbsz"] >= max(medians.values()), compare(speeds, "hfbsz", "tokens/s")


def pretrain(words: list[str], repeats: int, steps: int) -> tuple[bool, object]:
    """Time the trainers of a language model, each at its best micro-batch; returns whether hfbsz has the highest
    median, and the numbers."""
    from trainer_speed import pretraining

    trainers = pretraining(words, steps)
    speeds = measure(trainers, repeats)
    memory = {name: getattr(trainers[name], "peak", None) for name in speeds}  # bytes, on a GPU
    for name, measured in speeds.items():
        peak = f", {memory[name] / 2**30:.2f} GiB of GPU memory" if memory[name] else ""
        print(f"{name:<26} {statistics.median(measured):9,.0f} tokens/s{peak}")
    best: dict[str, str] = {}
    for name, measured in speeds.items():
        kind = name.partition(",")[0]
        if kind not in best or statistics.median(measured) > statistics.median(speeds[best[kind]]):
            best[kind] = name
    print("at the best micro-batch of each:")
    ours = max(
        (name for kind, name in best.items() if kind.startswith("hfbsz")),
        key=lambda name: statistics.median(speeds[name]),
    )
    numbers = compare({name: speeds[name] for name in best.values()}, ours, "tokens/s")
    for name in best.values():
        numbers[name]["peak_bytes"] = memory[name]
    return all(statistics.median(speeds[ours]) >= statistics.median(speeds[name]) for name in best.values()), numbers


def data(words: list[str], repeats: int, steps: int) -> tuple[bool, object]:
    """Time the preparation of documents; returns whether hfbsz has the highest median, and the numbers."""
    from data_speed import preparations

    with preparations(words) as ways:
        speeds = measure(ways, repeats)
    medians = {name: statistics.median(measured) for name, measured in speeds.items()}
    return medians["hfbsz"] >= max(medians.values()), compare(speeds, "hfbsz", "tokens/s")


def optimizers(words: list[str], repeats: int, steps: int) -> tuple[bool, object]:
    """Time a step of each optimizer, and print it with its share of a training step; returns True and the numbers."""
    from optimizer_speed import timed_steps

    works, training = timed_steps(words)
    times = {name: [1 / speed for speed in speeds] for name, speeds in measure(works, repeats).items()}
    numbers: dict[str, object] = {}
    for name, seconds in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        median = statistics.median(seconds)
        share = median / (median + training)
        numbers[name] = {"seconds": median, "low": min(seconds), "high": max(seconds), "share": share}
        print(
            f"{name:<14} {1e3 * median:8.2f} ms a step ({1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f}), "
            f"{share:5.1%} of a training step"
        )
    return True, numbers


def knee(words: list[str], repeats: int, steps: int) -> tuple[bool, object]:
    """Compare the knees of probes with an exhaustive search; returns whether all are within 5 % of its best
    throughput, and the numbers."""
    from knee_accuracy import knees_and_search

    from hfbsz.records.probe import KNEE_SHARE, common_pace

    knees, rounds = knees_and_search(words, repeats, steps)
    times = common_pace([list(one.values()) for one in rounds])
    speeds = {size: size / seconds for size, (seconds, _) in zip(rounds[0], times, strict=True)}
    best = max(speeds.values())
    for size, (_, error) in zip(speeds, times, strict=True):
        share = speeds[size] / best
        print(f"micro-batch {size:>3}: {speeds[size]:8.1f} rows/s, {share:.3f} (± {share * error:.3f}) of the best")
    shares = [speeds[size] / best for size in knees]
    print("knees: " + ", ".join(f"{size} ({share:.3f} of the best)" for size, share in zip(knees, shares, strict=True)))
    numbers = {"knees": knees, "shares": shares, "rows_per_second": speeds, "rounds": len(rounds)}
    return min(shares) >= KNEE_SHARE, numbers


def time_to_loss(words: list[str], repeats: int, steps: int) -> tuple[bool, object]:
    """Compare the wall times of the Trainer and of a recipe to the Trainer's final loss."""
    from time_to_loss import compare as compare_times

    recipes = [word for word in words if word.startswith("recipe=")]
    return compare_times(["recipe=small_batch_pretrain"], recipes, [word for word in words if word not in recipes])


def main(words: list[str]) -> int:
    return exit_code(lambda: run(words), "interrupted: the benchmark saved nothing")


def run(words: list[str]) -> int:
    pairs = [word.split("=", 1) for word in words[1:] if "=" in word]
    options = {key: value for key, value in pairs if key in ("repeats", "steps")}
    out = [value for key, value in pairs if key == "out"]
    benches = {
        "finetune": (finetune, "recipe=small_batch duration=15epochs", "10", "31"),
        "pretrain": (pretrain, "recipe=small_batch_pretrain", "10", "5"),
        "data": (data, "recipe=small_batch_pretrain", "10", "0"),
        "optimizers": (optimizers, "recipe=small_batch_pretrain", "10", "0"),
        "knee": (knee, "recipe=small_batch_pretrain", "5", "12"),
        "time_to_loss": (time_to_loss, "recipe=large_batch", "0", "0"),
    }
    if not words or words[0] not in ("startup", *benches) or not all(map(str.isdigit, options.values())):
        print(__doc__)
        return 2
    if words[0] == "startup":
        return 0 if startup(int(options.get("repeats", "5"))) else 1
    bench, default, repeats, steps = benches[words[0]]
    recipe = [f"{key}={value}" for key, value in pairs if key not in (*options, "out")]
    recipe = recipe if any(word.startswith("recipe=") for word in recipe) else [*default.split(), *recipe]
    fastest, numbers = bench(recipe, int(options.get("repeats", repeats)), int(options.get("steps", steps)))
    if out:
        Path(out[-1]).write_text(json.dumps(numbers, indent=1))
        if words[0] == "time_to_loss":
            from time_to_loss import picture

            picture(numbers, Path(out[-1]).with_suffix(".png"))
    return 0 if fastest else 1


if __name__ == "__main__":
    sys.exit(script(main))
