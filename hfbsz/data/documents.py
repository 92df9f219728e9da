"""Documents: the text files and JSON lines that a recipe names."""

import glob
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hfbsz.errors import UserError, did_you_mean

FEW_DOCUMENTS = 20  # below this, validation is the corpus's contiguous tail


@dataclass(frozen=True)
class Document:
    name: str  # the file's path below its glob's fixed part, with :line for JSON lines
    text: str


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str  # path below the fixed part of the glob, the same on every machine

    def stamp(self) -> tuple[str, int, int]:
        status = self.path.stat()
        return self.name, status.st_size, status.st_mtime_ns


def find_files(patterns: str | Sequence[str], exclude: Sequence[str] = ()) -> list[SourceFile]:
    """The files that globs name, sorted by name; `{stdlib}` is the running Python's own source.

    Folders named in `exclude` are left out. A pattern without a file raises UserError.
    """
    found: dict[Path, SourceFile] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = pattern.replace("{stdlib}", sysconfig.get_path("stdlib"))
        root = _fixed_part(expanded)
        paths = [Path(path) for path in glob.glob(expanded, recursive=True)]
        files = [path for path in paths if path.is_file()]
        if not files:
            near = did_you_mean(Path(expanded).name, [path.name for path in root.glob("*")] if root.is_dir() else [])
            raise UserError(f"data.files: no file matches {pattern!r}{near}")
        for path in files:
            name = path.relative_to(root).as_posix() if path != root else path.name
            if not set(exclude) & set(name.split("/")[:-1]):
                found[path.resolve()] = SourceFile(path, name)
    if not found:
        raise UserError(f"data.exclude: {list(exclude)} leaves no file of {patterns!r}")
    return sorted(found.values(), key=lambda file: (file.name, str(file.path)))


def _fixed_part(pattern: str) -> Path:
    """The part of a glob before its first wildcard."""
    parts = Path(pattern).parts
    wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:wild]) if wild else Path(".")


def read_documents(files: Iterable[SourceFile], column: str) -> Iterator[Document]:
    """Every document of the files, empty ones left out; what cannot be read as text raises UserError."""
    for file in files:
        if file.path.suffix == ".jsonl":
            yield from _json_lines(file, column)
        elif (text := _read_text(file.path)).strip():
            yield Document(file.name, text)


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: not UTF-8 text (byte {problem.start}): convert it, or leave it out") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    if "\0" in text:
        raise UserError(f"{path}: not text (it holds NUL bytes): leave it out")
    return text


def _json_lines(file: SourceFile, column: str) -> Iterator[Document]:
    for number, line in enumerate(_read_text(file.path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UserError(f"{file.path}:{number}: not JSON: {problem}") from None
        text = record.get(column) if isinstance(record, dict) else None
        if not isinstance(text, str):
            known = [key for key, value in record.items() if isinstance(value, str)] if isinstance(record, dict) else []
            there = f"; its text columns are {', '.join(known)}" if known else ""
            raise UserError(f"{file.path}:{number}: no text in column {column!r} (data.text){there}")
        if text.strip():  # JSON can hold halves of surrogate pairs, which are no text
            yield Document(f"{file.name}:{number}", text.encode("utf-8", "replace").decode())


def is_held_out(name: str, share: float) -> bool:
    """Whether a document belongs to validation: a hash of its name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < share


def split_tail(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Training documents and the held-out tail, `share` of all characters, cut at a line's end where there is one."""
    held = round(share * sum(len(document.text) for document in documents))
    train = list(documents)
    tail: list[Document] = []
    while held > 0 and train:
        last = train.pop()
        if len(last.text) > held:
            cut = len(last.text) - held
            cut = last.text.rfind("\n", 0, cut) + 1 or cut
            train.append(Document(last.name, last.text[:cut]))
            last = Document(f"{last.name} (tail)", last.text[cut:])
        tail.insert(0, last)
        held -= len(last.text)
    return train, tail
