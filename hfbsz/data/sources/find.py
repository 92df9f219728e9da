"""Which files the globs of a recipe name."""

import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hfbsz.data.sources.formats import FORMATS
from hfbsz.data.sources.open_file import ending_of
from hfbsz.errors import UserError, did_you_mean


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str  # path below the fixed part of the glob, the same on every machine

    def stamp(self) -> tuple[str, int, int]:
        status = self.path.stat()
        return self.name, status.st_size, status.st_mtime_ns


def find_files(
    patterns: str | Sequence[str], exclude: Sequence[str] = (), field: str = "data.files"
) -> tuple[list[SourceFile], list[str]]:
    """The files that globs name, sorted by name, and what is to be told of them; `{stdlib}` is the running Python's own
    source.

    A path that exists is that file, whatever signs it holds. Folders named in `exclude` are left out. Raises UserError
    for a pattern without a file, and for a folder.
    """
    found: dict[Path, SourceFile] = {}
    unread: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = pattern.replace("{stdlib}", sysconfig.get_path("stdlib"))
        root = _fixed_part(expanded)
        files = [path for path in _matches(expanded, root, unread) if path.is_file()]
        if not files:
            raise UserError(f"{field}: {_no_file(pattern, Path(expanded), root, field)}")
        for path in files:
            name = path.relative_to(root).as_posix() if path != root else path.name
            if set(exclude) & set(name.split("/")[:-1]):
                continue
            real = path.resolve()
            if real not in found or real == Path(os.path.abspath(path)):  # links name a file that has no other name
                found[real] = SourceFile(path, name)
    if not found:
        raise UserError(f"data.exclude: {list(exclude)} leaves no file of {patterns!r}")
    notes = [f"{field}: {folder} cannot be read: its files are left out" for folder in dict.fromkeys(unread)]
    return sorted(found.values(), key=lambda file: (file.name, str(file.path))), notes


def _fixed_part(pattern: str) -> Path:
    """The folder before a glob's first wildcard; a part that is there as it is written is none."""
    parts = Path(pattern).parts
    for number, part in enumerate(parts[:-1]):
        if glob.has_magic(part) and not os.path.lexists(Path(*parts[: number + 1])):
            return Path(*parts[:number])
    return Path(*parts[:-1])


def _matches(pattern: str, root: Path, unread: list[str]) -> Iterator[Path]:
    """The paths that a glob matches, as `glob.glob(recursive=True)` has it, but for loops of symbolic links."""
    if os.path.lexists(pattern):
        yield Path(pattern)
        return
    rest = Path(pattern).parts[len(root.parts) :]
    yield from (Path(path) for path in _expanded(str(root), rest, unread))


def _expanded(base: str, parts: Sequence[str], unread: list[str]) -> Iterator[str]:
    if "**" not in parts:
        yield from sorted(glob.glob(os.path.join(glob.escape(base), *parts)))
        return
    place = parts.index("**")
    starts = _expanded(base, parts[:place], unread) if place else iter([base])
    after = parts[place + 1 :] or ("*",)
    for start in starts:
        for folder in _folders(start, unread):
            yield from _expanded(folder, after, unread)


def _folders(start: str, unread: list[str]) -> Iterator[str]:
    """A folder and all below it that are not hidden, each once: symbolic links are followed after the folders proper,
    and never to one that was seen."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        links: list[str] = []
        stack = [folder for folder in waiting if os.path.isdir(folder)]
        waiting = []
        while stack:
            folder = stack.pop()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            yield folder
            try:
                with os.scandir(folder) as entries:
                    inside = [entry for entry in entries if not entry.name.startswith(".") and os.path.isdir(entry)]
            except OSError:
                unread.append(folder)
                continue
            below = sorted((entry for entry in inside if not entry.is_symlink()), key=lambda e: e.name, reverse=True)
            stack += [entry.path for entry in below]
            links += [entry.path for entry in inside if entry.is_symlink()]
        waiting = sorted(links)


def _no_file(pattern: str, path: Path, root: Path, field: str) -> str:
    """Why a pattern gives nothing, and what would."""
    if path.is_dir():
        part = field.rpartition(".")[0]
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json", "dataset_infos.json")):
            return f"{pattern!r} is a folder of a data set: {part}.hub={pattern} instead of {field}"
        endings = sorted(ending_of(inside) for inside in path.glob("*") if inside.is_file())
        usual = next((ending for ending in endings if ending in FORMATS), max(endings, key=endings.count, default=""))
        return f"{pattern!r} is a folder: name its files, '{field}={path}/**/*{usual}' in quotes"
    if "," in pattern:
        return f"no file matches {pattern!r}: several are written in brackets, {field}='[{pattern}]'"
    near = did_you_mean(path.name, [inside.name for inside in root.glob("*")] if root.is_dir() else [])
    return f"no file matches {pattern!r}{near}"
