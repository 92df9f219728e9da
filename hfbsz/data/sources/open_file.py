"""How a file is opened: the recipe's fields on its format, decompression, and the encoding of its text."""

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

CHUNK = 2**18  # bytes per read

_BOMS = (  # longer marks first: that of UTF-32 starts with that of UTF-16
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
_SIGNATURES = {
    ".gz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zX",),
    ".zst": (  # a frame, or a skippable frame
        b"\x28\xb5\x2f\xfd",
        *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60)),
    ),
}


@dataclass(frozen=True)
class ReadOptions:
    """The fields of a recipe's part (`Origin.FORMAT`) that say how its files are read; messages name that part."""

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
    def of(cls, origin: Origin, part: str) -> "ReadOptions":
        """The options of a recipe's part. Raises UserError for an encoding unknown to Python, and for an invalid
        header, delimiter or comment prefix."""
        values = {name: getattr(origin, name) for name in Origin.FORMAT}
        if isinstance(values["header"], list):
            values["header"] = _checked_header(values["header"], part)
        if values["delimiter"] is not None:
            values["delimiter"] = _checked_delimiter(values["delimiter"], values["quoting"], part)
        if values["encoding"] is not None:
            values["encoding"] = _checked_encoding(values["encoding"], part)
        if values["comment"] is not None and not values["comment"].strip():
            raise UserError(f"{part}.comment: {values['comment']!r} cannot start a comment: write a text such as '#'")
        return cls(part, **values)

    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults; they are part of the cache key."""
        defaults = asdict(ReadOptions(self.part))
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def _checked_header(names: list[str], part: str) -> tuple[str, ...]:
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{part}.header: two columns have the name {duplicates[0]!r}")
    if not names:
        raise UserError(f"{part}.header: it names no column: write {part}.header=[text,label], or false")
    return tuple(names)


def _checked_delimiter(text: str, quoting: str, part: str) -> str:
    delimiter = unescape(text)
    if not delimiter or any(character in delimiter for character in '"\r\n'):
        raise UserError(f"{part}.delimiter: {text!r} cannot separate fields: write a text such as ';' or '\\t'")
    if len(delimiter) > 1 and quoting == "minimal":
        raise UserError(
            f"{part}.delimiter: {text!r} has several characters: with {part}.quoting=minimal it must be one character"
        )
    return delimiter


def _checked_encoding(name: str, part: str) -> str:
    common = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252", "cp1251", "gb18030", "shift_jis")
    try:
        codec = codecs.lookup(name)
        is_text = getattr(codec, "_is_text_encoding", True)
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise UserError(
            f"{part}.encoding: Python has no text encoding {name!r}{did_you_mean(name, common)}; examples are "
            + ", ".join(common)
        )
    return name


def compression_suffix(path: Path) -> str:
    """`.gz`, `.bz2`, `.xz` or `.zst` if the file name ends in one of them, else an empty string."""
    return suffix if (suffix := path.suffix.lower()) in _OPENERS else ""


def is_compressed(path: Path) -> bool:
    """Whether the first bytes of a file with a compression suffix are those of that compression."""
    with path.open("rb") as file:
        return file.read(4).startswith(_SIGNATURES[compression_suffix(path)])


def format_suffix(path: Path) -> str:
    """The suffix that gives the format of a file, in lower case: the one before a compression suffix."""
    return Path(path.stem if compression_suffix(path) else path.name).suffix.lower()


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, decompressed according to its suffix."""
    file: IO[bytes] = _OPENERS.get(path.suffix.lower(), lambda path: path.open("rb"))(path)
    return file


@dataclass(frozen=True)
class Encoding:
    """The text encoding of a file: Python's codec name, a label for messages, and a note if the recipe differs."""

    codec: str
    label: str
    note: str | None = None


def encoding_of(path: Path, options: ReadOptions) -> Encoding:
    """The encoding given by a byte order mark, else by the recipe, else UTF-8."""
    with open_bytes(path) as file:
        head = file.read(4)
    for bom, codec, label in _BOMS:
        if head.startswith(bom):
            requested = options.encoding
            same = requested is None or codecs.lookup(requested).name.split("-")[:2] == codec.split("-")[:2]
            note = None if same else f"it begins with a byte order mark and is read as {codec}, not as {requested}"
            return Encoding(codec, label, note)
    return Encoding(options.encoding or "utf-8", options.encoding or "UTF-8")


def open_text(path: Path, options: ReadOptions) -> IO[str]:
    """Open a file for reading text, with its line ends unchanged."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding_of(path, options).codec, newline="")


def not_decodable(path: Path, options: ReadOptions) -> str:
    """The message for a file that cannot be decoded: the line, the bytes, and an encoding that fits."""
    encoding = encoding_of(path, options)
    line, wrong, has_non_ascii = _first_undecodable(path, encoding.codec)
    shown = repr(wrong)[2:-1]
    where = f"{path}:{line}: not {encoding.label} text (the bytes {shown})"
    if encoding.codec != codecs.lookup("utf-8").name:
        is_utf8 = options.encoding is not None and not _first_undecodable(path, "utf-8")[1]
        return f"{where}: " + (
            f"it is UTF-8: leave out {options.part}.encoding" if is_utf8 else "the file is damaged there"
        )
    if has_non_ascii:
        return f"{where}, though text before it is UTF-8: the file is damaged there: repair or remove the line"
    fits = [(name, text) for name in _candidates(wrong) if (text := _decoded(path, wrong, name)) is not None]
    fits = [fit for fit in fits if fit[0] != "latin-1" or len(fits) == 1]  # latin-1 decodes any bytes
    listed = ", ".join(f"{options.part}.encoding={name} reads them as {text!r}" for name, text in fits)
    return f"{where}: {listed or 'convert it to UTF-8'}"


def _first_undecodable(path: Path, codec: str) -> tuple[int, bytes, bool]:
    """The line of the first bytes that cannot be decoded (counted from 1), these bytes with their context (empty if all
    of the file can be decoded), and whether non-ASCII characters were decoded before them."""
    decoder = codecs.getincrementaldecoder(codec)()
    line, has_non_ascii, ended_by_return = 1, False, False
    for chunk in _chunks(path):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as problem:
            before = problem.object[: problem.start].decode(codec, "replace")
            has_non_ascii = has_non_ascii or not before.isascii()
            start = max(problem.object.rfind(b"\n", 0, problem.start) + 1, problem.start - 12)
            end = re.search(rb"[\r\n]|$", problem.object[problem.end : problem.end + 12])
            wrong = problem.object[start : problem.end + (end.start() if end else 0)]
            return line + len(_LINE_END.findall(before)), wrong, has_non_ascii
        has_non_ascii = has_non_ascii or not text.isascii()
        line += len(_LINE_END.findall(text)) - (ended_by_return and text.startswith("\n"))
        ended_by_return = text.endswith("\r")
    return line, b"", has_non_ascii


def _chunks(path: Path) -> Iterator[bytes]:
    """The content of a file in chunks, followed by an empty one."""
    with open_bytes(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield b""


def _candidates(wrong: bytes) -> tuple[str, ...]:
    """Plausible encodings: accented letters are single bytes between ASCII letters, other scripts come in runs."""
    runs = re.findall(rb"[\x80-\xff]+", wrong)
    if max(map(len, runs), default=0) < 3:
        return ("cp1252", "latin-1")
    return ("cp1251", "gb18030", "shift_jis", "euc_kr", "cp1252")


def _decoded(path: Path, wrong: bytes, codec: str) -> str | None:
    """The bytes decoded with `codec`, or None if it cannot decode the complete file."""
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        for chunk in _chunks(path):
            decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        return None
    return wrong.decode(codec, "replace")
