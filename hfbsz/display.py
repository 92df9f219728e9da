"""Texts of others as they are shown: none of them steers a terminal, leaves its line, floods it or tells a password."""

import re
import shlex

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # C0, C1, directions
_NOT_IN_A_NAME = re.compile(rf"[/\\\n]|{_STEERING.pattern}")
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE)
_LONGEST = 2000  # characters of a line
_HEAD, _TAIL = 1400, 400  # what is kept of a longer one


def visible(text: str) -> str:
    r"""A text of one line or several with its control characters written out (`\x1b`, `\u202e`), but for tabs."""
    return _STEERING.sub(_written_out, text)


def one_line(text: str) -> str:
    """A text as one visible line of bounded length, without the passwords of its URLs."""
    return shortened(without_passwords(visible(text).replace("\n", "\\n")), _HEAD, _TAIL, _LONGEST)


def shortened(text: str, head: int = 80, tail: int = 20, most: int = 120) -> str:
    """The beginning and the end of a text of more than `most` characters."""
    return text if len(text) <= most else f"{text[:head]} … {text[-tail:]} ({len(text):,} characters)"


def quoted(value: object) -> str:
    """A value as it is told of in a message: its repr, shortened."""
    return shortened(repr(value))


def without_passwords(text: str) -> str:
    return _PASSWORD.sub(r"\1****@", text)


def has_password(text: str) -> bool:
    """Whether a URL in the text holds a user's name, token or password."""
    return _PASSWORD.search(text) is not None


def file_name(text: str) -> str:
    """A text as one part of a path: without separators and control characters, and not too long."""
    return _NOT_IN_A_NAME.sub("-", text)[:100]


def command(*words: object) -> str:
    """A command as it is typed in a shell."""
    return shlex.join(map(str, words))


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\\r" if found[0] == "\r" else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
