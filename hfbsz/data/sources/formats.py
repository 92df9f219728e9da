"""Formats: the records of one file, read by its ending or as the recipe says.

JSON lines, tables and Parquet are read piece by piece, and so are text files; a JSON document is held whole. All but
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
from hfbsz.data.sources.open_file import Format, ending_of, is_packed, not_decodable, open_bytes, open_text, packed_by
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.data.sources.sniff import seems
from hfbsz.data.sources.tables import DELIMITERS, Read, read_table
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
_PLAIN = {"", ".txt", ".text", ".dat", ".data", ".raw"}  # endings that say nothing of what a file holds
_OF_TABLES = ("delimiter", "quoting", "header", "comment", "skip_lines")
_ROWS_AT_ONCE = 1024


def format_of(path: Path, form: Format) -> str:
    """`text`, `jsonl`, `json`, `csv`, `tsv` or `parquet`."""
    return form.format if form.format != "auto" else FORMATS.get(ending_of(path), "text")


def check_fields(paths: Sequence[Path], form: Format) -> None:
    """Raise UserError for fields of the recipe that say how files are read of which there is none."""
    formats = {format_of(path, form) for path in paths}
    places = [(name, DELIMITERS, "tables (.csv, .tsv, .tab)") for name in _OF_TABLES]
    places += [("json_field", {"json": ""}, "JSON documents (.json)"), ("separator", {"text": ""}, "text files")]
    for name, where, told in places:
        if name in form.given() and not formats & set(where):
            raise UserError(
                f"{form.part}.{name} is for {told}, and {paths[0]} is read as {format_of(paths[0], form)}: leave it "
                f"out, or say {form.part}.format={next(iter(where))}"
            )
    if form.encoding is not None and formats == {"parquet"}:
        raise UserError(f"{form.part}.encoding is for text, and {paths[0]} is Parquet: leave it out")


def read_records(
    path: Path, name: str, columns: Columns, form: Format, tally: Tally
) -> Generator[Record, None, Read | None]:
    """The records of a file, called after `name`; returns how a table was read.

    Raises UserError, in one line, for what cannot be read, for a column that is not there, and for pickled data.
    """
    read = None
    with _one_line(path, form):
        kind = _checked(path, form)
        if kind in DELIMITERS:
            read = yield from _counted(read_table(path, name, columns, form, DELIMITERS[kind], tally), tally)
        else:
            yield from _counted(_reader(kind)(path, name, columns, form, tally), tally)
    return read


def _counted(records: Iterator[Record], tally: Tally) -> Generator[Record, None, Any]:
    """The records; the rows or documents that they end are counted."""
    iterator = iter(records)
    while True:
        try:
            record = next(iterator)
        except StopIteration as end:
            return end.value
        tally.rows += not record.more
        yield record


def _reader(kind: str) -> Callable[..., Iterator[Record]]:
    return {"jsonl": read_json_lines, "json": read_json, "parquet": _parquet}.get(kind, _text)


def _checked(path: Path, form: Format) -> str:
    """The format of a file whose first bytes do not say that it is something else."""
    kind, packed, ending = format_of(path, form), packed_by(path), ending_of(path)
    if ending in _PICKLED and form.format == "auto":
        raise UserError(f"{path}: pickled data can run code, and is never read: convert it to Parquet or JSON lines")
    if packed and kind == "parquet":
        raise UserError(f"{path}: Parquet compresses by itself: unpack it")
    if packed and not is_packed(path):
        raise UserError(
            f"{path}: its content is not {packed}-compressed: take {packed} off its name if it is not at all"
        )
    with open_bytes(path) as file:
        head = file.read(magic.HEAD)
    what = "an HTML page" if kind != "text" and magic.is_page(head) else magic.held_by(head)
    if form.encoding is None and what is None and (codec := magic.utf16_without_mark(head)):
        raise UserError(f"{path}: it seems to be UTF-16 without a byte order mark: {form.part}.encoding={codec}")
    if what is not None and (kind, what) != ("parquet", "Parquet"):
        inside = f" in {packed}" if packed else ""
        raise UserError(f"{path}: it holds {what}{inside}: {magic.remedy(what, form.part)}")
    return kind


@contextmanager
def _one_line(path: Path, form: Format) -> Iterator[None]:
    """What the readers raise, as one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(not_decodable(path, form)) from None
    except UnicodeError as problem:  # UTF-16 and UTF-32 by name alone ask for a byte order mark
        raise UserError(f"{path}: {problem}: {form.part}.encoding={form.encoding}-le needs none") from None
    except csv.Error as problem:
        raise UserError(f"{path}: broken csv: {problem}") from None
    except (EOFError, zlib.error, lzma.LZMAError) as problem:
        raise UserError(f"{path}: broken {path.suffix} file: {problem}") from None
    except OSError as problem:
        reason = problem.strerror or str(problem).splitlines()[0]
        broken = f"broken {path.suffix} file" if packed_by(path) and problem.errno is None else "cannot be read"
        raise UserError(f"{path}: {broken}: {reason}") from None


def _text(path: Path, name: str, columns: Columns, form: Format, tally: Tally) -> Iterator[Record]:
    """The documents of a text file, in the one column that a task asks for."""
    if form.format == "auto":
        _refuse_data(path, columns, form)
    field, column = next(iter(columns.needed.items()), (f"{form.part}.text", "text"))
    if set(columns.needed.values()) != {column} or field != f"{field.rpartition('.')[0]}.text":
        others = [f"{name}={other}" for name, other in columns.needed.items() if not name.endswith(".text")]
        raise UserError(
            f"{path}: {_read_as(path, form)}, a document without columns, and {', '.join(others)} asks for one: "
            f"{', '.join(FORMATS)} have columns, and {form.part}.format=csv (or another) says what it holds"
        )
    tally.columns.setdefault(column)
    yield from read_text_file(path, name, column, lambda: open_text(path, form), form.separator, tally)


def _read_as(path: Path, form: Format) -> str:
    ending = ending_of(path)
    if form.format != "auto":
        return f"{form.part}.format={form.format} makes it text"
    return f"its ending {ending} is read as text" if ending else "it has no ending and is read as text"


def _refuse_data(path: Path, columns: Columns, form: Format) -> None:
    """Raise UserError where a file whose ending means text holds JSON or a table."""
    head = read_head(path, form)
    other = seems(head, columns.needed.values(), ended=_is_ended(path, head))
    if other is not None and (ending_of(path) in _PLAIN or not other.weak):
        raise UserError(
            f"{path}: {_read_as(path, form)}, but it seems to hold {other.what}: say {other.words(form.part)}, or "
            f"{form.part}.format=text to learn it as text"
        )


def _is_ended(path: Path, head: Sequence[str]) -> bool:
    """Whether the last of the first lines was read to its end."""
    at_end = not packed_by(path) and sum(map(len, head)) >= path.stat().st_size
    return at_end or head[-1:] == [] or head[-1][-1] in "\r\n"


def _parquet(path: Path, name: str, columns: Columns, form: Format, tally: Tally) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            check_columns(path, columns, known)
            tally.columns.update(dict.fromkeys(known))
            classes = {column: names for column, names in _classes(file.schema_arrow).items() if column in columns.read}
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[name for name in columns.read if name in known]):
                for row in batch.to_pylist():
                    number += 1
                    for column, names in classes.items():
                        row[column] = class_name(row[column], names, f"{path}: row {number}")
                    yield Record(f"{name}:{number}", row)
    except pa.ArrowException as problem:
        raise UserError(f"{path}: broken Parquet: {str(problem).splitlines()[0]}") from None


def class_name(number: int | None, names: Sequence[str], where: str) -> str | None:
    """The name of a class; None for a row without one, which is null or -1."""
    if number is None or number == -1:
        return None
    if not 0 <= number < len(names):
        raise UserError(f"{where} has the class {number}, and there are {len(names)} names of classes")
    return names[number]


def parquet_classes(path: Path) -> dict[str, list[str]]:
    """The names of the classes of a Parquet file's columns that `datasets` wrote as ClassLabel; none of other files."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _classes(parquet.read_schema(path))
    except (pa.ArrowException, OSError):
        return {}  # reading its rows says what is wrong


def _classes(schema: Any) -> dict[str, list[str]]:
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        found = {column: feature for column, feature in features.items() if isinstance(feature, dict)}
        return {column: list(f["names"]) for column, f in found.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
