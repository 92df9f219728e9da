"""File formats: the records of one file, read by its suffix or as the recipe says.

JSON lines, tables, Parquet and text files are read in pieces; a JSON document is loaded into memory. All formats except
Parquet may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`).
"""

import csv
import json
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfbsz.data.sources import magic
from hfbsz.data.sources.dialects import read_head
from hfbsz.data.sources.json_records import read_json, read_json_lines
from hfbsz.data.sources.open_file import (
    ReadOptions,
    compression_suffix,
    format_suffix,
    is_compressed,
    not_decodable,
    open_bytes,
    open_text,
)
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.data.sources.sniff import guess_format
from hfbsz.data.sources.tables import DELIMITERS, TableCounts, read_table
from hfbsz.data.sources.text_files import read_text_file
from hfbsz.errors import UserError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}
_PICKLED = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz"}
_AMBIGUOUS = {"", ".txt", ".text", ".dat", ".data", ".raw"}  # suffixes that do not give the format
_TABLE_FIELDS = ("delimiter", "quoting", "header", "comment", "skip_lines")
_BATCH_ROWS = 1024


def format_of(path: Path, options: ReadOptions) -> str:
    """`text`, `jsonl`, `json`, `csv`, `tsv` or `parquet`."""
    return options.format if options.format != "auto" else FORMATS.get(format_suffix(path), "text")


def check_fields(paths: Sequence[Path], options: ReadOptions) -> None:
    """Raise UserError if the recipe sets a field for a file format that none of the files has."""
    formats = {format_of(path, options) for path in paths}
    fields = [(name, tuple(DELIMITERS), "tables (.csv, .tsv, .tab)") for name in _TABLE_FIELDS]
    fields += [("json_field", ("json",), "JSON documents (.json)"), ("separator", ("text",), "text files")]
    for name, applicable, description in fields:
        if name in options.changed() and not formats & set(applicable):
            raise UserError(
                f"{options.part}.{name} is for {description}, and {paths[0]} is read as "
                f"{format_of(paths[0], options)}: leave it out, or set {options.part}.format={applicable[0]}"
            )
    if options.encoding is not None and formats == {"parquet"}:
        raise UserError(f"{options.part}.encoding is for text, and {paths[0]} is Parquet: leave it out")


def read_records(
    path: Path, name: str, columns: Columns, options: ReadOptions, tally: Tally
) -> Generator[Record, None, TableCounts | None]:
    """The records of a file, whose names start with `name`; returns the counts of a table, None for other formats.

    Raises UserError, in one line, for a file that cannot be read, for a missing column, and for pickled data.
    """
    counts = None
    with _errors_in_one_line(path, options):
        kind = _checked_format(path, options)
        if kind in DELIMITERS:
            counts = yield from _counted(read_table(path, name, columns, options, DELIMITERS[kind], tally), tally)
        else:
            yield from _counted(_reader(kind)(path, name, columns, options, tally), tally)
    return counts


def _counted(records: Iterator[Record], tally: Tally) -> Generator[Record, None, Any]:
    """The records, with `tally.rows` counting the rows or documents that are complete."""
    iterator = iter(records)
    while True:
        try:
            record = next(iterator)
        except StopIteration as end:
            return end.value
        tally.rows += not record.more
        yield record


def _reader(kind: str) -> Callable[..., Iterator[Record]]:
    return {"jsonl": read_json_lines, "json": read_json, "parquet": _read_parquet}.get(kind, _read_text)


def _checked_format(path: Path, options: ReadOptions) -> str:
    """The format of a file. Raises UserError if the suffix or the first bytes show that it is something else."""
    kind, compression, suffix = format_of(path, options), compression_suffix(path), format_suffix(path)
    if suffix in _PICKLED and options.format == "auto":
        raise UserError(f"{path}: pickled data can run code, and is never read: convert it to Parquet or JSON lines")
    if compression and kind == "parquet":
        raise UserError(f"{path}: Parquet has its own compression: decompress the file")
    if compression and not is_compressed(path):
        raise UserError(
            f"{path}: its content is not {compression}-compressed: remove {compression} from its name if the file is "
            "not compressed"
        )
    with open_bytes(path) as file:
        head = file.read(magic.HEAD_BYTES)
    what = "an HTML page" if kind != "text" and magic.is_html(head) else magic.binary_type(head)
    if options.encoding is None and what is None and (codec := magic.utf16_without_bom(head)):
        raise UserError(f"{path}: it seems to be UTF-16 without a byte order mark: {options.part}.encoding={codec}")
    if what is not None and (kind, what) != ("parquet", "Parquet"):
        inside = f" in {compression}" if compression else ""
        raise UserError(f"{path}: it holds {what}{inside}: {magic.advice(what, options.part)}")
    return kind


@contextmanager
def _errors_in_one_line(path: Path, options: ReadOptions) -> Iterator[None]:
    """Turn the errors of the readers into a UserError of one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(not_decodable(path, options)) from None
    except UnicodeError as problem:  # the codecs utf-16 and utf-32 require a byte order mark
        part, encoding = options.part, options.encoding
        raise UserError(f"{path}: {problem}: {part}.encoding={encoding}-le needs no byte order mark") from None
    except csv.Error as problem:
        raise UserError(f"{path}: broken csv: {problem}") from None
    except (EOFError, zlib.error, lzma.LZMAError) as problem:
        raise UserError(f"{path}: broken {path.suffix} file: {problem}") from None
    except OSError as problem:
        reason = problem.strerror or str(problem).splitlines()[0]
        is_damaged = compression_suffix(path) and problem.errno is None
        what = f"broken {path.suffix} file" if is_damaged else "cannot be read"
        raise UserError(f"{path}: {what}: {reason}") from None


def _read_text(path: Path, name: str, columns: Columns, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    """The documents of a text file, in the one column that the task reads."""
    if options.format == "auto":
        _refuse_data(path, columns, options)
    field, column = next(iter(columns.needed.items()), (f"{options.part}.text", "text"))
    if set(columns.needed.values()) != {column} or field != f"{field.rpartition('.')[0]}.text":
        others = [f"{name}={other}" for name, other in columns.needed.items() if not name.endswith(".text")]
        raise UserError(
            f"{path}: {_read_as(path, options)}, a document without columns, and {', '.join(others)} asks for one: "
            f"{', '.join(FORMATS)} have columns, and {options.part}.format=csv (or another) says what it holds"
        )
    tally.columns.setdefault(column)
    yield from read_text_file(path, name, column, lambda: open_text(path, options), options, tally)


def _read_as(path: Path, options: ReadOptions) -> str:
    suffix = format_suffix(path)
    if options.format != "auto":
        return f"{options.part}.format={options.format} makes it text"
    return f"its ending {suffix} is read as text" if suffix else "it has no ending and is read as text"


def _refuse_data(path: Path, columns: Columns, options: ReadOptions) -> None:
    """Raise UserError if a file that would be read as text holds JSON or a table."""
    head = read_head(path, options)
    guess = guess_format(head, columns.needed.values(), last_is_complete=_last_is_complete(path, head))
    if guess is not None and (format_suffix(path) in _AMBIGUOUS or not guess.weak):
        raise UserError(
            f"{path}: {_read_as(path, options)}, but it seems to hold {guess.what}: set {guess.words(options.part)}, "
            f"or {options.part}.format=text to use it as text"
        )


def _last_is_complete(path: Path, head: Sequence[str]) -> bool:
    """Whether the last line of `head` was read to its end."""
    at_end = not compression_suffix(path) and sum(map(len, head)) >= path.stat().st_size
    return at_end or head[-1:] == [] or head[-1][-1] in "\r\n"


def _read_parquet(path: Path, name: str, columns: Columns, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            available = file.schema_arrow.names
            check_columns(path, columns, available)
            tally.columns.update(dict.fromkeys(available))
            classes = {column: names for column, names in _classes(file.schema_arrow).items() if column in columns.read}
            selected = [column for column in columns.read if column in available]
            for batch in file.iter_batches(_BATCH_ROWS, columns=selected):
                for row in batch.to_pylist():
                    number += 1
                    for column, names in classes.items():
                        row[column] = class_name(row[column], names, f"{path}: row {number}")
                    yield Record(f"{name}:{number}", row)
    except pa.ArrowException as problem:
        raise UserError(f"{path}: broken Parquet: {str(problem).splitlines()[0]}") from None


def class_name(index: int | None, names: Sequence[str], where: str) -> str | None:
    """The name of a class by its index; None for a row without a class, which is null or -1. Raises UserError for an
    index that is out of range."""
    if index is None or index == -1:
        return None
    if not 0 <= index < len(names):
        raise UserError(f"{where} has the class {index}, and there are only {len(names)} class names")
    return names[index]


def parquet_classes(path: Path) -> dict[str, list[str]]:
    """Column -> class names, for the ClassLabel columns of a Parquet file written by `datasets`; empty for others."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _classes(parquet.read_schema(path))
    except (pa.ArrowException, OSError):
        return {}  # reading the rows of this file will report the error


def _classes(schema: Any) -> dict[str, list[str]]:
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"]
        mappings = {column: feature for column, feature in features.items() if isinstance(feature, dict)}
        return {column: list(f["names"]) for column, f in mappings.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
