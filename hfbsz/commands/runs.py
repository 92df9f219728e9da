"""A table of the runs in folders: state, batch, rate, tokens, loss, time, speed and noise scale.

    hfbsz runs [FOLDER …] [NAME* …] ['COLUMN<VALUE' …] [sort=COLUMN,-COLUMN] [columns=COLUMN,…] [format=text|json|csv]

FOLDER: searched for runs, with all folders below (default: runs). NAME*: only runs whose name, or its last part, fits a
pattern with *, ? or [. COLUMN<VALUE: only runs that meet it; also with >, <=, >=, = and != (several values separated by
commas, texts with *); quoted, because a shell reads < and >. A column is one of those below, or a field of the recipe
such as optim.lr. sort: by these columns, -COLUMN from the largest; unknown values are last. format: json and csv have
numbers in the units below, and null or an empty cell for what is unknown.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hfbsz.display import one_line, shortened
from hfbsz.errors import UserError, did_you_mean, exit_code
from hfbsz.recipe.words import split_options
from hfbsz.records.run_filter import Filter, check_column, in_order, parse_filter
from hfbsz.records.run_table import COLUMNS, Row, read_rows
from hfbsz.report.run_table import SHOWN, as_csv, as_json, columns_help, print_table, without_repeated
from hfbsz.system.command_name import command_name

_FOLDER = Path("runs")
_OPTIONS = ("sort", "columns", "format")
_FORMATS = ("text", "json", "csv")


@dataclass(frozen=True)
class _Request:
    folders: tuple[Path, ...]
    patterns: tuple[str, ...]  # of names: any of them
    filters: tuple[Filter, ...]  # all of them
    sort: tuple[str, ...]
    columns: tuple[str, ...]  # empty: those of the format
    format: str

    def keeps(self, row: Row) -> bool:
        """Whether a run is in the table."""
        name = str(row.values["name"])
        parts = (name, name.rpartition("/")[2], str(row.values["folder"]))
        fits = any(fnmatchcase(part, pattern) for part in parts for pattern in self.patterns)
        return (fits or not self.patterns) and all(each.keeps(row) for each in self.filters)


def main(words: list[str]) -> int:
    """Print the table; returns the exit code."""
    if "--help" in words or "-h" in words:
        print("\n".join([__doc__.rstrip(), "\ncolumns:", *columns_help()]))
        return 0
    return exit_code(lambda: _print(_parse(words)))


def _print(request: _Request) -> None:
    rows = read_rows([folder for folder in request.folders if folder.is_dir()], _note)
    kept = in_order([row for row in rows if request.keeps(row)], request.sort)
    if request.format != "text":
        names = request.columns or tuple(COLUMNS)
        print(as_json(kept, names) if request.format == "json" else as_csv(kept, names).rstrip("\n"))
    elif kept:
        print_table(kept, request.columns or without_repeated(kept, SHOWN), len(rows))
    if not kept:
        where = one_line(", ".join(map(str, request.folders)))
        train = f"{command_name('pretrain')} recipe=small_batch_pretrain trains one"
        line = f"{where}: none of the {len(rows)} runs fits" if rows else f"{where}: no runs: {train}"
        print(line, file=sys.stdout if request.format == "text" else sys.stderr)


def _note(line: str) -> None:
    print(f"note: {one_line(line)}", file=sys.stderr, flush=True)


def _parse(words: list[str]) -> _Request:
    """The request of the words. Raises UserError with a line for each mistake."""
    options, others = split_options(words, _OPTIONS)
    folders: list[Path] = []
    files: list[str] = []
    patterns: list[str] = []
    filters: list[Filter] = []
    errors: list[str] = []
    for word in others:
        try:
            if os.path.isdir(word):
                folders.append(Path(word))
            elif os.path.isfile(word):  # of runs/*, which a shell expands to the logs of a comparison too
                files.append(word)
            elif (parsed := parse_filter(word, _OPTIONS)) is not None:
                filters.append(parsed)
            elif set(word) & set("*?["):
                patterns.append(word)
            else:
                raise UserError(_no_folder(word, command_name("runs")))
        except UserError as problem:
            errors += problem.lines
    for name in ("sort", "columns"):
        for column in _names(options, name):
            try:
                check_column(column.removeprefix("-") if name == "sort" else column)
            except UserError as problem:
                errors += [f"{name}={options[name]}: {line}" for line in problem.lines]
    form = options.get("format", _FORMATS[0])
    if form not in _FORMATS:
        errors.append(f"format={form}: must be {', '.join(_FORMATS)}{did_you_mean(form, _FORMATS)}")
    if files and not folders:
        errors.append(f"{files[0]}: a file: name folders, in which runs are searched")
    if errors:
        raise UserError(errors)
    for file in files:
        _note(f"{file}: a file: skipped")
    sort, columns = _names(options, "sort"), _names(options, "columns")
    return _Request(tuple(folders) or (_FOLDER,), tuple(patterns), tuple(filters), sort, columns, form)


def _names(options: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The names of an option that lists columns. Raises UserError for an empty one."""
    if name not in options:
        return ()
    names = tuple(part.strip() for part in options[name].split(","))
    if not all(part.strip("-") for part in names):
        raise UserError(f"{name}={options[name]}: a name is missing")
    return names


def _no_folder(word: str, command: str) -> str:
    """The error line for a word that is neither a folder, a filter nor a pattern."""
    name = word.lstrip("-")
    if name in _OPTIONS:
        return f"{word}: write {name}=…"
    if name in COLUMNS:
        return f"{word}: no such folder; for a comparison write {command} '{name}<…', in quotes"
    name = shortened(name)
    if os.sep in word:
        return f"{shortened(word)}: no such folder"
    return f"{shortened(word)}: no such folder; for runs of such a name write {command} '*{name}*'"
