"""What a file holds by its first bytes, where that is nothing that is read."""

import codecs
import re

_AT_START = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"\x04\x22\x4d\x18", "lz4-compressed data"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"Obj\x01", "Avro"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document, such as .xls"),
    (b"%PDF-", "a PDF"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG\r\n", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"version https://git-lfs.github.com/spec/v1", "a pointer of git-lfs, not the data"),
)
_PICKLES = tuple(bytes([0x80, version]) for version in (2, 3, 4, 5))
_IN_ZIP = ((b"xl/", "an Excel workbook"), (b"word/", "a Word document"), (b"[Content_Types]", "an Office document"))
_PAGE = re.compile(rb"\s*<(!doctype html|html)[\s>]", re.IGNORECASE)
_REMEDIES = {
    "an HTML page": "fetch the data that it leads to",
    "gzip-compressed data": "add .gz to its name",
    "bzip2-compressed data": "add .bz2 to its name",
    "xz-compressed data": "add .xz to its name",
    "zstd-compressed data": "add .zst to its name",
    "lz4-compressed data": "unpack it",
    "Parquet": "format=parquet",
    "a pointer of git-lfs, not the data": "git lfs pull fetches the data",
    "an Excel workbook": "save it as CSV",
    "an Office document": "save it as CSV or text",
    "an old Office document, such as .xls": "save it as CSV or text",
    "a PDF": "save its text",
    "an SQLite database": "export the table as CSV or JSON lines",
}
HEAD = 512  # bytes that are looked at


def held_by(head: bytes) -> str | None:
    """What the first bytes of a file say that it is, where it is neither text nor a table of it."""
    if head.startswith(b"PK\x03\x04"):
        return next((what for sign, what in _IN_ZIP if sign in head), "a zip archive")
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(_PICKLES) and b"." not in head[:2]:
        return "pickled data"
    if head.startswith(b"BZh") and not head[3:4].isdigit():
        return None
    return next((what for sign, what in _AT_START if head.startswith(sign)), None)


def is_page(head: bytes) -> bool:
    """Whether a file is an HTML page, as a server gives it that does not find, or first asks."""
    return _PAGE.match(head) is not None


def utf16_without_mark(head: bytes) -> str | None:
    """The encoding of text whose every other byte is NUL, as ASCII is in UTF-16, and which begins with no mark."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    half = max(1, len(head) // 2)
    for codec, start in (("utf-16-le", 1), ("utf-16-be", 0)):
        if len(head) > 3 and head[start::2].count(0) > 0.6 * half and head[1 - start :: 2].count(0) < 0.1 * half:
            return codec
    return None


def remedy(what: str, part: str) -> str:
    """What to do with it."""
    if what == "pickled data":
        return "it can run code, and is never read: convert it to Parquet or JSON lines"
    told = _REMEDIES.get(what, "unpack it" if "archive" in what else "convert it to Parquet or JSON lines")
    return f"{part}.{told}" if told.startswith("format=") else told
