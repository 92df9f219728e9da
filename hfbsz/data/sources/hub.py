"""Hub data sets: by name, or a folder in the Hub's form or of `save_to_disk`."""

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

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Hub:
    """A split of a Hub data set; records are named `split:row`, streamed or not."""

    name: str
    config: str | None
    split: str
    revision: str | None
    stream: bool
    part: str = "data"  # of the recipe, for messages
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.part}.hub: split {self.split!r} of {self.name!r}"

    def _local_files(self) -> list[Path]:
        folder = Path(self.name)
        return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._local_files())

    def stamp(self) -> list[Any]:
        """A folder's by its files; the Hub's by name and revision."""
        files = [(path, path.stat()) for path in self._local_files()]
        local = [(str(path.relative_to(self.name)), status.st_size, status.st_mtime_ns) for path, status in files]
        return [local or self.name, self.config, self.split, self.revision]

    def class_names(self, column: str) -> list[str] | None:
        """The names of a ClassLabel."""
        return self._classes([column]).get(column)

    def _classes(self, columns: Iterable[str]) -> dict[str, list[str]]:
        import datasets

        features = self._dataset.features or {}
        found = {column: features.get(column) for column in columns}
        return {column: list(f.names) for column, f in found.items() if isinstance(f, datasets.ClassLabel)}

    def records(self, columns: Columns, tally: Tally) -> Iterator[Record]:
        """Rows as they are asked for; a stream is read no further than that."""
        dataset = self._dataset
        known = dataset.column_names  # None for streams whose columns show only in their rows
        if known is not None:
            check_columns(self.where, columns, known)
            tally.columns.update(dict.fromkeys(known))
            dataset = dataset.select_columns([name for name in columns.read if name in known])  # others, such as
            # images, need not be decoded
        classes = self._classes(columns.read)
        with _one_line(self.part, self.name):
            for number, row in enumerate(dataset if self.stream else _one_by_one(dataset)):
                if known is None:
                    if not number:
                        check_columns(self.where, columns, row)
                    tally.columns.update(dict.fromkeys(row))
                for column, names in classes.items():
                    row[column] = class_name(row[column], names, f"{self.where}: row {number}")
                tally.rows += 1
                yield Record(f"{self.split}:{number}", row)

    @cached_property
    def _dataset(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is told in one line, below
        folder = Path(self.name)
        if self.name.startswith((".", "/", "~")) and not folder.is_dir():
            raise UserError(f"{self.part}.hub: no folder {self.name!r}")
        saved = next((name for name in ("dataset_dict.json", "state.json") if (folder / name).is_file()), None)
        with _one_line(self.part, self.name):
            if saved is not None:
                return self._saved(folder, saved == "dataset_dict.json")
            self._check_config()
            builder = datasets.load_dataset_builder(self.name, self.config, revision=self.revision)
            self._check_split(list(builder.config.data_files or builder.info.splits or ()))
            if folder.is_dir():
                self._check_inside(_files_of(builder))
            self._check_tables(builder)
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=self.stream
            )

    def _saved(self, folder: Path, several: bool) -> Any:
        """A folder of `save_to_disk`: one data set, or one for each split."""
        import datasets

        if several:
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            self._check_split(splits, slices=False)
            self._check_inside(_saved_files(folder / self.split))
            return datasets.load_from_disk(folder / self.split)
        self._check_inside(_saved_files(folder))
        dataset = datasets.load_from_disk(folder)
        self._check_split([str(dataset.split or "train")], slices=False)
        return dataset

    def _check_inside(self, files: Iterable[Path]) -> None:
        """Raise UserError for a file that is not in the folder: a README, or a link, may lead anywhere."""
        folder = Path(self.name).resolve()
        home = folder.parents[1] if folder.parent.name == "snapshots" else folder  # the Hub's cache links to its blobs
        for file in files:
            if not file.resolve().is_relative_to(home):
                raise UserError(
                    f"{self.part}.hub: {self.name!r} leads out of itself, to {str(file)!r}: it is read inside itself "
                    f"alone; {self.part}.files names files anywhere"
                )

    def _check_config(self) -> None:
        import datasets

        known = datasets.get_dataset_config_names(self.name, revision=self.revision)
        listed = ", ".join(known)
        if self.config is None:
            if len(known) > 1 and datasets.get_dataset_default_config_name(self.name, revision=self.revision) is None:
                raise UserError(
                    f"{self.part}.hub_config: {self.name!r} has several configurations, name one of {listed}"
                )
        elif self.config not in known:
            near = did_you_mean(self.config, known)
            raise UserError(f"{self.part}.hub_config: {self.name!r} has no {self.config!r}{near}; there are {listed}")

    def _check_tables(self, builder: Any) -> None:
        """Raise UserError for local tables in which datasets, which reads quotes as quotes, would join rows."""
        config = builder.config
        files = _files_of(builder)
        if builder.name != "csv" or config.sep not in (",", "\t"):
            return
        for path in (path for path in files if path.is_file()):
            if told := joined_rows(path, config.sep):
                instead = command(f"{self.part}.files={path}")
                raise UserError(f"{self.part}.hub: {told}: {instead} instead of {self.part}.hub reads it")

    def _check_split(self, known: list[str], slices: bool = True) -> None:
        """Raise UserError for a split that is not there; slices such as train[:10%] are for whole data sets alone."""
        slices = slices and not self.stream
        asked = re.sub(r"\[.*?\]", "", self.split).split("+") if slices else [self.split]
        for split in asked:
            if known and split not in known:
                near = did_you_mean(split, known)
                raise UserError(
                    f"{self.part}.split: {self.name!r} has no split {split!r}{near}; there are {', '.join(known)}"
                )


def _files_of(builder: Any) -> list[Path]:
    return [Path(str(path)) for paths in (builder.config.data_files or {}).values() for path in paths]


def _saved_files(folder: Path) -> Iterator[Path]:
    """The files that a folder of `save_to_disk` names as its own, and the folder itself."""
    yield folder
    state = json.loads((folder / "state.json").read_text())
    yield from (folder / file["filename"] for file in state["_data_files"])


def _one_by_one(dataset: Any) -> Iterable[dict[str, Any]]:
    """Rows of a map-style data set, read in batches, which is faster."""
    for batch in dataset.iter(batch_size=_ROWS_AT_ONCE):
        yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


@contextmanager
def _one_line(part: str, name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # each of the many back ends of datasets raises its own kinds
        root = problem.__cause__ or problem if type(problem).__name__ == "DatasetGenerationError" else problem
        offline = f": a folder, or {part}.package, needs no network" if isinstance(problem, ConnectionError) else ""
        reason = shorten(str(root) or type(root).__name__, 300, placeholder=" …")
        raise UserError(f"{part}.hub: {name!r} cannot be read: {reason}{offline}") from None
