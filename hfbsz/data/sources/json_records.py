"""JSON lines, read line by line, and JSON documents, which are loaded into memory."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from hfbsz.data.sources.open_file import ReadOptions, open_text
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.data.sources.sniff import guess_format
from hfbsz.errors import UserError, did_you_mean

Row = Mapping[str, Any]

_ROWS_CHECKED = 1000  # first rows that may lack a column before it is reported as missing
_SNIFFED_CHARACTERS = 100_000  # of a file that is not JSON, to guess what it is
_KEYS_SHOWN = 12
_SURROGATE_ESCAPES = ("\\ud", "\\uD")


def read_json_lines(path: Path, name: str, columns: Columns, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    """One record per line, named after its line number. Raises UserError, in one line, for a line without an object."""
    counts = {"blank": 0, "surrogates": 0}
    yield from _with_columns(path, name, _lines(path, options, columns, counts), columns, tally)
    if blank := counts["blank"]:
        tally.note(f"{name}: {blank:,} blank {'line' if blank == 1 else 'lines'} left out")
    _note_surrogates(name, counts["surrogates"], tally)


def _lines(path: Path, options: ReadOptions, columns: Columns, counts: dict[str, int]) -> Iterator[tuple[str, Row]]:
    with open_text(path, options) as file:  # not str.splitlines, which also splits at U+2028 and others inside texts
        for number, line in enumerate(file, 1):
            if not line.strip():
                counts["blank"] += 1
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as problem:
                guess = _guess(path, options, columns, line) if number == 1 else ""
                raise UserError(f"{path}:{number}: not JSON: {problem}{guess}") from None
            if not isinstance(row, dict):
                guess = _guess(path, options, columns, line) if number == 1 else ""
                raise UserError(f"{path}:{number}: not an object with columns but {_kind(row)}{guess}")
            if any(escape in line for escape in _SURROGATE_ESCAPES):
                row, replaced = _without_surrogates(row)
                counts["surrogates"] += replaced
            yield str(number), row


def _guess(path: Path, options: ReadOptions, columns: Columns, first_line: str) -> str:
    """The part of a message that says what a file without JSON lines seems to hold."""
    try:
        with open_text(path, options) as file:
            head = [line for _, line in zip(range(100), file, strict=False)]
    except UnicodeDecodeError:
        return ""
    start = first_line.strip()
    if start.startswith("[") or start in ("{", "[") or (start.startswith("{") and len(head) > 1):
        return f": it seems to hold one JSON document: {options.part}.format=json"
    guess = guess_format(head, columns.needed.values(), last_is_complete=True)
    return f": it seems to hold {guess.what}: {guess.words(options.part)}" if guess else ""


def read_json(path: Path, name: str, columns: Columns, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    """The rows of a JSON document, or of JSON lines if the first two lines of the file are objects.

    A document is an array of objects; an object of objects, whose keys name the records; an object of columns with
    their values; or an object that holds one of these under a key (`data.json_field`, or the only such key). Raises
    UserError, in one line, for any other document.
    """
    if _holds_lines(path, options):
        if options.json_field is not None:
            raise UserError(f"{path} holds JSON lines, not an object with keys: leave out {options.part}.json_field")
        tally.note(f"{name} holds JSON lines")
        yield from read_json_lines(path, name, columns, options, tally)
        return
    with open_text(path, options) as file:
        text = file.read()
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not JSON: {problem}{_not_a_document(text, problem, options, columns)}") from None
    replaced = 0
    if any(escape in text for escape in _SURROGATE_ESCAPES):
        document, replaced = _without_surrogates(document)
    del text
    rows = _rows(path, name, _by_key(path, document, options, tally), columns, options, tally)
    yield from _with_columns(path, name, rows, columns, tally)
    _note_surrogates(name, replaced, tally)


def _holds_lines(path: Path, options: ReadOptions) -> bool:
    """Whether the first line that is not blank is an object and another one follows it."""
    with open_text(path, options) as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, ""), next(filled, "")
    if not first.lstrip().startswith("{") or not second.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _not_a_document(text: str, problem: Exception, options: ReadOptions, columns: Columns) -> str:
    if isinstance(problem, json.JSONDecodeError) and problem.msg == "Extra data":
        return ": several JSON values follow each other: write one object per line (jq -c . does) as .jsonl"
    lines = text[:_SNIFFED_CHARACTERS].splitlines(keepends=True)
    guess = guess_format(lines, columns.needed.values(), last_is_complete=len(text) < _SNIFFED_CHARACTERS)
    if guess is None or "JSON" in guess.what:
        return ""
    return f": it seems to hold {guess.what}: {guess.words(options.part)}"


def _by_key(path: Path, document: Any, options: ReadOptions, tally: Tally) -> Any:
    """The value of the key `json_field` of a document, or the document if that field is not set."""
    key = options.json_field
    if key is None:
        return document
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: {_kind(document)}, not an object with a key {key!r}: leave out {options.part}.json_field"
        )
    if key not in document:
        suggestion = did_you_mean(key, document)
        raise UserError(
            f"{path}: no key {key!r} ({options.part}.json_field){suggestion}; there are {_listed(document)}"
        )
    return document[key]


def _rows(
    path: Path, name: str, document: Any, columns: Columns, options: ReadOptions, tally: Tally
) -> Iterator[tuple[str, Row]]:
    """(name, row) for every row of a document."""
    pairs: Iterable[tuple[str, Any]] | None = None
    if isinstance(document, dict):
        pairs = _rows_of_columns(document, columns)
        if pairs is None and document and all(isinstance(value, dict) for value in document.values()):
            pairs = document.items()
        elif pairs is None:
            key = _only_key_with_rows(path, document, options)
            tally.note(f"{name}: its rows are those of the key {key!r}")
            document = document[key]
    if pairs is None:
        if not isinstance(document, list):
            raise UserError(f"{path}: {_kind(document)}, neither an array nor an object of objects with columns")
        pairs = ((str(number), row) for number, row in enumerate(document, 1))
    for key, row in pairs:
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{key}: {_kind(row)}, not an object: its rows are objects with columns, in an array or an "
                "object"
            )
        yield key, row


def _rows_of_columns(document: dict[str, Any], columns: Columns) -> Iterable[tuple[str, Row]] | None:
    """Rows of a document that maps each column to a list of values, or to values by row, as `DataFrame.to_json` writes
    them, also with orient="split". None for other documents."""
    names, data = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(data, list):
        if not all(isinstance(row, list) and len(row) == len(names) for row in data):
            return None
        return ((str(number), dict(zip(names, row, strict=True))) for number, row in enumerate(data, 1))
    if not document or not set(columns.needed.values()) <= set(document):
        return None
    first, *others = document.values()
    if isinstance(first, list) and all(isinstance(other, list) and len(other) == len(first) for other in others):
        turns = (value for values in document.values() for value in values if isinstance(value, dict))
        if any("role" in turn or "from" in turn for turn in turns):  # a single conversation, which is one row
            return None
        return (
            (str(number), dict(zip(document, row, strict=True)))
            for number, row in enumerate(zip(*document.values(), strict=True), 1)
        )
    if isinstance(first, dict) and all(isinstance(other, dict) and other.keys() == first.keys() for other in others):
        return ((key, {name: values[key] for name, values in document.items()}) for key in first)
    return None


def _only_key_with_rows(path: Path, document: dict[str, Any], options: ReadOptions) -> str:
    """The only key whose value is a list of objects. Raises UserError if there is none, or more than one."""
    keys = [
        key
        for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    if len(keys) == 1:
        return keys[0]
    if keys:
        raise UserError(
            f"{path}: an object with several lists of rows, name one: "
            + " or ".join(f"{options.part}.json_field={key}" for key in keys)
        )
    raise UserError(
        f"{path}: one object with the keys {_listed(document)}, neither an array nor an object of objects: if one of "
        f"the keys holds the rows, name it: {options.part}.json_field=KEY"
    )


def _with_columns(
    path: Path, name: str, rows: Iterable[tuple[str, Row]], columns: Columns, tally: Tally
) -> Iterator[Record]:
    """Records with every needed column, null if a row lacks it. Raises UserError if none of the first rows has it."""
    needed = dict.fromkeys(columns.needed.values())
    missing, buffered, seen = set(needed), [], tally.columns
    file_columns: dict[str, None] = {}
    iterator = iter(rows)
    for key, row in iterator:
        file_columns.update(dict.fromkeys(row))
        buffered.append((key, row))
        missing -= row.keys()
        if not missing or len(buffered) == _ROWS_CHECKED:
            break
    if missing and buffered:
        where = f"{path}:{buffered[0][0]}" if len(buffered) == 1 else f"{path}: in {len(buffered):,} rows"
        check_columns(where, columns, file_columns)
    seen.update(file_columns)
    for key, row in chain(buffered, iterator):
        if not row.keys() <= seen.keys():
            seen.update(dict.fromkeys(row))
        if not needed.keys() <= row.keys():
            row = {**needed, **row}
        yield Record(f"{name}:{key}", row)


def _without_surrogates(value: Any) -> tuple[Any, int]:
    """A JSON value with '?' in place of unpaired surrogates, which are not valid Unicode text, and the number of texts
    that were changed."""
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text, int(text != value)
    if isinstance(value, list):
        parts = [_without_surrogates(part) for part in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        pairs = [(_without_surrogates(key), _without_surrogates(part)) for key, part in value.items()]
        return {key[0]: part[0] for key, part in pairs}, sum(key[1] + part[1] for key, part in pairs)
    return value, 0


def _note_surrogates(name: str, count: int, tally: Tally) -> None:
    if count:
        texts = "text holds" if count == 1 else "texts hold"
        tally.note(f"{name}: {count:,} {texts} an unpaired surrogate, which is not a character: it is read as '?'")


def _kind(value: Any) -> str:
    names = {list: "an array", dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _listed(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(map(repr, listed[:_KEYS_SHOWN])) + (", …" if len(listed) > _KEYS_SHOWN else "")
