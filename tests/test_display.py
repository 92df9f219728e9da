"""What is shown of others' texts cannot steer a terminal, leave its line, flood it or tell a password."""

import io
import shlex

import pytest

from hfbsz.display import command, file_name, one_line, shortened, visible, without_passwords
from hfbsz.errors import UserError, described
from hfbsz.report.console import Console

STEERING = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\x00\x7f\udc80"


def steers(text: str) -> bool:
    return any((ord(sign) < 32 and sign not in "\n\t") or sign in "\x9b\u202e\udc80" for sign in text)


def test_case_s05_control_characters_are_written_out():
    told = visible(f"a\tlabel\n{STEERING}")
    assert told.startswith("a\tlabel\n\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e\\u2066\\x00\\x7f\\udc80")
    assert visible("ünïcode 日本語 🎉 עברית") == "ünïcode 日本語 🎉 עברית" and visible(told) == told


def test_case_s05_the_console_writes_them_out_whatever_is_told():
    out = io.StringIO()
    console = Console(out)
    console.line(f"line {STEERING}\nsecond")
    console.title(f"title [red]{STEERING}\n[/]")
    console.warn(f"warned {STEERING}\n")
    console.notes([f"a note of {STEERING}\nb"])
    console.preview([f"row {STEERING}\r\n ⟦{STEERING}⟧"])
    console.work(f"reading {STEERING}[/]", 1, 2)
    console.last_page(f"end {STEERING}", {"loss": STEERING}, "runs/x", [STEERING])  # type: ignore[arg-type]
    told = out.getvalue()
    assert not steers(told) and told.count("\\x1b[2J") == 10 and "title [red]" in told and "reading" in told
    assert len([line for line in told.splitlines() if line.startswith("note ")]) == 1 and "\\nb" in told


def test_a_mistake_is_one_visible_line_of_bounded_length():
    (line,) = UserError(f"data.label: {STEERING}\nsecond {'x' * 10**6} end").lines
    assert not steers(line) and "\n" not in line and len(line) < 2000 and line.endswith("end (1,000,081 characters)")
    assert described(ValueError(f"{STEERING} {'y' * 10**6}")).startswith("ValueError: \\x1b[2J") and not steers(line)
    assert shortened("short") == "short" and len(shortened("x" * 1000)) < 130


@pytest.mark.parametrize("url", ["https://me:hf_PLANTED@host/x", "http://hf_PLANTED@h", "hf+ssh://a:hf_PLANTED@h:1/"])
def test_passwords_of_urls_are_never_told(url):
    assert "PLANTED" not in one_line(f"cannot reach {url}: down") and "****@h" in without_passwords(url)
    assert without_passwords("https://host/a@b") == "https://host/a@b"


def test_commands_are_typed_as_they_are_shown():
    words = ["python", "scripts/report.py", "my runs/$(touch x)'s", "data.files=texts/*.txt"]
    assert shlex.split(command(*words)) == words and command("recipe=debug") == "recipe=debug"


def test_a_name_is_one_part_of_a_path():
    assert file_name("../a/b\\c\nd\x1be") == "..-a-b-c-d-e" and len(file_name("x" * 300)) == 100
