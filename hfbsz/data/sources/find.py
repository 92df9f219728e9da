"""Find the files that the paths and glob patterns of a recipe match."""

import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hfbsz.data.sources.formats import FORMATS
from hfbsz.data.sources.open_file import format_suffix
from hfbsz.errors import UserError, did_you_mean


@dataclass(frozen=True)
class SourceFile:
    """A local file and the name that its records are called after."""

    path: Path
    name: str  # path relative to the fixed part of the glob, so that it is the same on every machine

    def stamp(self) -> tuple[str, int, int]:
        """(name, size in bytes, modification time in ns): differs if the file has changed."""
        status = self.path.stat()
        return self.name, status.st_size, status.st_mtime_ns


def find_files(
    patterns: str | Sequence[str], exclude: Sequence[str] = (), field: str = "data.files"
) -> tuple[list[SourceFile], list[str]]:
    """The files that paths and globs match, sorted by name, and notes on folders that could not be read.

    `{stdlib}` in a pattern stands for the folder of the running Python's standard library. A pattern that is the path
    of an existing file is that file, even if it contains wildcards. Files below a folder named in `exclude` are left
    out. Raises UserError for a pattern without a match and for a folder.
    """
    files: dict[Path, SourceFile] = {}  # by real path
    unreadable: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = pattern.replace("{stdlib}", sysconfig.get_path("stdlib"))
        root = _fixed_part(expanded)
        matches = [path for path in _matches(expanded, root, unreadable) if path.is_file()]
        if not matches:
            raise UserError(f"{field}: {_no_match(pattern, Path(expanded), root, field)}")
        for path in matches:
            name = path.relative_to(root).as_posix() if path != root else path.name
            if set(exclude) & set(name.split("/")[:-1]):
                continue
            real = path.resolve()
            if real not in files or real == Path(os.path.abspath(path)):  # the real path takes precedence over links
                files[real] = SourceFile(path, name)
    if not files:
        raise UserError(f"data.exclude: {list(exclude)} leaves no file of {field}: {patterns!r}")
    notes = [f"{field}: {folder} cannot be read: its files are left out" for folder in dict.fromkeys(unreadable)]
    return sorted(files.values(), key=lambda file: (file.name, str(file.path))), notes


def _fixed_part(pattern: str) -> Path:
    """The folder before the first wildcard of a glob; an existing path is not a wildcard."""
    parts = Path(pattern).parts
    for number, part in enumerate(parts[:-1]):
        if glob.has_magic(part) and not os.path.lexists(Path(*parts[: number + 1])):
            return Path(*parts[:number])
    return Path(*parts[:-1])


def _matches(pattern: str, root: Path, unreadable: list[str]) -> Iterator[Path]:
    """The paths that a glob matches, as `glob.glob(recursive=True)` but safe with loops of symbolic links."""
    if os.path.lexists(pattern):
        yield Path(pattern)
        return
    rest = Path(pattern).parts[len(root.parts) :]
    yield from (Path(path) for path in _expand(str(root), rest, unreadable))


def _expand(base: str, parts: Sequence[str], unreadable: list[str]) -> Iterator[str]:
    if "**" not in parts:
        yield from sorted(glob.glob(os.path.join(glob.escape(base), *parts)))
        return
    index = parts.index("**")
    starts = _expand(base, parts[:index], unreadable) if index else iter([base])
    after = parts[index + 1 :] or ("*",)
    for start in starts:
        for folder in _folders(start, unreadable):
            yield from _expand(folder, after, unreadable)


def _folders(start: str, unreadable: list[str]) -> Iterator[str]:
    """A folder and all folders below it that are not hidden, each once. Symbolic links are followed after the regular
    folders, and never to a folder that was already visited."""
    visited: set[str] = set()
    waiting = [start]
    while waiting:
        links: list[str] = []
        stack = [folder for folder in waiting if os.path.isdir(folder)]
        waiting = []
        while stack:
            folder = stack.pop()
            real = os.path.realpath(folder)
            if real in visited:
                continue
            visited.add(real)
            yield folder
            try:
                with os.scandir(folder) as entries:
                    children = [entry for entry in entries if not entry.name.startswith(".") and os.path.isdir(entry)]
            except OSError:
                unreadable.append(folder)
                continue
            regular = [entry for entry in children if not entry.is_symlink()]
            stack += [entry.path for entry in sorted(regular, key=lambda entry: entry.name, reverse=True)]
            links += [entry.path for entry in children if entry.is_symlink()]
        waiting = sorted(links)


def _no_match(pattern: str, path: Path, root: Path, field: str) -> str:
    """Why a pattern matches no file, and what to write in its place."""
    if path.is_dir():
        part = field.rpartition(".")[0]
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json", "dataset_infos.json")):
            return f"{pattern!r} is the folder of a Hugging Face data set: {part}.hub={pattern} instead of {field}"
        suffixes = sorted(format_suffix(child) for child in path.glob("*") if child.is_file())
        usual = next(
            (suffix for suffix in suffixes if suffix in FORMATS), max(suffixes, key=suffixes.count, default="")
        )
        return f"{pattern!r} is a folder: name its files, '{field}={path}/**/*{usual}' in quotes"
    if "," in pattern:
        return f"no file matches {pattern!r}: write several patterns in brackets, {field}='[{pattern}]'"
    suggestion = did_you_mean(path.name, [child.name for child in root.glob("*")] if root.is_dir() else [])
    return f"no file matches {pattern!r}{suggestion}"
