"""Display untrusted text safely: without control characters, on one line, of bounded length, without passwords."""

import re
import shlex

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)  # C0, C1, line separators, text direction, surrogates
_NOT_IN_A_NAME = re.compile(rf"[/\\\n]|{_CONTROL.pattern}")
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")  # of the Hugging Face Hub
_MAX_LENGTH = 2000  # characters of a line
_HEAD, _TAIL = 1400, 400  # characters shown from the start and the end of a longer line


def visible(text: str) -> str:
    r"""The text with control characters escaped (`\x1b`, `\u202e`), except tabs and line breaks."""
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    """The text as one line of at most about 2000 characters, with control characters escaped and passwords hidden."""
    return shortened(without_passwords(visible(text).replace("\n", "\\n")), _HEAD, _TAIL, _MAX_LENGTH)


def shortened(text: str, head: int = 80, tail: int = 20, most: int = 120) -> str:
    """The text; if it has more than `most` characters, only its first `head` and last `tail` ones, and its length."""
    return text if len(text) <= most else f"{text[:head]} … {text[-tail:]} ({len(text):,} characters)"


def quoted(value: object) -> str:
    """The repr of a value, shortened, for messages."""
    return shortened(repr(value))


def without_passwords(text: str) -> str:
    """The text with user names, passwords and tokens in URLs, and tokens of the Hub, replaced by ****."""
    return _TOKEN.sub("hf_****", _PASSWORD.sub(r"\1****@", text))


def has_password(text: str) -> bool:
    """Whether the text contains a token of the Hub, or a URL with a user name, token or password."""
    return _PASSWORD.search(text) is not None or _TOKEN.search(text) is not None


def file_name(text: str) -> str:
    """The text as a file name: separators and control characters become `-`, at most 100 characters."""
    return _NOT_IN_A_NAME.sub("-", text)[:100]


def with_minus(number: str) -> str:
    """A formatted number with a minus sign instead of a hyphen."""
    return f"−{number[1:]}" if number.startswith("-") else number


def command(*words: object) -> str:
    """A command line of these words, quoted for a shell."""
    return shlex.join(map(str, words))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\\r" if match[0] == "\r" else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
