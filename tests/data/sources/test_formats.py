"""Local files of every format, end to end through `prepare`."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle

import pyarrow as pa
import pytest
from corpora import ROWS, TEXTS, documents, json_lines, kept_entries, made, tokens
from pyarrow import parquet
from source_reader import read, texts

from hfbsz.errors import UserError
from hfbsz.recipe.fields import EvalSet


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


def table(rows, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_bytes(rows):
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    return file.getvalue()


LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
CONTENTS = {
    "x.jsonl": LINES,
    "x.jsonl.gz": gzip.compress(LINES),
    "x.json": json.dumps(ROWS).encode(),
    "x.json.xz": lzma.compress(json.dumps(ROWS).encode()),
    "x.csv": table(ROWS),
    "x.csv.bz2": bz2.compress(table(ROWS)),
    "x.tsv": table(ROWS, "\t"),
    "x.parquet": parquet_bytes(ROWS),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_texts(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    records, tally = read(files=str(tmp_path / name))
    assert texts(records) == TEXTS and tally.rows == len(TEXTS) and list(tally.columns) == ["text", "label"]
    assert len({record.name for record in records}) == len(TEXTS)
    data = made(files=str(tmp_path / name))
    assert documents(data) == len(TEXTS) and data.manifest.validation.documents > 2
    is_table = name.startswith(("x.csv", "x.ts"))
    assert [note for note in data.notes if "60 rows of 61 lines (1 header)" in note] == list(data.notes) * is_table


def test_a_compressed_text_file_is_one_document(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert documents(made(files=str(tmp_path / "*.gz"))) == len(TEXTS)


def test_other_needed_columns_are_read_too(tmp_path):
    for name in ("x.jsonl", "x.parquet", "x.csv"):
        (tmp_path / name).write_bytes(CONTENTS[name])
        labels = [int(record.columns["label"]) for record in read("text", "label", files=str(tmp_path / name))[0]]
        assert labels == [row["label"] for row in ROWS]


def test_the_keys_of_an_object_of_objects_name_the_rows(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({f"id{number}": row for number, row in enumerate(ROWS)}))
    assert documents(made(files=str(tmp_path / "x.json"))) == len(ROWS)
    assert read(files=str(tmp_path / "x.json"))[0][0].name == "x.json:id0"


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_rows_without_text_are_left_out_and_counted(tmp_path, format):
    rows = [*ROWS, {"text": "", "label": 1}, {"text": "  ", "label": 1}]
    if format != "csv":
        rows.append({"text": None, "label": 0})
    content = {"jsonl": "\n".join(map(json.dumps, rows)).encode(), "csv": table(rows), "parquet": parquet_bytes(rows)}
    (tmp_path / f"x.{format}").write_bytes(content[format])
    data = made(files=str(tmp_path / f"x.{format}"))
    assert documents(data) == len(ROWS)
    assert data.notes[-1].startswith(f"{len(rows) - len(ROWS)} of {len(rows)} documents hold no text and were left out")


def test_validation_files_and_sets_may_have_any_format(tmp_path):
    (tmp_path / "x.parquet").write_bytes(CONTENTS["x.parquet"])
    (tmp_path / "y.csv").write_bytes(table(ROWS[:25]))
    data = made(
        files=str(tmp_path / "x.parquet"),
        validation_files=str(tmp_path / "y.csv"),
        sets={"lines": EvalSet(files=str(json_lines(tmp_path / "z.jsonl", ROWS[:5])))},
    )
    counts = {name: counts.documents for name, counts in data.manifest.sets.items()}
    assert data.manifest.train.documents == len(ROWS) and data.manifest.validation.documents == 25
    assert counts == {"lines": 5}


def test_with_few_rows_validation_is_the_tail_of_the_text(tmp_path):
    data = made(files=str(json_lines(tmp_path / "x.jsonl", ROWS[:10])))
    assert "10 documents only: validation is the last 20% of the text" in data.notes[0]
    assert data.manifest.validation.rows and tokens(data.train)


class CodeInPickle:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"PAR1 and no more", "broken Parquet"),
        ("x.parquet", CONTENTS["x.parquet"][:-100], "broken Parquet"),
        (
            "x.parquet",
            parquet_bytes([{"txt": "a"}]),
            "no column 'text' (data.text); did you mean 'txt'?; there are 'txt'",
        ),
        ("x.csv", b"", "holds no text"),
        ("x.csv", b"text,label\n", "holds no text"),
        ("x.csv", b"body,label\na,b\n", "no column 'text' (data.text); there are 'body', 'label'"),
        ("x.csv", b'text,label\n"open\nb,2\n', "a quote"),
        ("x.csv", b"text,label\na,b,c\n", "row 1 has more fields than the 2 of the header"),
        ("x.csv", b"text,label\na\n", "row 1 has fewer fields"),
        ("x.csv", b"text\n\xff\xfe\n", "not UTF-8 text"),
        ("x.csv.bz2", b"no bz2", "its content is not .bz2-compressed"),
        ("x.jsonl.gz", gzip.compress(LINES)[:-40], "broken .gz file"),
        ("x.json.xz", b"no xz", "its content is not .xz-compressed"),
        ("x.json", b'{"text": "x"}', "neither an array nor an object of objects"),
        ("x.json", b"[1, 2]", "its rows are objects"),
        ("x.json", b'[{"text": "x"', "not JSON"),
        ("x.jsonl", b'{"text": 5}', "x.jsonl:1 holds a int, not text"),
        ("x.pkl", pickle.dumps(CodeInPickle()), "pickled data can run code"),
        ("x.npy.gz", pickle.dumps(CodeInPickle()), "pickled data can run code"),
    ],
)
def test_unreadable_files_give_one_line_and_no_cache_entry(tmp_path, capfd, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        made(files=str(tmp_path / name))
    (line,) = caught.value.lines
    assert message in line and name.split(".")[0] in line and "\n" not in line
    assert kept_entries() == [] and capfd.readouterr().out == ""


def test_the_default_source_is_the_standard_library():
    from hfbsz.data.sources.sources import open_source
    from hfbsz.recipe.fields import Data
    from hfbsz.recipe.load import load

    named = load(["data=python_stdlib"]).recipe.data
    assert open_source(Data()).stamp() == open_source(named).stamp()
