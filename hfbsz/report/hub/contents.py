"""What of a run is pushed: model, tokenizer, card, recipe, plan, records and page, without paths of this machine.

Checkpoints, logs, W&B's files, status.json and machine.json stay here.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from hfbsz.errors import UserError
from hfbsz.recipe.load import from_mapping
from hfbsz.records.folder import read_status
from hfbsz.records.run_data import RunData, read_run
from hfbsz.report.card import PICTURE, recipe_text
from hfbsz.report.hub.local_paths import LocalPaths
from hfbsz.system.files import read_object
from hfbsz.system.yaml import read_yaml, yaml_text

CARD, RECORDS, TABLE = "README.md", "records.jsonl", "records.parquet"
_LOADS = re.compile(r'\.from_pretrained\("([^"\n]+)"\)')
_RECORDS_SECTION = """
## The records
```python
from datasets import load_dataset

records = load_dataset("parquet", data_files="hf://{repository}/{table}", split="train")
```
"""

Files = dict[str, Path | bytes]  # by path in the repository


def contents(folder: Path, model: Path, repository: str) -> tuple[Files, list[str]]:
    """The files to push, and notes on those that are left out. `model`: the folder of the model and its card, that of
    the run or another one. Raises UserError if no model is there."""
    _refuse_outside(folder, ("recipe.yaml", "plan.json", RECORDS, "report.html"))
    _refuse_outside(model, [CARD, PICTURE, *_model_files(folder, model)])
    run, hidden = read_run(folder), LocalPaths(folder)
    files: Files = {name: model / name for name in _model_files(folder, model)}
    if (model / PICTURE).is_file():
        files[PICTURE] = model / PICTURE
    texts = {"recipe.yaml": _recipe(folder, hidden), "plan.json": _plan(folder, hidden)}
    texts[CARD] = _card(folder, model / CARD, repository, hidden)
    if model == folder and (page := _read(folder / "report.html")):
        page = page.replace(str(escape(run.recipe)), str(escape(texts["recipe.yaml"])))  # as the template writes it
        texts["report.html"] = hidden.in_text(page)
    notes = []
    for name, text in texts.items():
        if text and hidden.is_in(text):
            notes.append(f"{name} is not pushed: it names a folder of this machine")
        elif text:
            files[name] = text.encode()
    files[RECORDS] = (folder / RECORDS).read_bytes().rpartition(b"\n")[0] + b"\n"  # the last line may be incomplete
    files[TABLE] = _table(run)
    return files, notes


def _refuse_outside(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError for a file outside the folder: names in status.json, and links, may lead anywhere."""
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder / name}: this leads out of the folder of the run: nothing is pushed")


def _model_files(folder: Path, model: Path) -> list[str]:
    """The paths of the model's files, relative to its folder."""
    if model != folder:
        names = [path.relative_to(model).as_posix() for path in sorted(model.rglob("*")) if path.is_file()]
        return [name for name in names if name not in (CARD, PICTURE)]
    saved = read_status(folder).get("saved") or {}
    lost = [name for name in saved if not (folder / name).is_file()]
    if not saved or lost:
        raise UserError(f"{folder}: {f'{lost[0]} of the saved model is gone' if lost else 'it has no saved model'}")
    return list(saved)


def _recipe(folder: Path, hidden: LocalPaths) -> str:
    """The recipe without paths of this machine; empty if it cannot be read."""
    return yaml_text(hidden.in_data(read_yaml(folder / "recipe.yaml"))) if (folder / "recipe.yaml").is_file() else ""


def _plan(folder: Path, hidden: LocalPaths) -> str:
    plan = read_object(folder / "plan.json")
    return json.dumps(hidden.in_data(plan), indent=1) if plan else ""


def _card(folder: Path, path: Path, repository: str, hidden: LocalPaths) -> str:
    """The card beside the model, which then loads model and records from the repository. Raises UserError if it is
    gone."""
    if not (text := _read(path)):
        raise UserError(f"{path}: the card of the model is gone")
    if loaded := _LOADS.search(text):
        text = text.replace(loaded[0], f'.from_pretrained("{repository}")')
    recipe = from_mapping(read_yaml(folder / "recipe.yaml")).model_dump(mode="json", exclude_defaults=True)
    text = text.replace(recipe_text(recipe), recipe_text(hidden.in_data(recipe)))
    return hidden.in_text(text) + _RECORDS_SECTION.format(repository=repository, table=TABLE)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _table(run: RunData) -> bytes:
    """The records as a Parquet file: a column for each metric, null where a record does not have it."""
    import pyarrow as pa
    from pyarrow import parquet

    names = dict.fromkeys(name for record in run.records for name in record)
    columns = {name: _column([record.get(name) for record in run.records]) for name in names}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _column(values: Sequence[Any]) -> Any:
    """An Arrow array of texts, flags, whole numbers or numbers, whichever holds all values."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    kind = pa.int64() if kinds == {int} else pa.bool_() if kinds == {bool} else pa.float64()
    if str in kinds:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array([value if value is None or kind != pa.float64() else float(value) for value in values], kind)
