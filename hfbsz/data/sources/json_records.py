"""JSON lines, read piece by piece, and JSON documents, which are held whole."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from hfbsz.data.sources.open_file import Format, open_text
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.data.sources.sniff import seems
from hfbsz.errors import UserError, did_you_mean

Row = Mapping[str, Any]

_ROWS_ASKED = 1000  # rows at the beginning that may lack a column before it is called missing
_CHARACTERS_ASKED = 100_000  # of what is no JSON, to say what it is
_KEYS_SHOWN = 12
_HALVES = ("\\ud", "\\uD")  # how halves of surrogate pairs are written


def read_json_lines(path: Path, name: str, columns: Columns, form: Format, tally: Tally) -> Iterator[Record]:
    """An object for each line, named by its line. Raises UserError, in one line, for a line that holds none."""
    counts = {"blank": 0, "halves": 0}
    yield from _with_columns(path, name, _lines(path, form, columns, counts), columns, tally)
    if blank := counts["blank"]:
        tally.note(f"{name}: {blank:,} blank {'line' if blank == 1 else 'lines'} left out")
    _note_halves(name, counts["halves"], tally)


def _lines(path: Path, form: Format, columns: Columns, counts: dict[str, int]) -> Iterator[tuple[str, Row]]:
    with open_text(path, form) as file:  # JSON holds other ends of lines than \n and \r inside its texts
        for number, line in enumerate(file, 1):
            if not line.strip():
                counts["blank"] += 1
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as problem:
                other = _instead(path, form, columns, line) if number == 1 else ""
                raise UserError(f"{path}:{number}: not JSON: {problem}{other}") from None
            if not isinstance(row, dict):
                other = _instead(path, form, columns, line) if number == 1 else ""
                raise UserError(f"{path}:{number}: no object with columns but {_kind(row)}{other}")
            if any(half in line for half in _HALVES):
                row, replaced = _whole(row)
                counts["halves"] += replaced
            yield str(number), row


def _instead(path: Path, form: Format, columns: Columns, line: str) -> str:
    """What a file that does not begin with JSON lines seems to be."""
    try:
        with open_text(path, form) as file:
            head = [text for _, text in zip(range(100), file, strict=False)]
    except UnicodeDecodeError:
        return ""
    begun = line.strip()
    if begun.startswith("[") or begun in ("{", "[") or (begun.startswith("{") and len(head) > 1):
        return f": it seems to hold one JSON document: {form.part}.format=json"
    other = seems(head, columns.needed.values(), ended=True)
    return f": it seems to hold {other.what}: {other.words(form.part)}" if other else ""


def read_json(path: Path, name: str, columns: Columns, form: Format, tally: Tally) -> Iterator[Record]:
    """The rows of a JSON document, or of JSON lines where each of its lines is an object.

    A document is an array of objects; an object of objects, whose keys name the records; columns of values; or an
    object that holds one of these by a key (`data.json_field`, or the one that there is). Raises UserError, in one
    line, for any other.
    """
    if _holds_lines(path, form):
        if form.json_field is not None:
            raise UserError(f"{path} holds JSON lines, not an object with keys: leave out {form.part}.json_field")
        tally.note(f"{name} holds JSON lines")
        yield from read_json_lines(path, name, columns, form, tally)
        return
    with open_text(path, form) as file:
        text = file.read()
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not JSON: {problem}{_not_a_document(text, problem, form, columns)}") from None
    halves = 0
    if any(half in text for half in _HALVES):
        document, halves = _whole(document)
    del text
    rows = _rows(path, name, _by_key(path, document, form, tally), columns, form, tally)
    yield from _with_columns(path, name, rows, columns, tally)
    _note_halves(name, halves, tally)


def _holds_lines(path: Path, form: Format) -> bool:
    """Whether the first line is an object and another one follows it."""
    with open_text(path, form) as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, ""), next(filled, "")
    if not first.lstrip().startswith("{") or not second.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _not_a_document(text: str, problem: Exception, form: Format, columns: Columns) -> str:
    if isinstance(problem, json.JSONDecodeError) and problem.msg == "Extra data":
        return ": several JSON values follow each other: write an object for each line (jq -c . does) as .jsonl"
    lines = text[:_CHARACTERS_ASKED].splitlines(keepends=True)
    other = seems(lines, columns.needed.values(), ended=len(text) < _CHARACTERS_ASKED)
    return f": it seems to hold {other.what}: {other.words(form.part)}" if other and "JSON" not in other.what else ""


def _by_key(path: Path, document: Any, form: Format, tally: Tally) -> Any:
    """What `json_field` names of a document."""
    key = form.json_field
    if key is None:
        return document
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: {_kind(document)}, not an object with a key {key!r}: leave out {form.part}.json_field"
        )
    if key not in document:
        near = did_you_mean(key, document)
        raise UserError(f"{path}: no key {key!r} ({form.part}.json_field){near}; there are {_listed(document)}")
    return document[key]


def _rows(
    path: Path, name: str, document: Any, columns: Columns, form: Format, tally: Tally
) -> Iterator[tuple[str, Row]]:
    """(name, row) of what a document holds."""
    if isinstance(document, dict):
        found = _of_columns(document, columns)
        if found is None and not (document and all(isinstance(value, dict) for value in document.values())):
            key = _only_rows(path, document, form)
            tally.note(f"{name}: its rows are those of the key {key!r}")
            document = document[key]
        elif found is None:
            found = document.items()
    else:
        found = None
    if found is None:
        if not isinstance(document, list):
            raise UserError(f"{path}: {_kind(document)}, neither an array nor an object of objects with columns")
        found = ((str(number), row) for number, row in enumerate(document, 1))
    for key, row in found:
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{key}: {_kind(row)}, no object: its rows are objects with columns, in an array or an object"
            )
        yield key, row


def _of_columns(document: dict[str, Any], columns: Columns) -> Iterable[tuple[str, Row]] | None:
    """Rows of a document that holds a list of values, or values by row, for each column: as `DataFrame.to_json` writes
    it, also with orient="split". None where it does not."""
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
        if any("role" in turn or "from" in turn for turn in turns):  # one conversation, which is a row
            return None
        return (
            (str(number), dict(zip(document, row, strict=True)))
            for number, row in enumerate(zip(*document.values(), strict=True), 1)
        )
    if isinstance(first, dict) and all(isinstance(other, dict) and other.keys() == first.keys() for other in others):
        return ((key, {name: values[key] for name, values in document.items()}) for key in first)
    return None


def _only_rows(path: Path, document: dict[str, Any], form: Format) -> str:
    """The one key whose value is a list of objects; raises UserError where there is none, or another."""
    found = [
        key
        for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{path}: an object with several lists of rows, name one: "
            + " or ".join(f"{form.part}.json_field={key}" for key in found)
        )
    raise UserError(
        f"{path}: one object with the keys {_listed(document)}, neither an array nor an object of objects: where one "
        f"of them holds the rows, {form.part}.json_field=KEY names it"
    )


def _with_columns(
    path: Path, name: str, rows: Iterable[tuple[str, Row]], columns: Columns, tally: Tally
) -> Iterator[Record]:
    """Records with every needed column, null where a row leaves it out. Raises UserError where no row has it."""
    needed = dict.fromkeys(columns.needed.values())
    missing, held, seen = set(needed), [], tally.columns
    own: dict[str, None] = {}  # columns of this file
    iterator = iter(rows)
    for key, row in iterator:
        own.update(dict.fromkeys(row))
        held.append((key, row))
        missing -= row.keys()
        if not missing or len(held) == _ROWS_ASKED:
            break
    if missing and held:
        where = f"{path}:{held[0][0]}" if len(held) == 1 else f"{path}: in {len(held):,} rows"
        check_columns(where, columns, own)
    seen.update(own)
    for key, row in chain(held, iterator):
        if not row.keys() <= seen.keys():
            seen.update(dict.fromkeys(row))
        if not needed.keys() <= row.keys():
            row = {**needed, **row}
        yield Record(f"{name}:{key}", row)


def _whole(value: Any) -> tuple[Any, int]:
    """A JSON value whose texts have '?' for halves of surrogate pairs, which are no text, and how many texts had."""
    if isinstance(value, str):
        whole = value.encode("utf-8", "replace").decode()
        return whole, int(whole != value)
    if isinstance(value, list):
        parts = [_whole(part) for part in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        pairs = [(_whole(key), _whole(part)) for key, part in value.items()]
        return {key[0]: part[0] for key, part in pairs}, sum(key[1] + part[1] for key, part in pairs)
    return value, 0


def _note_halves(name: str, count: int, tally: Tally) -> None:
    if count:
        texts = "text holds" if count == 1 else "texts hold"
        tally.note(f"{name}: {count:,} {texts} half of a surrogate pair, which is no character: it became '?'")


def _kind(value: Any) -> str:
    names = {list: "an array", dict: "an object", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _listed(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(map(repr, listed[:_KEYS_SHOWN])) + (", …" if len(listed) > _KEYS_SHOWN else "")
