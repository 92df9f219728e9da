"""A run that ends at any of its file operations, then the same command again: the unbroken run, and nothing left."""

import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import TINY
from test_resume import same_weights, told

from hfbsz.records.folder import read_status

pytestmark = pytest.mark.process

WORDS = [TINY, "duration=12steps", "checkpoint.every=5steps", "eval.every=50%", "checkpoint.save=best", "threads=1"]
SAMPLE = 5  # points of each kind in the suite
FRESH, RESUMED = "fresh", "resumed"


class Case:
    """A command with its run and cache in one folder, a copy of `start`."""

    def __init__(self, hfbsz, ragged, tmp_path, start: Path | None):
        self.hfbsz, self.tmp_path, self.start = hfbsz, tmp_path, start
        self.words = [*WORDS, f"data.files={ragged}"]

    def fresh(self, name: str) -> Path:
        folder = self.tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        if self.start is None:
            folder.mkdir()
        else:
            shutil.copytree(self.start, folder, symlinks=True)
        return folder

    def run(self, folder: Path, **env: object):
        env |= {"HFBSZ_CACHE": folder / "cache"}
        return self.hfbsz("pretrain.py", *self.words, f"output_dir={folder}/run", env=env)

    def crash(self, folder: Path, number: int, power_cut: bool):
        log = self.tmp_path / "log"
        log.unlink(missing_ok=True)
        ended = self.run(folder, CRASH_AT=number, CRASH_IN=folder, CRASH_POWER=int(power_cut), CRASH_LOG=log)
        return ended, log.read_text().splitlines()


@pytest.fixture(scope="module")
def unbroken(hfbsz, ragged, tmp_path_factory):
    case = Case(hfbsz, ragged, tmp_path_factory.mktemp("unbroken"), None)
    folder = case.fresh("unbroken")
    ended, operations = case.crash(folder, 0, False)
    assert ended.code == 0, ended.err
    assert len(operations) > 100
    return folder


@pytest.fixture(scope="module")
def half(hfbsz, ragged, tmp_path_factory, unbroken):
    """A run that was killed when it began to write the second checkpoint."""
    case = Case(hfbsz, ragged, tmp_path_factory.mktemp("half"), None)
    folder = case.fresh("probe")
    _, operations = case.crash(folder, 0, False)
    second = next(number for number, line in enumerate(operations, 1) if "checkpoint-10" in line)
    folder = case.fresh("half")
    ended, _ = case.crash(folder, second, False)
    assert ended.code == -signal.SIGKILL and (folder / "run/checkpoint-5").is_dir()
    return folder


def names(folder: Path) -> list[str]:
    """All files but locks, the list of records that W&B may already have, and the records of a start that ended before
    its first checkpoint."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".lock"]
    paths = [path for path in paths if path.name != "sent.json" and "attempt-1" not in path.parts]
    return sorted(map(str, paths))


def problem_after_crash(case: Case, unbroken: Path, number: int, power_cut: bool) -> str | None:
    """What is wrong after a crash at an operation and a second run of the same command; None if nothing is."""
    folder = case.fresh("run")
    ended, operations = case.crash(folder, number, power_cut)
    if ended.code != -signal.SIGKILL:
        return None if ended.code == 0 else f"ended with {ended.code}: {ended.err[-300:]}"
    at = operations[-1]
    again = case.run(folder)
    if again.code != 0 or read_status(folder / "run").get("state") != "finished":
        return f"{at}: the same command ended with {again.code}: {again.err[-300:]}"
    if not same_weights(folder / "run", unbroken / "run"):
        return f"{at}: other weights"
    if told(folder / "run") != told(unbroken / "run"):
        return f"{at}: other records"
    if differing := set(names(folder)) ^ set(names(unbroken)):
        return f"{at}: files {sorted(differing)[:5]}"
    return None


def problems_after_crashes(case: Case, unbroken: Path, power_cut: bool, sample: int | None) -> list[str]:
    _, operations = case.crash(case.fresh("count"), 0, False)
    points = range(1, len(operations) + 1)
    selected = points if sample is None else sorted(random.Random(sample).sample(points, sample))
    problems = []
    for number in selected:
        if problem := problem_after_crash(case, unbroken, number, power_cut):
            problems.append(problem)
            print(problem)
    print(f"{len(selected)} points of {len(operations)}, {len(problems)} wrong")
    return problems


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("start", [FRESH, RESUMED])
def test_a_crash_at_some_file_operations(hfbsz, ragged, tmp_path, unbroken, half, start, power_cut):
    case = Case(hfbsz, ragged, tmp_path, None if start == FRESH else half)
    assert problems_after_crashes(case, unbroken, power_cut, SAMPLE) == []


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("start", [FRESH, RESUMED])
def test_a_crash_at_every_file_operation(hfbsz, ragged, tmp_path, unbroken, half, start, power_cut):
    case = Case(hfbsz, ragged, tmp_path, None if start == FRESH else half)
    problems = problems_after_crashes(case, unbroken, power_cut, None)
    assert not problems, os.linesep.join(problems)


# flipped bits


def flip_a_bit(folder: Path, draw: random.Random) -> str:
    """Flip one bit of one file in a folder, drawn in proportion to size; returns the file and the bit."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    files = sorted(path for path in paths if path.stat().st_size)
    path = draw.choices(files, [max(2000, path.stat().st_size) for path in files])[0]  # small files are flipped too
    raw = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
    return f"{path.relative_to(folder)}, bit {bit}"


def result_of_flip(case: Case, unbroken: Path, draw: random.Random) -> tuple[str, str]:
    """(result, place) of a flipped bit and a second run of the same command. The result is `detected`, `harmless`,
    `of a record`, or what is wrong."""
    folder = case.fresh("flipped")
    where = flip_a_bit(folder, draw)
    again = case.run(folder)
    output = again.out + again.err
    if again.code:
        named = "Traceback" not in output and (folder / "run").name in output
        return ("detected" if named else f"ended with {again.code}: {output[-300:]}"), where
    if not same_weights(folder / "run", unbroken / "run"):
        return "other weights", where
    for name in ("config.json", "tokenizer.json"):
        if (folder / "run" / name).read_bytes() != (unbroken / "run" / name).read_bytes():
            return f"another {name}", where
    if told(folder / "run") != told(unbroken / "run"):
        return ("of a record" if "records.jsonl" in where else "other records"), where
    return ("detected" if "damaged" in output or "skipped" in output else "harmless"), where


def flips(case: Case, unbroken: Path, seed: int, count: int) -> list[str]:
    draw, counts = random.Random(seed), Counter()
    wrong = []
    for _ in range(count):
        result, where = result_of_flip(case, unbroken, draw)
        counts[result] += 1
        if result not in ("detected", "harmless", "of a record"):
            wrong.append(f"{where}: {result}")
            print(wrong[-1])
    print(dict(counts))
    return wrong


@pytest.mark.parametrize("start", ["half", "ended"])
def test_a_few_flipped_bits(hfbsz, ragged, tmp_path, unbroken, half, start):
    assert flips(Case(hfbsz, ragged, tmp_path, half if start == "half" else unbroken), unbroken, 0, 5) == []


@pytest.mark.slow
@pytest.mark.parametrize("start", ["half", "ended"])
def test_three_hundred_flipped_bits(hfbsz, ragged, tmp_path, unbroken, half, start):
    assert flips(Case(hfbsz, ragged, tmp_path, half if start == "half" else unbroken), unbroken, 1, 150) == []
