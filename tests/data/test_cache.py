"""The cache: read-only, full, incomplete, or used by two processes at once."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import json_lines, kept_entries, made, tokens
from filelock import FileLock

from hfbsz.data import cache
from hfbsz.data.cache import obtain
from hfbsz.data.contents import Absent, verify
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, save_tokenizer
from hfbsz.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    return str(json_lines(tmp_path / "x.jsonl"))


def locked(self):
    raise PermissionError(errno.EACCES, "Permission denied", str(self.lock_file))


def test_a_complete_cache_that_is_read_only_is_used(corpus, monkeypatch):
    first = made(files=corpus)
    entry = first.tokenizer_path.parent
    monkeypatch.setattr(FileLock, "_acquire", locked)  # root may write everything
    assert tokens(made(files=corpus).train) == tokens(first.train)
    (entry / "meta.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        made(files=corpus)
    assert caught.value.lines == (
        f"{entry}/meta.json is damaged and cannot be rebuilt: {entry.parent}: the cache cannot be written: "
        "Permission denied: set HFBSZ_CACHE",
    )


def test_a_cache_on_a_disk_that_is_mounted_read_only_is_used(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        "from hfbsz.data.rows import Data, UserError, prepare\n"
        "import subprocess, sys\n"
        "def made(**more):\n"
        f"    data = Data(files={corpus!r}, vocab_size=300, sequence_length=16, validation='20%', **more)\n"
        "    try: return [len(row) for row in map(prepare(data, {}, lambda *_: None).train.__getitem__, range(9))]\n"
        "    except UserError as problem: return problem.lines\n"
        "first = made()\n"
        f"subprocess.run(['mount', '-o', 'remount,ro', {str(disk)!r}], check=True)\n"
        "print(made() == first == [17] * 9)\n"
        "print(*made(pack=False))\n"
    )
    command = f'mount -t tmpfs -o size=4m none {disk} && HFBSZ_CACHE={disk} {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command, script], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    complete, new = done.stdout.splitlines()
    assert complete == "True" and new == f"{disk}: the cache cannot be written: Read-only file system: set HFBSZ_CACHE"


def test_leftovers_of_killed_preparations_are_removed_and_running_ones_are_not(corpus):
    entry = made(files=corpus).tokenizer_path.parent
    folder = entry.parent
    dead, alive, foreign = (folder / f"{name}.tmp" for name in ("0123456789abcdef", "package-0123456789abcdef", "mine"))
    for path in (dead, alive, foreign):
        path.mkdir()
        (path / "train.arrow").write_bytes(b"x" * 100)
    with FileLock(folder / "package-0123456789abcdef.lock"):  # as a running process holds it
        made(files=corpus)
    assert not dead.exists() and alive.is_dir() and foreign.is_dir()
    made(files=corpus)
    assert not alive.exists() and kept_entries() == sorted([entry.name, "mine.tmp"])


def test_leftovers_of_a_killed_preparation_are_removed_by_the_next(corpus):
    script = (
        "import os, signal, sys; sys.path.insert(0, 'tests/data')\nfrom corpora import made\n"
        "from hfbsz.data.prepare.corpus import Builder\n"
        "Builder._manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"made(files={corpus!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -9
    assert [name for name in kept_entries() if name.endswith(".tmp")]
    made(files=corpus, sequence_length=8)  # another entry
    assert [name for name in kept_entries() if name.endswith(".tmp")] == []


def test_two_processes_build_an_entry_once(corpus):
    script = (
        "import sys, time; sys.path.insert(0, 'tests/data')\nfrom corpora import made\nfrom hfbsz.data import rows\n"
        "_write, ready = rows.write_blocks, []\n"
        "rows.write_blocks = lambda path: (print('made', path.name), time.sleep(0.2), _write(path))\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        f"print(made(files={corpus!r}).train[0].tolist())"
    )
    settings = {"cwd": ROOT, "text": True}
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, stdin=-1, stdout=-1, **settings) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.close()
    lines = [process.stdout.read().splitlines() for process in both]
    assert [process.wait() for process in both] == [0, 0] and lines[0][-1] == lines[1][-1]
    assert sorted(map(len, lines)) == [1, 3], lines  # one of them made two Arrow files


def failed(problem, entry):
    def make(folder):
        (folder / "half").write_text("x")
        raise problem

    with pytest.raises(UserError) as caught:
        obtain(entry, lambda: verify(entry), make)
    assert kept_entries() == []
    return caught.value.lines


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "{cache}: no disk space left for the cache"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "{cache}: no disk space left for the cache"),
        (Exception("No space left on device (os error 28)"), "{cache}: no disk space left for the cache"),  # tokenizers
        (OSError(errno.EIO, "Input/output error"), "{cache}: the cache cannot be written: Input/output error"),
        (OSError("no number"), "{cache}: the cache cannot be written: no number"),
        (OSError(errno.EACCES, "Permission denied", "/a/corpus.txt"), "/a/corpus.txt: Permission denied"),
    ],
)
def test_messages_of_system_errors(tmp_path, monkeypatch, problem, line):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path))
    (line_seen,) = failed(problem, tmp_path / "0123456789abcdef")
    assert line_seen.startswith(line.format(cache=tmp_path))
    assert ("free some" in line_seen) is ("no disk space" in line_seen)


def test_the_tokenizers_library_reports_a_full_disk_too(corpus, tmp_path, monkeypatch):
    def full(folder):
        raise Exception("No space left on device (os error 28)")

    tokenizer = load_tokenizer(made(files=corpus).tokenizer_path)
    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError) as caught:
        save_tokenizer(tokenizer, tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_files_follow_the_umask_and_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    synced, entry = [], tmp_path / "0123456789abcdef"
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(os.readlink(f"/proc/self/fd/{number}")), real(number))
    )

    def make(folder):
        (folder / "deep").mkdir()
        for name in ("deep/private", "plain"):
            (folder / name).write_text("x")
        (folder / "deep/private").chmod(0o600)  # as safetensors writes

    before = os.umask(0o027)
    try:
        with pytest.raises(Absent):
            verify(entry)
        obtain(entry, lambda: verify(entry), make)
    finally:
        os.umask(before)
    modes = {path.relative_to(entry).as_posix(): path.stat().st_mode & 0o777 for path in entry.rglob("*")}
    assert modes == {"deep": 0o750, "deep/private": 0o640, "plain": 0o640, "contents.json": 0o640}
    partial = f"{entry}.tmp"
    assert sorted(synced[:-1]) == [partial, *(f"{partial}/{name}" for name in sorted(modes))]
    assert synced[-2:] == [partial, str(tmp_path)]  # the folder around it last, after the renaming


def test_an_entry_is_verified_again_only_if_it_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path))
    entry, calls = tmp_path / "package-0123456789abcdef", []
    real = cache.verify
    monkeypatch.setattr(cache, "verify", lambda path: (calls.append(path), real(path)))

    def make(folder):
        (folder / "x").write_text("content")

    assert cache.keep(entry, make) is None and cache.keep(entry, make) is None
    count = len(calls)
    assert cache.keep(entry, make) is None and len(calls) == count
    (entry / "x").write_text("c0ntent")
    assert cache.keep(entry, make) == "x" and (entry / "x").read_text() == "content"
