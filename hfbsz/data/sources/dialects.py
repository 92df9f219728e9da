"""Detect the delimiter and the quoting of a table in one pass over the file.

The delimiter follows from the first lines. The quoting follows from the complete file, parsed in two ways: with quoted
fields (RFC 4180), and with quotes as ordinary characters, where every line is a row. If both give rows and the first
joins lines, TSV is read line by line, and CSV is refused until the recipe sets `quoting`.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from hfbsz.data.sources.lines import Dialect, Lines, rows
from hfbsz.data.sources.open_file import CHUNK, ReadOptions, open_text
from hfbsz.errors import UserError

DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space", "": "line"}
_DELIMITERS = (",", ";", "\t", "|")
_HEAD_LINES, _HEAD_CHARACTERS = 200, 2**20
_MAX_SPANS = 1000
_LONG_SPAN = 4  # quoted lines that could each be a row: more than chance
_EXCEL_SEP = re.compile(r'^"?sep=(.)"?$')  # a first line that tells Excel the delimiter
_EACH_A_ROW = " that are each a row"
# Orange's .tab files have a second line of column types and a third line of column flags
_ORANGE_TYPES = {"continuous", "c", "discrete", "d", "string", "s", "time", "t", "text", "basket", ""}
_ORANGE_FLAGS = {"class", "c", "meta", "m", "ignore", "i", "weight", "w"}


def dialect_of(path: Path, options: ReadOptions, default_delimiter: str, needed: Sequence[str]) -> Dialect:
    """How a table is parsed. `default_delimiter` is preferred if it gives the `needed` columns. Raises UserError, in
    one line, if the quotes are ambiguous or malformed."""
    status = path.stat()
    return _detect(path, (status.st_size, status.st_mtime_ns), options, default_delimiter, tuple(needed))


@lru_cache(maxsize=4096)
def _detect(
    path: Path, stamp: tuple[int, int], options: ReadOptions, default_delimiter: str, needed: tuple[str, ...]
) -> Dialect:
    """`stamp` is only part of the cache key: a file that has changed is detected again."""
    head = read_head(path, options)
    quoting = options.quoting if options.quoting != "auto" else "minimal"
    initial = Dialect(default_delimiter, quoting, options.skip_lines)
    may_have_sep = bool(head) and not options.skip_lines and options.delimiter is None
    excel_sep = _EXCEL_SEP.match(head[0].strip()) if may_have_sep else None
    if options.delimiter is not None:
        dialect = replace(initial, delimiter=options.delimiter)
    elif excel_sep:
        dialect = replace(initial, delimiter=excel_sep[1], skip_lines=1)
    else:
        dialect = _with_delimiter(head, options, initial, needed)
        if options.quoting == "auto" and _is_one_column(path, head, options, dialect):
            dialect = replace(_noted(dialect, "each line is one text: the header has only one column"), delimiter="")
    if options.header is True and _is_orange(head, options, dialect):
        first = dialect.skip_lines + 2  # the header is the line before
        dialect = _noted(
            replace(dialect, skip_after_header=2),
            f"lines {first} and {first + 1}, Orange's types and flags, are skipped",
        )
    if len(dialect.delimiter) != 1:
        return replace(dialect, quoting="none")
    if options.quoting == "auto":
        return _with_quoting(path, options, dialect, default_delimiter)
    return dialect


def joined_rows(path: Path, delimiter: str) -> str | None:
    """What is wrong with a table for a reader that always parses quoted fields, if its quotes join rows or may do so;
    else None."""
    try:
        notes = dialect_of(path, ReadOptions(delimiter=delimiter), delimiter, ()).notes
    except UserError as problem:
        return str(problem).split(_EACH_A_ROW, maxsplit=1)[0]
    return next((f"{path}: {note.replace(' (data.quoting=none)', '')}" for note in notes if "in line" in note), None)


def _with_delimiter(head: list[str], options: ReadOptions, initial: Dialect, needed: Sequence[str]) -> Dialect:
    """The dialect with the first delimiter, the default one before others, that gives the needed columns; else with one
    that gives every line the same number of fields; else with one that gives most lines several."""
    candidates = [initial.delimiter, *(other for other in _DELIMITERS if other != initial.delimiter)]
    counts: dict[str, list[int]] = {}
    for delimiter in candidates:
        parsed = head_rows(head, options, replace(initial, delimiter=delimiter))
        names = options.header if isinstance(options.header, tuple) else parsed[0] if parsed and options.header else ()
        if options.header is True and set(needed) <= set(names):
            return replace(initial, delimiter=delimiter)
        counts[delimiter] = [len(row) for row in parsed]
        has_rows = bool(counts[delimiter])
        if isinstance(options.header, tuple) and has_rows and set(counts[delimiter]) == {len(names)}:
            return replace(initial, delimiter=delimiter)
    even = [each for each in candidates if len(set(counts[each])) == 1 and counts[each][0] > 1]
    several = [each for each in candidates if counts[each] and Counter(counts[each]).most_common(1)[0][0] > 1]
    return replace(initial, delimiter=(even or several or candidates)[0])


def head_rows(head: list[str], options: ReadOptions, dialect: Dialect) -> list[list[str]]:
    """The rows of a table's first lines, up to the first malformed one."""
    lines = Lines(iter(head), options, dialect.skip_lines)
    parsed: list[list[str]] = []
    try:
        for row in rows(lines, dialect):
            parsed.append(row)
    except csv.Error:
        if dialect.quoting != "none":
            literal = head_rows(head, options, replace(dialect, quoting="none"))
            return literal if len({len(row) for row in literal}) == 1 else parsed or literal
    return parsed


def read_head(path: Path, options: ReadOptions) -> list[str]:
    """The first lines of a file, at most 200 after the skipped ones and at most 2^20 characters (the last may be
    cut)."""
    head: list[str] = []
    remaining = _HEAD_CHARACTERS
    with open_text(path, options) as file:
        while remaining > 0 and len(head) < options.skip_lines + _HEAD_LINES and (line := file.readline(remaining)):
            head.append(line)
            remaining -= len(line)
    return head


def _is_one_column(path: Path, head: list[str], options: ReadOptions, dialect: Dialect) -> bool:
    """Whether the header is one column, some lines hold the delimiter, and none begins with a quote."""
    first = head_rows(head, options, dialect)[:1]
    if isinstance(options.header, tuple):
        columns = len(options.header)
    else:
        columns = len(first[0]) if first and options.header else 0
    if columns != 1:
        return False
    with open_text(path, options) as file:
        has_delimiter = False
        for line in Lines(file, options, dialect.skip_lines):
            if line.startswith('"'):
                return False
            has_delimiter = has_delimiter or dialect.delimiter in line
        return has_delimiter


def _is_orange(head: list[str], options: ReadOptions, dialect: Dialect) -> bool:
    """Whether the second and third lines hold the types and flags of columns, as Orange writes them."""
    first = head_rows(head[: dialect.skip_lines + 3], options, replace(dialect, quoting="none"))
    if len(first) < 3:
        return False
    flags = [word for cell in first[2] for word in cell.split()]
    types = {cell.strip() for cell in first[1]}
    return types <= _ORANGE_TYPES and types != {""} and all(flag in _ORANGE_FLAGS or "=" in flag for flag in flags)


@dataclass
class _Survey:
    """The result of parsing a table with quoted fields, and of counting the fields of its lines without quoting."""

    fields: int = 0  # of the first line, with quotes as ordinary characters
    uneven: int | None = None  # the first line with another number of fields than that
    broken: tuple[int, str] | None = None  # the first line where quoted fields give no valid row, and why
    wrong_count: bool = False  # whether it is broken because of the number of fields
    spans: list[tuple[int, int]] = field(default_factory=list)  # first and last line of rows whose lines could be rows
    multiline: int = 0  # number of rows that span several lines
    quoted: Counter[int] = field(default_factory=Counter)  # TSV only: column -> number of quoted fields
    has_doubled: bool = False  # whether two quotes follow each other
    rows: int = 0


def _with_quoting(path: Path, options: ReadOptions, dialect: Dialect, default_delimiter: str) -> Dialect:
    """The dialect with the detected quoting. Raises UserError if the quotes are ambiguous or malformed."""
    with open_text(path, options) as file:
        if not any('"' in chunk for chunk in iter(lambda: file.read(CHUNK), "")):
            return replace(dialect, quoting="none")
    survey = _survey(path, options, dialect)
    if survey.broken is not None:
        return _with_unusual_quoting(path, options, dialect, survey)
    is_tsv, part = default_delimiter == "\t", options.part
    as_characters = replace(dialect, quoting="none")
    if not (survey.spans and _joins_rows(survey)):
        is_literal = survey.uneven is None and not (survey.has_doubled or survey.multiline or _all_quoted(survey))
        if is_tsv and is_literal:
            return _noted(as_characters, f"quotes around some fields are ordinary characters ({part}.quoting=none)")
        return dialect
    first, last = survey.spans[0]
    quotes = f"the quotes that open in line {first} and close in line {last}"
    if is_tsv and survey.uneven is None and survey.fields > 1:
        return _noted(as_characters, f"{quotes} are ordinary characters ({part}.quoting=none): each line is a row")
    remedy = f"{part}.quoting=none reads the quotes as ordinary characters and each line as a row"
    if survey.uneven is not None:
        remedy = f"to keep them as characters, double them in a quoted field (line {survey.uneven} needs its quotes)"
    raise UserError(
        f"{path}:{first}: {quotes} hold {last - first + 1} lines{_EACH_A_ROW}: {remedy}; "
        f"{part}.quoting=minimal reads one quoted row"
    )


def _with_unusual_quoting(path: Path, options: ReadOptions, dialect: Dialect, survey: _Survey) -> Dialect:
    """The dialect of a table that is broken with quoted fields as in RFC 4180. Raises UserError if no other fits."""
    assert survey.broken is not None
    line, reason = survey.broken
    part = options.part
    if survey.uneven is None:
        note = f"quotes are ordinary characters ({part}.quoting=none): in line {line}, {reason}"
        return _noted(replace(dialect, quoting="none"), note)
    for quoting, note in (
        ("escaped", "quotes inside fields are escaped with backslashes"),
        ("spaced", "spaces before opening quotes are dropped"),
    ):
        if _survey(path, options, replace(dialect, quoting=quoting)).broken is None:
            return _noted(replace(dialect, quoting=quoting), note)
    if survey.wrong_count:
        return dialect  # the reader reports the content of that row
    raise UserError(
        f"{path}:{line}: {reason}: double the quotes inside fields and put quotes around texts that hold "
        f"{dialect.delimiter!r} ({part}.quoting=none does not fit either: line {survey.uneven} does not have "
        f"the {survey.fields} fields of the first line)"
    )


def _noted(dialect: Dialect, note: str) -> Dialect:
    return replace(dialect, notes=(*dialect.notes, note))


def _joins_rows(survey: _Survey) -> bool:
    """Whether quotes that are ordinary characters seem to join rows: all rows of several lines, or one of many lines,
    consist of lines that are valid rows themselves."""
    if survey.fields == 1:  # every line of a single column is a row
        return survey.uneven is None and not survey.has_doubled
    longest = max(last - first + 1 for first, last in survey.spans)
    return len(survey.spans) == survey.multiline or longest >= _LONG_SPAN


def _all_quoted(survey: _Survey) -> bool:
    """Whether every column with quoted fields has only quoted fields: the writer quotes all texts."""
    return all(count >= survey.rows - 1 for count in survey.quoted.values())  # the header may be unquoted


def _survey(path: Path, options: ReadOptions, dialect: Dialect) -> _Survey:
    """Parse the complete table with this dialect, and count the fields of each line without quoting."""
    survey = _Survey()
    row_lines = min_fields = max_fields = 0  # of the current row: its lines, and the fewest and most fields of a line

    def watch(line: str) -> None:
        nonlocal row_lines, min_fields, max_fields
        count = line.count(dialect.delimiter) + 1
        survey.fields = survey.fields or count
        if count != survey.fields and survey.uneven is None and line.strip(" \r\n"):
            survey.uneven = lines.number
        min_fields = min(min_fields, count) if row_lines else count
        max_fields = max(max_fields, count)
        row_lines += 1
        if '"' in line:
            survey.has_doubled = survey.has_doubled or '""' in line
            if dialect.delimiter == "\t":
                _count_quoted(survey, line.rstrip("\r\n").split("\t"))

    with open_text(path, options) as file:
        lines = Lines(file, options, dialect.skip_lines, watch)
        expected = len(options.header) if isinstance(options.header, tuple) else 0
        try:
            for row in rows(lines, dialect):
                survey.rows += 1
                expected = expected or len(row)
                if len(row) != expected:
                    survey.broken = lines.row_start, f"a row has {len(row)} fields, not {expected}"
                    survey.wrong_count = True
                    break
                if row_lines > 1:
                    survey.multiline += 1
                    if min_fields == max_fields == expected and len(survey.spans) < _MAX_SPANS:
                        survey.spans.append((lines.row_start, lines.number))
                row_lines = min_fields = max_fields = 0
        except csv.Error as problem:
            if "end of data" in str(problem):
                survey.broken = lines.row_start, "a quote is never closed"
            else:
                survey.broken = lines.number, "text follows the quote that ends a field"
        lines.at_row_start = True
        for _ in lines:  # count the fields of the remaining lines
            lines.at_row_start = True
    return survey


def _count_quoted(survey: _Survey, cells: list[str]) -> None:
    for number, cell in enumerate(cells):
        if len(cell) > 1 and cell[0] == cell[-1] == '"':
            survey.quoted[number] += 1
