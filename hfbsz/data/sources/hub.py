"""Hugging Face data sets: by Hub name, or a local folder in the Hub's layout or written by `save_to_disk`."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

from hfbsz.data.sources.dialects import joined_rows
from hfbsz.data.sources.formats import class_name
from hfbsz.data.sources.records import Columns, Record, Tally, check_columns
from hfbsz.display import command
from hfbsz.errors import UserError, did_you_mean

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Hub:
    """A split of a Hub data set: a `Source`. Records are named `split:row`, whether it is streamed or not."""

    name: str
    config: str | None
    split: str
    revision: str | None
    stream: bool
    part: str = "data"  # part of the recipe, for messages
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The recipe field and its value, for messages."""
        return f"{self.part}.hub: split {self.split!r} of {self.name!r}"

    def _local_files(self) -> list[Path]:
        folder = Path(self.name)
        return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []

    def size(self) -> int:
        """The bytes of a local folder; 0 for a data set on the Hub."""
        return sum(path.stat().st_size for path in self._local_files())

    def stamp(self) -> list[Any]:
        """The files of a local folder (or the name), configuration, split and revision, as plain data."""
        files = [(path, path.stat()) for path in self._local_files()]
        local = [(str(path.relative_to(self.name)), status.st_size, status.st_mtime_ns) for path, status in files]
        return [local or self.name, self.config, self.split, self.revision]

    def class_names(self, column: str) -> list[str] | None:
        """The class names of a ClassLabel column; None for other columns."""
        return self._classes([column]).get(column)

    def _classes(self, columns: Iterable[str]) -> dict[str, list[str]]:
        import datasets

        features = self._dataset.features or {}
        selected = {column: features.get(column) for column in columns}
        return {column: list(f.names) for column, f in selected.items() if isinstance(f, datasets.ClassLabel)}

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        """The rows, read lazily: a stream is read no further than the consumer iterates. Raises UserError."""
        dataset = self._dataset
        names = dataset.column_names  # None for streams whose columns are only known from their rows
        if names is not None:
            check_columns(self.where, columns, names)
            tally.columns.update(dict.fromkeys(names))
            # other columns, such as images, need not be decoded
            dataset = dataset.select_columns([name for name in columns.read if name in names])
        classes = self._classes(columns.read)
        with _errors_in_one_line(self.part, self.name):
            for number, row in enumerate(dataset if self.stream else _rows_in_batches(dataset)):
                if names is None:
                    if not number:
                        check_columns(self.where, columns, row)
                    tally.columns.update(dict.fromkeys(row))
                for column, labels in classes.items():
                    row[column] = class_name(row[column], labels, f"{self.where}: row {number}")
                tally.rows += 1
                yield Record(f"{self.split}:{number}", row)

    @cached_property
    def _dataset(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are reported in one line, see below
        folder = Path(self.name)
        if self.name.startswith((".", "/", "~")) and not folder.is_dir():
            raise UserError(f"{self.part}.hub: no folder {self.name!r}")
        saved = next((name for name in ("dataset_dict.json", "state.json") if (folder / name).is_file()), None)
        with _errors_in_one_line(self.part, self.name):
            if saved is not None:
                return self._load_saved(folder, is_dict=saved == "dataset_dict.json")
            self._check_config()
            builder = datasets.load_dataset_builder(self.name, self.config, revision=self.revision)
            self._check_split(list(builder.config.data_files or builder.info.splits or ()))
            if folder.is_dir():
                self._check_inside(_files_of(builder))
            self._check_tables(builder)
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=self.stream
            )

    def _load_saved(self, folder: Path, is_dict: bool) -> Any:
        """A folder written by `save_to_disk`: a Dataset, or a DatasetDict with a Dataset per split."""
        import datasets

        if is_dict:
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            self._check_split(splits, slices=False)
            self._check_inside(_saved_files(folder / self.split))
            return datasets.load_from_disk(folder / self.split)
        self._check_inside(_saved_files(folder))
        dataset = datasets.load_from_disk(folder)
        self._check_split([str(dataset.split or "train")], slices=False)
        return dataset

    def _check_inside(self, files: Iterable[Path]) -> None:
        """Raise UserError for a file outside the folder: a README or a symbolic link may refer to any path."""
        folder = Path(self.name).resolve()
        root = folder.parents[1] if folder.parent.name == "snapshots" else folder  # the Hub's cache links to its blobs
        for file in files:
            if not file.resolve().is_relative_to(root):
                raise UserError(
                    f"{self.part}.hub: {self.name!r} refers to {str(file)!r}, which is outside of its folder: only "
                    f"files inside are read; {self.part}.files reads files anywhere"
                )

    def _check_config(self) -> None:
        import datasets

        names = datasets.get_dataset_config_names(self.name, revision=self.revision)
        listed = ", ".join(names)
        if self.config is None:
            if len(names) > 1 and datasets.get_dataset_default_config_name(self.name, revision=self.revision) is None:
                raise UserError(
                    f"{self.part}.hub_config: {self.name!r} has several configurations, name one of {listed}"
                )
        elif self.config not in names:
            suggestion = did_you_mean(self.config, names)
            raise UserError(
                f"{self.part}.hub_config: {self.name!r} has no {self.config!r}{suggestion}; there are {listed}"
            )

    def _check_tables(self, builder: Any) -> None:
        """Raise UserError for local tables whose quotes would join rows in `datasets`, which always parses quotes."""
        config = builder.config
        files = _files_of(builder)
        if builder.name != "csv" or config.sep not in (",", "\t"):
            return
        for path in (path for path in files if path.is_file()):
            if message := joined_rows(path, config.sep):
                instead = command(f"{self.part}.files={path}")
                raise UserError(f"{self.part}.hub: {message}: {instead} instead of {self.part}.hub reads it")

    def _check_split(self, available: list[str], slices: bool = True) -> None:
        """Raise UserError for a split that does not exist. Slices such as train[:10%] need a data set in the Hub's
        layout that is not streamed."""
        slices = slices and not self.stream
        requested = re.sub(r"\[.*?\]", "", self.split).split("+") if slices else [self.split]
        for split in requested:
            if available and split not in available:
                suggestion, listed = did_you_mean(split, available), ", ".join(available)
                raise UserError(
                    f"{self.part}.split: {self.name!r} has no split {split!r}{suggestion}; there are {listed}"
                )


def _files_of(builder: Any) -> list[Path]:
    return [Path(str(path)) for paths in (builder.config.data_files or {}).values() for path in paths]


def _saved_files(folder: Path) -> Iterator[Path]:
    """A folder written by `save_to_disk`, and the data files that its state.json lists."""
    yield folder
    state = json.loads((folder / "state.json").read_text())
    yield from (folder / file["filename"] for file in state["_data_files"])


def _rows_in_batches(dataset: Any) -> Iterable[dict[str, Any]]:
    """The rows of a map-style data set, read in batches, which is faster than one by one."""
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


@contextmanager
def _errors_in_one_line(part: str, name: str) -> Iterator[None]:
    """Turn the errors of `datasets` into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # each of the back ends of `datasets` raises errors of its own types
        root = problem.__cause__ or problem if type(problem).__name__ == "DatasetGenerationError" else problem
        offline = f": a folder, or {part}.package, needs no network" if isinstance(problem, ConnectionError) else ""
        reason = shorten(str(root) or type(root).__name__, 300, placeholder=" …")
        raise UserError(f"{part}.hub: {name!r} cannot be read: {reason}{offline}") from None
