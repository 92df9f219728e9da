"""Untrusted text is displayed without control characters, on one line, of bounded length, without passwords."""

import io
import shlex

import pytest

from hfbsz.display import command, file_name, one_line, shortened, visible, without_passwords
from hfbsz.errors import UserError, describe_error
from hfbsz.recipe.load import load
from hfbsz.report.console import Console

STEERING = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\x00\x7f\udc80"


def steers(text: str) -> bool:
    return any((ord(sign) < 32 and sign not in "\n\t") or sign in "\x9b\u202e\udc80" for sign in text)


def test_case_s05_control_characters_are_escaped():
    shown = visible(f"a\tlabel\n{STEERING}")
    assert shown.startswith("a\tlabel\n\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e\\u2066\\x00\\x7f\\udc80")
    assert visible("ünïcode 日本語 🎉 עברית") == "ünïcode 日本語 🎉 עברית" and visible(shown) == shown


def test_case_s05_the_console_escapes_control_characters():
    out = io.StringIO()
    console = Console(out)
    console.line(f"line {STEERING}\nsecond")
    console.title(f"title [red]{STEERING}\n[/]")
    console.warn(f"warned {STEERING}\n")
    console.notes([f"a note of {STEERING}\nb"])
    console.preview([f"row {STEERING}\r\n ⟦{STEERING}⟧"])
    console.work(f"reading {STEERING}[/]", 1, 2)
    console.last_page(f"end {STEERING}", {"loss": STEERING}, "runs/x", [STEERING])  # type: ignore[arg-type]
    shown = out.getvalue()
    assert not steers(shown) and shown.count("\\x1b[2J") == 10 and "title [red]" in shown and "reading" in shown
    assert len([line for line in shown.splitlines() if line.startswith("note ")]) == 1 and "\\nb" in shown


def test_an_error_is_one_visible_line_of_bounded_length():
    (line,) = UserError(f"data.label: {STEERING}\nsecond {'x' * 10**6} end").lines
    assert not steers(line) and "\n" not in line and len(line) < 2000 and line.endswith("end (1,000,081 characters)")
    assert describe_error(ValueError(f"{STEERING} {'y' * 10**6}")).startswith("ValueError: \\x1b[2J") and not steers(
        line
    )
    assert shortened("short") == "short" and len(shortened("x" * 1000)) < 130


@pytest.mark.parametrize("url", ["https://me:hf_PLANTED@host/x", "http://hf_PLANTED@h", "hf+ssh://a:hf_PLANTED@h:1/"])
def test_passwords_in_urls_are_hidden(url):
    assert "PLANTED" not in one_line(f"cannot reach {url}: down") and "****@h" in without_passwords(url)
    assert without_passwords("https://host/a@b") == "https://host/a@b"


def test_tokens_of_the_hub_are_hidden_and_not_in_a_recipe():
    token = "hf_PLANTED" + "x" * 27
    for word in (f"hub_token={token}", f"log.group={token}", f"hub.id=me/{token}"):
        with pytest.raises(UserError) as caught:
            load(["recipe=debug", word])
        assert all("PLANTED" not in line for line in caught.value.lines)
    assert one_line("hf_hub_download and hf_xet are names") == "hf_hub_download and hf_xet are names"


def test_commands_are_quoted_for_a_shell():
    words = ["python", "scripts/report.py", "my runs/$(touch x)'s", "data.files=texts/*.txt"]
    assert shlex.split(command(*words)) == words and command("recipe=debug") == "recipe=debug"


def test_file_names_have_no_separators():
    assert file_name("../a/b\\c\nd\x1be") == "..-a-b-c-d-e" and len(file_name("x" * 300)) == 100
