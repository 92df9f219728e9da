"""Small corpora in every form, and helpers of the tests."""

import json
import zipfile
from pathlib import Path

from hfbsz.data.rows import Prepared, cache_folder, prepare
from hfbsz.recipe.fields import Data

TEXTS = [f"document {number}: " + "the quick brown fox. " * (1 + number % 7) for number in range(60)]
ROWS = [{"text": text, "label": number % 2} for number, text in enumerate(TEXTS)]


def made(needed=None, sets=None, **fields) -> Prepared:
    data = Data(**{"vocab_size": 300, "sequence_length": 16, "validation": "20%", **fields})
    return prepare(data, sets or {}, lambda *_: None, needed)


def kept_entries() -> list[str]:
    """Names of the files in the cache, except locks."""
    folder = cache_folder()
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def documents(prepared: Prepared) -> int:
    return prepared.manifest.train.documents + prepared.manifest.validation.documents


def tokens(rows) -> list[list[int]]:
    return [rows[number].tolist() for number in range(len(rows))]


def json_lines(path: Path, rows=ROWS) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel of tinycorpus 1.0 that pip can install."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tinycorpus-1.0-py3-none-any.whl"
    about = {
        "tinycorpus-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinycorpus\nVersion: 1.0\n",
        "tinycorpus-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinycorpus-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | about).items():
            archive.writestr(name, content)
    return path


def hub_folder(folder: Path, train=ROWS) -> Path:
    """A data set in the Hub's format, with two splits, the second of 30 rows."""
    import datasets

    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", train), ("validation", train[:30])):
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
