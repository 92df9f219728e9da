"""File types that hfbsz cannot read as such, detected by the first bytes of a file."""

import codecs
import re

_SIGNATURES = (
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
    (b"\x89PNG\r\n", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer, not the data"),
)
_PICKLES = tuple(bytes([0x80, version]) for version in (2, 3, 4, 5))
_ZIP_MEMBERS = (
    (b"xl/", "an Excel workbook"),
    (b"word/", "a Word document"),
    (b"[Content_Types]", "an Office document"),
)
_HTML = re.compile(rb"\s*<(!doctype html|html)[\s>]", re.IGNORECASE)
_ADVICE = {
    "an HTML page": "download the data that it links to",
    "gzip-compressed data": "add .gz to its name",
    "bzip2-compressed data": "add .bz2 to its name",
    "xz-compressed data": "add .xz to its name",
    "zstd-compressed data": "add .zst to its name",
    "lz4-compressed data": "unpack it",
    "Parquet": "format=parquet",
    "a git-lfs pointer, not the data": "run git lfs pull to download the data",
    "an Excel workbook": "save it as CSV",
    "an Office document": "save it as CSV or text",
    "an old Office document, such as .xls": "save it as CSV or text",
    "a PDF": "save its text as .txt",
    "an SQLite database": "export the table as CSV or JSON lines",
}
HEAD_BYTES = 512  # number of bytes that the functions below expect


def binary_type(head: bytes) -> str | None:
    """The type of a file by its first bytes, such as "a zip archive"; None for text and for unknown content."""
    if head.startswith(b"PK\x03\x04"):
        return next((what for member, what in _ZIP_MEMBERS if member in head), "a zip archive")
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(_PICKLES) and b"." not in head[:2]:
        return "pickled data"
    if head.startswith(b"BZh") and not head[3:4].isdigit():
        return None
    return next((what for signature, what in _SIGNATURES if head.startswith(signature)), None)


def is_html(head: bytes) -> bool:
    """Whether a file is an HTML page, such as a server's error or login page saved in place of the data."""
    return _HTML.match(head) is not None


def utf16_without_bom(head: bytes) -> str | None:
    """`utf-16-le` or `utf-16-be` for text without a byte order mark in which every other byte is mostly NUL, as ASCII
    is in UTF-16; else None."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    half = max(1, len(head) // 2)
    for codec, start in (("utf-16-le", 1), ("utf-16-be", 0)):
        if len(head) > 3 and head[start::2].count(0) > 0.6 * half and head[1 - start :: 2].count(0) < 0.1 * half:
            return codec
    return None


def advice(what: str, part: str) -> str:
    """How to make a file of the type `what` readable; `part` is the recipe's part, such as `data`."""
    if what == "pickled data":
        return "it can run code, and is never read: convert it to Parquet or JSON lines"
    text = _ADVICE.get(what, "unpack it" if "archive" in what else "convert it to Parquet or JSON lines")
    return f"{part}.{text}" if text.startswith("format=") else text
