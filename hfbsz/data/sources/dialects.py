"""What separates the fields of a table, and whether its quotes are quotes: detected by one pass over the file.

Delimiters are told by the first lines. Quotes are read in two ways over the whole file: as quotes (RFC 4180), and as
characters, where every line is a row. Where both give rows and one of them joins lines, TSV keeps its lines, and CSV is
refused until the recipe says which is meant.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from hfbsz.data.sources.lines import Dialect, Lines, rows
from hfbsz.data.sources.open_file import CHUNK, Format, open_text
from hfbsz.errors import UserError

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space", "": "line"}
_DELIMITERS = (",", ";", "\t", "|")
_HEAD_LINES, _HEAD_CHARACTERS = 200, 2**20
_LONG_SPAN = 4  # lines in quotes that are each a row: more than chance
_SEPARATED = re.compile(r'^"?sep=(.)"?$')  # the first line that Excel takes as the delimiter
_TYPES = {"continuous", "c", "discrete", "d", "string", "s", "time", "t", "text", "basket", ""}  # Orange's second line
_FLAGS = {"class", "c", "meta", "m", "ignore", "i", "weight", "w"}  # and the words of its third


def dialect_of(path: Path, form: Format, own: str, wanted: Sequence[str]) -> Dialect:
    """How a table is read, by its own delimiter where the columns are found so. Raises UserError, in one line, where
    its quotes can be read in two ways or in none."""
    status = path.stat()
    return _detected(path, (status.st_size, status.st_mtime_ns), form, own, tuple(wanted))


@lru_cache(maxsize=4096)
def _detected(path: Path, stamp: tuple[int, int], form: Format, own: str, wanted: tuple[str, ...]) -> Dialect:
    head = read_head(path, form)
    start = Dialect(own, form.quoting if form.quoting != "auto" else "minimal", form.skip_lines)
    said = _SEPARATED.match(head[0].strip()) if head and not form.skip_lines and form.delimiter is None else None
    if form.delimiter is not None:
        found = replace(start, delimiter=form.delimiter)
    elif said:
        found = replace(start, delimiter=said[1], skipped=1)
    else:
        found = _by_delimiter(head, form, start, wanted)
        if form.quoting == "auto" and _is_one_column(path, head, form, found):
            found = replace(found, delimiter="", notes=(*found.notes, "each line is a text: the header is one column"))
    if form.header is True and _is_orange(head, form, found):
        found = replace(found, after_header=2, notes=("lines 2 and 3, Orange's types and flags, are no rows",))
    if len(found.delimiter) != 1:
        return replace(found, reading="none")
    if form.quoting == "auto":
        return _by_quotes(path, form, found, own)
    return found


def joined_rows(path: Path, delimiter: str) -> str | None:
    """Where quotes of a table join rows, or may, for a reader that takes every quote as one; None where they do not."""
    try:
        notes = dialect_of(path, Format(delimiter=delimiter), delimiter, ()).notes
    except UserError as problem:
        return str(problem).split(" that are each a row", maxsplit=1)[0]
    return next((f"{path}: {note.replace(' (data.quoting=none)', '')}" for note in notes if "in line" in note), None)


def _by_delimiter(head: list[str], form: Format, start: Dialect, wanted: tuple[str, ...]) -> Dialect:
    """Its own delimiter, where that gives the columns that are wanted or fields of equal number; else one that does."""
    candidates = [start.delimiter, *(sign for sign in _DELIMITERS if sign != start.delimiter)]
    counts: dict[str, list[int]] = {}
    for sign in candidates:
        first = head_rows(head, form, replace(start, delimiter=sign))
        named = form.header if isinstance(form.header, tuple) else first[0] if first and form.header else ()
        if form.header is True and set(wanted) <= set(named):
            return replace(start, delimiter=sign)
        counts[sign] = [len(row) for row in first]
        if isinstance(form.header, tuple) and counts[sign] and set(counts[sign]) == {len(named)}:
            return replace(start, delimiter=sign)
    even = [sign for sign in candidates if len(set(counts[sign])) == 1 and counts[sign][0] > 1]
    several = [sign for sign in candidates if counts[sign] and Counter(counts[sign]).most_common(1)[0][0] > 1]
    return replace(start, delimiter=(even or several or candidates)[0])


def head_rows(head: list[str], form: Format, dialect: Dialect) -> list[list[str]]:
    """The rows of a table's first lines, as far as they can be read."""
    lines = Lines(iter(head), form, dialect.skipped)
    found: list[list[str]] = []
    try:
        for row in rows(lines, dialect):
            found.append(row)
    except csv.Error:
        if dialect.reading != "none":
            literal = head_rows(head, form, replace(dialect, reading="none"))
            return literal if len({len(row) for row in literal}) == 1 else found or literal
    return found


def read_head(path: Path, form: Format) -> list[str]:
    """The first lines of a file: of a few, whatever their length, no more than can be held."""
    head: list[str] = []
    left = _HEAD_CHARACTERS
    with open_text(path, form) as file:
        while left > 0 and len(head) < form.skip_lines + _HEAD_LINES and (line := file.readline(left)):
            head.append(line)
            left -= len(line)
    return head


def _is_one_column(path: Path, head: list[str], form: Format, found: Dialect) -> bool:
    """Whether the header is one column, lines hold the delimiter, and none begins with a quote."""
    first = head_rows(head, form, found)[:1]
    columns = len(form.header) if isinstance(form.header, tuple) else len(first[0]) if first and form.header else 0
    if columns != 1:
        return False
    with open_text(path, form) as file:
        separated = False
        for line in Lines(file, form, found.skipped):
            if line.startswith('"'):
                return False
            separated = separated or found.delimiter in line
        return separated


def _is_orange(head: list[str], form: Format, dialect: Dialect) -> bool:
    """Whether the second and third line hold types and flags of columns, as Orange writes them."""
    first = head_rows(head[: dialect.skipped + 3], form, replace(dialect, reading="none"))
    if len(first) < 3:
        return False
    words = [word for cell in first[2] for word in cell.split()]
    types = {cell.strip() for cell in first[1]}
    return types <= _TYPES and types != {""} and all(word in _FLAGS or "=" in word for word in words)


@dataclass
class _Survey:
    """Both readings of a table: how they go, and where they stop."""

    fields: int = 0  # of the first line, its quotes being characters
    uneven: int | None = None  # the first line of another number
    broken: tuple[int, str] | None = None  # where the quotes end up in no row, and why
    miscounted: bool = False  # whether that is by the number of fields
    spans: list[tuple[int, int]] = field(default_factory=list)  # rows of several lines that are each a row: first, last
    joined: int = 0  # rows of several lines
    quoted: Counter[int] = field(default_factory=Counter)  # of TSV: fields in quotes, by column
    doubled: bool = False  # whether two quotes stand together
    rows: int = 0


def _by_quotes(path: Path, form: Format, found: Dialect, own: str) -> Dialect:
    with open_text(path, form) as file:
        if not any('"' in chunk for chunk in iter(lambda: file.read(CHUNK), "")):
            return replace(found, reading="none")
    seen = _survey(path, form, found)
    as_characters = replace(found, reading="none")
    part = form.part
    if seen.broken is None and not (seen.spans and _looks_swallowed(seen)):
        if own == "\t" and seen.uneven is None and not seen.doubled and not seen.joined and not _all_quoted(seen):
            return _noted(as_characters, f"some fields stand in quotes: they are characters ({part}.quoting=none)")
        return found
    if seen.broken is None:
        first, last = seen.spans[0]
        joined = f"the quotes that open in line {first} and close in line {last}"
        if own == "\t" and seen.uneven is None and seen.fields > 1:
            return _noted(as_characters, f"{joined} are characters ({part}.quoting=none): each line is a row")
        as_lines = f"{part}.quoting=none reads the quotes as characters and each line as a row"
        if seen.uneven is not None:
            as_lines = f"where they are characters, write them twice, in quotes (line {seen.uneven} needs its quotes)"
        raise UserError(
            f"{path}:{first}: {joined} hold {last - first + 1} lines that are each a row: {as_lines}; "
            f"{part}.quoting=minimal reads one row in quotes"
        )
    line, why = seen.broken
    if seen.uneven is None:
        return _noted(as_characters, f"quotes are characters ({part}.quoting=none): {why} in line {line}")
    for reading, told in (
        ("escaped", "quotes inside fields follow backslashes"),
        ("spaced", "spaces before quotes are no text"),
    ):
        if _survey(path, form, replace(found, reading=reading)).broken is None:
            return _noted(replace(found, reading=reading), told)
    if seen.miscounted:
        return found  # the reader says what that row holds
    raise UserError(
        f"{path}:{line}: {why}: write quotes inside fields twice and put quotes around texts that hold "
        f"{found.delimiter!r} (as characters, {part}.quoting=none, the quotes do not fit either: line "
        f"{seen.uneven} has not the {seen.fields} fields of the first)"
    )


def _noted(dialect: Dialect, note: str) -> Dialect:
    return replace(dialect, notes=(*dialect.notes, note))


def _looks_swallowed(seen: _Survey) -> bool:
    """Whether rows were joined by quotes that are characters: all joined ones, or a long one, are whole rows line by
    line."""
    if seen.fields == 1:  # every line of a single column is a row
        return seen.uneven is None and not seen.doubled
    longest = max(last - first + 1 for first, last in seen.spans)
    return len(seen.spans) == seen.joined or longest >= _LONG_SPAN


def _all_quoted(seen: _Survey) -> bool:
    """Whether every column that has fields in quotes has no other: a writer that quotes all texts."""
    return all(count >= seen.rows - 1 for count in seen.quoted.values())  # its header may be without


def _survey(path: Path, form: Format, dialect: Dialect) -> _Survey:
    """Read the whole table by its dialect, and count each line's fields beside it."""
    seen = _Survey()
    span: list[int] = [0, 0, 0]  # the row's lines; fewest and most fields of one

    def watch(line: str) -> None:
        count = line.count(dialect.delimiter) + 1
        seen.fields = seen.fields or count
        if count != seen.fields and seen.uneven is None and line.strip(" \r\n"):
            seen.uneven = lines.number
        span[:] = [span[0] + 1, min(span[1], count) if span[0] else count, max(span[2], count)]
        if '"' in line:
            seen.doubled = seen.doubled or '""' in line
            if dialect.delimiter == "\t":
                _count_quoted(seen, line.rstrip("\r\n").split("\t"))

    with open_text(path, form) as file:
        lines = Lines(file, form, dialect.skipped, watch)
        expected = len(form.header) if isinstance(form.header, tuple) else 0
        try:
            for row in rows(lines, dialect):
                seen.rows += 1
                expected = expected or len(row)
                if len(row) != expected:
                    seen.broken, seen.miscounted = (lines.first, f"{len(row)} fields, not {expected},"), True
                    break
                if span[0] > 1:
                    seen.joined += 1
                    if span[1] == span[2] == expected and (len(seen.spans) < 1000):
                        seen.spans.append((lines.first, lines.number))
                span[:] = [0, 0, 0]
        except csv.Error as problem:
            open_ = "end of data" in str(problem)
            why = "a quote opens that nothing closes" if open_ else "text follows the quote that ends a field"
            seen.broken = lines.first if open_ else lines.number, why
        lines.begins = True
        for _ in lines:  # the rest, for the fields of its lines
            lines.begins = True
    return seen


def _count_quoted(seen: _Survey, cells: list[str]) -> None:
    for number, cell in enumerate(cells):
        if len(cell) > 1 and cell[0] == cell[-1] == '"':
            seen.quoted[number] += 1
