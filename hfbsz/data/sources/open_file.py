"""How a file is opened: what the recipe says of its format, decompression, and the encoding of its text."""

import bz2
import codecs
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from hfbsz.data.sources.texts import unescape
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import Origin

CHUNK = 2**18  # bytes that are read at once

_BOMS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")


def _zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), CHUNK)


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


_MARKS = {
    ".gz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zX",),
    ".zst": (
        b"\x28\xb5\x2f\xfd",
        *(bytes([sign]) + b"\x2a\x4d\x18" for sign in range(0x50, 0x60)),
    ),  # and skipped frames
}


@dataclass(frozen=True)
class Format:
    """What a recipe's part says of the format of its files (`Origin.FORMAT`); messages name the part's fields."""

    part: str = "data"
    format: str = "auto"
    delimiter: str | None = None
    quoting: str = "auto"
    header: bool | tuple[str, ...] = True
    comment: str | None = None
    skip_lines: int = 0
    encoding: str | None = None
    json_field: str | None = None
    separator: str | None = None

    @classmethod
    def of(cls, origin: Origin, part: str) -> "Format":
        """Of a recipe's part. Raises UserError for an encoding that Python does not have, and for texts that cannot
        separate fields or begin comments."""
        values = {name: getattr(origin, name) for name in Origin.FORMAT}
        if isinstance(values["header"], list):
            values["header"] = _names(values["header"], part)
        if values["delimiter"] is not None:
            values["delimiter"] = _delimiter(values["delimiter"], values["quoting"], part)
        if values["encoding"] is not None:
            values["encoding"] = _encoding(values["encoding"], part)
        if values["comment"] is not None and not values["comment"].strip():
            raise UserError(f"{part}.comment: {values['comment']!r} begins no comment: write a text such as '#'")
        return cls(part, **values)

    def given(self) -> dict[str, Any]:
        """The fields that are not as by default: the part of a cache's key."""
        plain = asdict(Format(self.part))
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


def _names(names: list[str], part: str) -> tuple[str, ...]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{part}.header: two columns have the name {twice[0]!r}")
    if not names:
        raise UserError(f"{part}.header: it names no column: write {part}.header=[text,label], or false")
    return tuple(names)


def _delimiter(text: str, quoting: str, part: str) -> str:
    delimiter = unescape(text)
    if not delimiter or any(sign in delimiter for sign in '"\r\n'):
        raise UserError(f"{part}.delimiter: {text!r} separates no fields: write a text such as ';' or '\\t'")
    if len(delimiter) > 1 and quoting == "minimal":
        raise UserError(f"{part}.delimiter: fields in quotes are separated by one character, not by {text!r}")
    return delimiter


def _encoding(name: str, part: str) -> str:
    known = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252", "cp1251", "gb18030", "shift_jis")
    try:
        found = codecs.lookup(name)
        is_text = getattr(found, "_is_text_encoding", True)
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise UserError(
            f"{part}.encoding: Python has no text encoding {name!r}{did_you_mean(name, known)}; such are "
            + ", ".join(known)
        )
    return name


def packed_by(path: Path) -> str:
    """The ending by which a file is compressed, or an empty string."""
    return ending if (ending := path.suffix.lower()) in _OPENERS else ""


def is_packed(path: Path) -> bool:
    """Whether a file that is named so begins as a compressed one does."""
    with path.open("rb") as file:
        return file.read(4).startswith(_MARKS[packed_by(path)])


def ending_of(path: Path) -> str:
    """The ending that tells a file's format: before that of a compression."""
    return Path(path.stem if packed_by(path) else path.name).suffix.lower()


def open_bytes(path: Path) -> IO[bytes]:
    """A file's content, decompressed by its ending."""
    opened: IO[bytes] = _OPENERS.get(path.suffix.lower(), lambda path: path.open("rb"))(path)
    return opened


@dataclass(frozen=True)
class Encoding:
    """How the text of a file is encoded: Python's name, and the one for people."""

    codec: str
    label: str
    note: str | None = None


def encoding_of(path: Path, form: Format) -> Encoding:
    """By a byte order mark, else as the recipe says, else UTF-8."""
    with open_bytes(path) as file:
        head = file.read(4)
    for mark, codec, label in _BOMS:
        if head.startswith(mark):
            wish = form.encoding
            same = wish is None or codecs.lookup(wish).name.split("-")[:2] == codec.split("-")[:2]
            note = None if same else f"it begins with a byte order mark and is read as {codec}, not as {wish}"
            return Encoding(codec, label, note)
    return Encoding(form.encoding or "utf-8", form.encoding or "UTF-8")


def open_text(path: Path, form: Format) -> IO[str]:
    """A file's text, with its line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding_of(path, form).codec, newline="")


def not_decodable(path: Path, form: Format) -> str:
    """What is wrong with a file that cannot be decoded: the line, what stands there, and what reads it."""
    encoding = encoding_of(path, form)
    line, wrong, others = _first_wrong(path, encoding.codec)
    shown = repr(wrong)[2:-1]
    where = f"{path}:{line}: not {encoding.label} text (the bytes {shown})"
    if encoding.codec != codecs.lookup("utf-8").name:
        is_utf8 = form.encoding is not None and not _first_wrong(path, "utf-8")[1]
        return f"{where}: " + (
            f"it is UTF-8: leave out {form.part}.encoding" if is_utf8 else "the file is damaged there"
        )
    if others:
        return f"{where}, though text before it is UTF-8: the file is damaged there: mend or remove the line"
    fits = [(name, text) for name in _candidates(wrong) if (text := _decoded(path, wrong, name)) is not None]
    fits = [fit for fit in fits if fit[0] != "latin-1" or len(fits) == 1]  # which reads everything
    listed = ", ".join(f"{form.part}.encoding={name} reads them as {text!r}" for name, text in fits)
    return f"{where}: {listed or 'convert it to UTF-8'}"


def _first_wrong(path: Path, codec: str) -> tuple[int, bytes, bool]:
    """The line of the first bytes that cannot be decoded, they and what stands around them, and whether characters
    beyond ASCII were decoded before."""
    decoder = codecs.getincrementaldecoder(codec)()
    line, others, ended_by_return = 1, False, False
    for chunk in _chunks(path):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as problem:
            before = problem.object[: problem.start].decode(codec, "replace")
            others = others or not before.isascii()
            start = max(problem.object.rfind(b"\n", 0, problem.start) + 1, problem.start - 12)
            end = re.search(rb"[\r\n]|$", problem.object[problem.end : problem.end + 12])
            wrong = problem.object[start : problem.end + (end.start() if end else 0)]
            return line + len(_LINE_END.findall(before)), wrong, others
        others = others or not text.isascii()
        line += len(_LINE_END.findall(text)) - (ended_by_return and text.startswith("\n"))
        ended_by_return = text.endswith("\r")
    return line, b"", others


def _chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, and an empty end."""
    with open_bytes(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield b""


def _candidates(wrong: bytes) -> tuple[str, ...]:
    """Encodings that the bytes may be of: single accents stand between letters, other scripts in runs."""
    runs = re.findall(rb"[\x80-\xff]+", wrong)
    if max(map(len, runs), default=0) < 3:
        return ("cp1252", "latin-1")
    return ("cp1251", "gb18030", "shift_jis", "euc_kr", "cp1252")


def _decoded(path: Path, wrong: bytes, codec: str) -> str | None:
    """The bytes as an encoding reads them, where it reads the whole file."""
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        for chunk in _chunks(path):
            decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        return None
    return wrong.decode(codec, "replace")
