"""How much memory a process may still take."""

import platform
import subprocess
import sys

import psutil
import pytest

from hfbsz.system import memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A control group of version 2 with a limit in a group above it."""
    monkeypatch.setattr(memory, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS_OF_PROCESS", tmp_path / "of_process")
    (tmp_path / "of_process").write_text("0::/job/step\n")
    (tmp_path / "job/step").mkdir(parents=True)
    (tmp_path / "job/memory.max").write_text("2000\n")
    (tmp_path / "job/memory.current").write_text("1500\n")
    (tmp_path / "job/memory.stat").write_text("anon 100\ninactive_file 300\n")
    (tmp_path / "job/step/memory.max").write_text("max\n")
    (tmp_path / "job/step/memory.current").write_text("1500\n")
    return tmp_path


def test_a_limit_of_a_control_group_above_is_seen_and_page_cache_is_free(groups):
    assert memory.headroom() == (2000 - (1500 - 300), "memory that the control group leaves")


def test_without_a_limit_it_is_the_available_memory(groups):
    (groups / "job/memory.max").write_text("max\n")
    room = memory.headroom()
    assert room.source == "available memory" and room.bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)


_PEAK = """
import sys
from hfbsz.system import memory
if sys.argv[1] == "keep":
    memory.keep_freed_memory()
before = memory.resident_bytes()
large = bytearray(300 * 2**20)
large[::4096] = b"1" * len(large[::4096])
del large
assert memory.peak_bytes() > before + 250 * 2**20
memory.reset_peak()
assert memory.peak_bytes() < before + 50 * 2**20
"""


@pytest.mark.parametrize("kept", ["keep", "default"])
def test_the_peak_is_measured_anew_after_a_reset(kept):
    ended = subprocess.run([sys.executable, "-c", _PEAK, kept], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


_FAULTS = """
import resource, sys, torch
from hfbsz.system.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    for _ in range(10):
        torch.zeros(16 * 2**20).add_(1)  # 64 MiB
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is a function of glibc")
def test_kept_memory_is_used_again():
    """By default a freed block of 64 MiB goes back to the system, page by page."""
    faults = {
        name: int(subprocess.run([sys.executable, "-c", _FAULTS, name], check=True, capture_output=True).stdout)
        for name in ("keep", "default")
    }
    assert faults["keep"] < 1000 < faults["default"]
