"""Formats: the records of one file, read by its ending.

`.jsonl`, `.csv` and `.tsv`, `.parquet` are read piece by piece; a `.json` file and a text file are held whole. All but
Parquet may be compressed (`.gz`, `.bz2`, `.xz`).
"""

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from hfbsz.errors import UserError, did_you_mean

Columns = Mapping[str, str]  # a field of the recipe, such as data.text, to the column that it names

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_PICKLED = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz"}
_ROWS_AT_ONCE = 1024
_LONGEST_FIELD = 2**28  # characters of a csv field: an open quote would swallow the rest of the file


class Record(NamedTuple):
    """A row of a source, or a whole text file."""

    name: str  # the same on every machine: it decides what is held out
    columns: Mapping[str, Any]


def read_records(path: Path, name: str, columns: Columns) -> Iterator[Record]:
    """The records of a file, called after `name`; a text file is one, its text in the first of the columns.

    Raises UserError, in one line, for what cannot be read, for a column that is not there, and for pickled data.
    """
    packed = path.suffix.lower() in _OPENERS
    ending = Path(path.stem if packed else path.name).suffix.lower()
    if ending in _PICKLED:
        raise UserError(f"{path}: pickled data can run code, and is never read: convert it to Parquet or JSON lines")
    if packed and ending == ".parquet":
        raise UserError(f"{path}: Parquet compresses by itself: unpack it")
    with _one_line(path):
        if ending == ".parquet":
            yield from _parquet(path, name, columns)
        elif ending == ".jsonl":
            yield from _json_lines(path, name, columns)
        elif ending == ".json":
            yield from _json(path, name, columns)
        elif ending in (".csv", ".tsv"):
            yield from _csv(path, name, columns, "," if ending == ".csv" else "\t")
        else:
            first = next(iter(columns.values()))
            check_columns(path, columns, [first])
            yield Record(name, {first: _text(path)})


def check_columns(where: object, columns: Columns, known: Iterable[str]) -> None:
    """Raise UserError where a column is not among the known ones."""
    known = list(known)
    for field, column in columns.items():
        if column not in known:
            near = did_you_mean(column, known)
            raise UserError(f"{where}: no column {column!r} ({field}){near}; there are {', '.join(known) or 'none'}")


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the readers raise, as one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text: convert it, or leave it out") from None
    except csv.Error as problem:
        raise UserError(f"{path}: broken csv: {problem}: is a quote left open?") from None
    except (EOFError, zlib.error, lzma.LZMAError) as problem:
        raise UserError(f"{path}: broken {path.suffix} file: {problem}") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror or str(problem).splitlines()[0]}") from None


def _open(path: Path, newline: str) -> IO[str]:
    return _OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", newline=newline)


def _text(path: Path) -> str:
    with _open(path, newline="") as file:
        text = file.read()
    if "\0" in text:
        raise UserError(f"{path}: not text (it holds NUL bytes): leave it out")
    return text


def _json_lines(path: Path, name: str, columns: Columns) -> Iterator[Record]:
    with _open(path, newline="\n") as file:  # JSON may hold the other ends of a line inside its texts
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as problem:
                raise UserError(f"{path}:{number}: not JSON: {problem}") from None
            check_columns(f"{path}:{number}", columns, row if isinstance(row, dict) else ())
            yield Record(f"{name}:{number}", row)


def _json(path: Path, name: str, columns: Columns) -> Iterator[Record]:
    """An array of objects, or an object of objects, whose keys then name the records."""
    text = _text(path)
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise UserError(f"{path}: not JSON: {problem}") from None
    named = rows.items() if isinstance(rows, dict) else enumerate(rows, 1) if isinstance(rows, list) else [("", rows)]
    for key, row in named:
        if not isinstance(row, dict):
            raise UserError(f"{path}: neither an array nor an object of objects: its rows are objects with columns")
        check_columns(f"{path}:{key}", columns, row)
        yield Record(f"{name}:{key}", row)


def _csv(path: Path, name: str, columns: Columns, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _open(path, newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        if reader.fieldnames is None:
            return
        check_columns(path, columns, reader.fieldnames)
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise UserError(
                    f"{path}:{reader.line_num}: row {number} has {'more' if None in row else 'fewer'} fields than the "
                    f"{len(reader.fieldnames)} of the header: put quotes around texts that hold {delimiter!r}"
                )
            yield Record(f"{name}:{number}", row)


def _parquet(path: Path, name: str, columns: Columns) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(dict.fromkeys(columns.values()))):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{name}:{number}", row)
    except pa.ArrowException as problem:
        raise UserError(f"{path}: broken Parquet: {str(problem).splitlines()[0]}") from None
