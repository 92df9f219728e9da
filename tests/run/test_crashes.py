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

WORDS = [TINY, "duration=12steps", "checkpoint.every=5steps", "eval.every=50%", "checkpoint.save=best", "threads=1"]
SAMPLE = 5  # points of each kind in the suite
FRESH, RESUMED = "fresh", "resumed"


class Case:
    """A command whose run and cache lie in one folder, which is copied from `start`."""

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
    folder = case.fresh("whole")
    ended, operations = case.crash(folder, 0, False)
    assert ended.code == 0, ended.err
    assert len(operations) > 100
    return folder


@pytest.fixture(scope="module")
def half(hfbsz, ragged, tmp_path_factory, unbroken):
    """A run that was killed where the second checkpoint was begun."""
    case = Case(hfbsz, ragged, tmp_path_factory.mktemp("half"), None)
    folder = case.fresh("probe")
    _, operations = case.crash(folder, 0, False)
    second = next(number for number, line in enumerate(operations, 1) if "checkpoint-10" in line)
    folder = case.fresh("half")
    ended, _ = case.crash(folder, second, False)
    assert ended.code == -signal.SIGKILL and (folder / "run/checkpoint-5").is_dir()
    return folder


def names(folder: Path) -> list[str]:
    """All files but locks, the list of what W&B may have already of records that are written again, and the records of
    a start that ended before its first checkpoint."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".lock"]
    found = [path for path in found if path.name != "sent.json" and "attempt-1" not in path.parts]
    return sorted(map(str, found))


def holds(case: Case, unbroken: Path, number: int, power_cut: bool) -> str | None:
    """None, or what is wrong after a crash at an operation and the same command again."""
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
    if left := set(names(folder)) ^ set(names(unbroken)):
        return f"{at}: files {sorted(left)[:5]}"
    return None


def checked(case: Case, unbroken: Path, power_cut: bool, sample: int | None) -> list[str]:
    _, operations = case.crash(case.fresh("count"), 0, False)
    points = range(1, len(operations) + 1)
    chosen = points if sample is None else sorted(random.Random(sample).sample(points, sample))
    found = []
    for number in chosen:
        if problem := holds(case, unbroken, number, power_cut):
            found.append(problem)
            print(problem)
    print(f"{len(chosen)} points of {len(operations)}, {len(found)} wrong")
    return found


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("start", [FRESH, RESUMED])
def test_a_crash_at_some_file_operations(hfbsz, ragged, tmp_path, unbroken, half, start, power_cut):
    case = Case(hfbsz, ragged, tmp_path, None if start == FRESH else half)
    assert checked(case, unbroken, power_cut, SAMPLE) == []


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("start", [FRESH, RESUMED])
def test_a_crash_at_every_file_operation(hfbsz, ragged, tmp_path, unbroken, half, start, power_cut):
    case = Case(hfbsz, ragged, tmp_path, None if start == FRESH else half)
    found = checked(case, unbroken, power_cut, None)
    assert not found, os.linesep.join(found)


# a bit that flips


def flipped(folder: Path, draw: random.Random) -> str:
    """Flip one bit of one file in a folder, each file as likely as its size; says which."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    files = sorted(path for path in found if path.stat().st_size)
    path = draw.choices(files, [max(2000, path.stat().st_size) for path in files])[0]  # small files are flipped too
    raw = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
    return f"{path.relative_to(folder)}, bit {bit}"


def after_a_flip(case: Case, unbroken: Path, draw: random.Random) -> tuple[str, str]:
    """(what came of a flipped bit and the same command: found, harmless, of a record, or what is wrong; where)."""
    folder = case.fresh("flipped")
    where = flipped(folder, draw)
    again = case.run(folder)
    said = again.out + again.err
    if again.code:
        named = "Traceback" not in said and (folder / "run").name in said
        return ("found" if named else f"ended with {again.code}: {said[-300:]}"), where
    if not same_weights(folder / "run", unbroken / "run"):
        return "other weights", where
    for name in ("config.json", "tokenizer.json"):
        if (folder / "run" / name).read_bytes() != (unbroken / "run" / name).read_bytes():
            return f"another {name}", where
    if told(folder / "run") != told(unbroken / "run"):
        return ("of a record" if "records.jsonl" in where else "other records"), where
    return ("found" if "damaged" in said or "skipped" in said else "harmless"), where


def flips(case: Case, unbroken: Path, seed: int, count: int) -> list[str]:
    draw, found = random.Random(seed), Counter()
    wrong = []
    for _ in range(count):
        what, where = after_a_flip(case, unbroken, draw)
        found[what] += 1
        if what not in ("found", "harmless", "of a record"):
            wrong.append(f"{where}: {what}")
            print(wrong[-1])
    print(dict(found))
    return wrong


@pytest.mark.parametrize("start", ["half", "ended"])
def test_a_few_flipped_bits(hfbsz, ragged, tmp_path, unbroken, half, start):
    assert flips(Case(hfbsz, ragged, tmp_path, half if start == "half" else unbroken), unbroken, 0, 5) == []


@pytest.mark.slow
@pytest.mark.parametrize("start", ["half", "ended"])
def test_three_hundred_flipped_bits(hfbsz, ragged, tmp_path, unbroken, half, start):
    assert flips(Case(hfbsz, ragged, tmp_path, half if start == "half" else unbroken), unbroken, 1, 150) == []
