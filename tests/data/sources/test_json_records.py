"""JSON documents of every supported layout, and files whose suffix does not give their format."""

import bz2
import gzip
import json
import lzma
import sysconfig
from pathlib import Path

import pandas
import pyarrow as pa
import pytest
from source_reader import read, refused, texts

ROWS = [{"text": f"text {number}", "label": number % 2} for number in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = [row["text"] for row in ROWS]
PACKED = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.fixture
def write(tmp_path):
    def write(name, content) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".JSONL"])
def test_case_14_json_lines_with_every_suffix(write, ending, packed):
    records, tally = read("text", "label", files=write(f"x{ending}{packed}", PACKED[packed](LINES.encode())))
    assert texts(records) == TEXTS and tally.rows == 40 and list(tally.columns) == ["text", "label"]
    assert tally.notes == ([f"x.json{packed} holds JSON lines"] if ending == ".json" else [])
    assert records[4].name == f"x{ending}{packed}:5"


def test_several_zstd_frames_and_a_truncated_one(write):
    pack = PACKED[".zst"]
    frames = b"\x50\x2a\x4d\x18\x04\0\0\0skip" + b"".join(pack(line.encode()) for line in LINES.splitlines(True))
    assert texts(read(files=write("x.jsonl.zst", frames))[0]) == TEXTS
    assert "broken .zst file: Truncated" in refused(files=write("y.jsonl.zst", pack(LINES.encode() * 99)[:-3]))


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_with_the_wrong_compression_suffix(write, packed):
    assert f"its content is not {packed}-compressed" in refused(files=write(f"x.jsonl{packed}", LINES))
    assert f"add {packed} to its name" in refused(files=write("x.jsonl", PACKED[packed](LINES.encode())))


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [0, 2])
def test_every_orient_that_pandas_writes(write, orient, indent):
    path = write("x.json", pandas.DataFrame(ROWS).to_json(orient=orient, indent=indent))
    records, _ = read("text", "label", files=path)
    assert [(record.columns["text"], record.columns["label"]) for record in records] == [
        (row["text"], row["label"]) for row in ROWS
    ]


def test_columns_of_values_and_rows_under_a_key(write):
    assert texts(
        read("text", "label", files=write("x.json", json.dumps({"text": ["a", "b"], "label": [0, 1]})))[0]
    ) == [
        "a",
        "b",
    ]
    records, tally = read(files=write("y.json", json.dumps({"version": "1", "data": ROWS, "tags": ["x"]})))
    assert texts(records) == TEXTS and tally.notes == ["y.json: its rows are those of the key 'data'"]
    two = write("z.json", json.dumps({"train": ROWS, "test": ROWS[:3]}))
    line = refused(files=two)
    assert "data.json_field=train or data.json_field=test" in line
    assert texts(read(files=two, json_field="test")[0]) == TEXTS[:3]
    assert "did you mean 'test'?" in refused(files=two, json_field="tst")
    nested = write("n.json", json.dumps({"about": {"by": "me"}, "rows": {"a": ROWS[0], "b": ROWS[1]}, "size": 2}))
    assert "the keys 'about', 'rows', 'size'" in refused(files=nested)
    assert read(files=nested, json_field="rows")[0][1].name == "n.json:b"
    assert "leave out data.json_field" in refused(files=write("l.json", LINES), json_field="rows")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{"text": "a"}', "one object with the keys 'text', neither an array nor an object of objects"),
        ("x.json", "[1, 2]", "x.json:1: a number, not an object: its rows are objects"),
        ("x.json", "3", "a number, neither an array"),
        ("x.json", '{\n"text": "a"\n}\n{\n"text": "b"\n}', "several JSON values follow each other"),
        ("x.json", "text,label\na,b\n", "it seems to hold a comma-separated table: data.format=csv"),
        ("x.jsonl", "text\tlabel\na\tb\n", "it seems to hold a tab-separated table: data.format=tsv"),
        ("x.jsonl", json.dumps(ROWS), "it seems to hold one JSON document: data.format=json"),
        ("x.jsonl", json.dumps(ROWS, indent=1), "it seems to hold one JSON document: data.format=json"),
        ("x.jsonl", LINES + '{"text": "cut', "x.jsonl:41: not JSON"),
        ("x.jsonl", b'{"text": "caf\xe9"}\n', "x.jsonl:1: not UTF-8 text"),
    ],
)
def test_other_json_is_refused_in_one_line(write, name, content, message):
    assert message in refused(files=write(name, content))


def test_a_column_that_some_rows_lack_is_null_and_one_that_all_lack_is_refused(write):
    path = write("x.jsonl", '{"text": "a"}\n{"text": "b", "label": 1, "more": 2}\n\n{"label": 0}\n')
    records, tally = read("text", "label", files=path)
    assert [(r.columns["text"], r.columns["label"]) for r in records] == [("a", None), ("b", 1), (None, 0)]
    assert list(tally.columns) == ["text", "label", "more"] and tally.notes == ["x.jsonl: 1 blank line left out"]
    assert "no column 'group' (data.group); there are 'text', 'label'" in refused(
        "text", "group", files=path, group="group"
    )
    records, _ = read("text", optional=["label"], files=write("y.json", json.dumps([{"text": "a"}])))
    assert "label" not in records[0].columns


def test_line_ends_inside_and_between_the_rows(write):
    row = json.dumps({"text": "a\u2028b\x85c\rd"}, ensure_ascii=False)
    for end in ("\n", "\r\n", "\r"):
        assert texts(read(files=write("x.jsonl", end.join([row, row])))[0]) == ["a\u2028b\x85c\rd"] * 2
    assert texts(read(files=write("y.jsonl", LINES.encode("utf-16")))[0]) == TEXTS


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_case_23_unpaired_surrogates_are_read_as_question_marks(write, form):
    raw = '{"text": "a \\ud83d", "messages": [{"role": "user", "content": "\\uDE00 b \\ud83d\\ude00"}], "\\ud800": 1}'
    records, tally = read("text", "messages", files=write(f"x.{form}", raw if form == "jsonl" else f"[{raw}]"))
    (columns,) = [record.columns for record in records]
    assert columns == {"text": "a ?", "messages": [{"role": "user", "content": "? b 😀"}], "?": 1}
    json.dumps(columns, ensure_ascii=False).encode()
    assert "3 texts hold an unpaired surrogate" in tally.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", LINES, "JSON lines: set data.format=jsonl"),
        ("x", LINES, "it has no ending and is read as text, but it seems to hold JSON lines"),
        ("x.log", LINES, "its ending .log is read as text, but it seems to hold JSON lines"),
        ("x.dat", json.dumps(ROWS), "a JSON array of objects: set data.format=json"),
        ("x.txt", json.dumps({"data": ROWS}, indent=1), "a JSON object: set data.format=json"),
        ("x.txt", "text\tlabel\n" + "a film\tpos\n" * 3, "a tab-separated table: set data.format=tsv"),
        ("x.all", "id;body\n" + "1;a film\n" * 12, "a semicolon-separated table: set data.format=csv"),
        ("x.txt", 'name,text\nbo,"a, b"\n', "a comma-separated table: set data.format=csv"),
        (
            "x.txt",
            "ham\tsee you\nspam\tfree\n" * 12,
            "without a header (columns 0, 1, …): set data.format=tsv data.header=false",
        ),
    ],
)
def test_case_14_data_with_the_suffix_of_text_is_refused(write, name, content, message):
    line = refused(files=write(name, content))
    assert message in line and line.endswith("or data.format=text to use it as text")
    assert len(read(files=write(name, content), format="text")[0]) >= 1


@pytest.mark.parametrize(
    "content",
    [
        "Dear Bob,\n\nthank you, really.\n" * 30,
        "Hello, world\n" * 12,
        "int a[] = {\n" + "    1, 2,\n" * 30 + "};\n",
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 30,
        '{"cells": [], "nbformat": 4}\n',
        "\tdo_this\n" * 30,
        "",
    ],
)
def test_text_is_not_mistaken_for_data(write, content):
    assert texts(read(files=write("x.md", content))[0]) is not None


def test_no_file_of_the_standard_library_is_mistaken_for_data():
    assert len(read(files="{stdlib}/*.py")[0]) > 100
    assert Path(sysconfig.get_path("stdlib")).is_dir()


@pytest.mark.parametrize("name", ["x.foo", "x"])
def test_case_14_text_is_refused_for_a_task_that_reads_columns(write, name):
    line = refused("text", "label", files=write(name, "words\n"))
    assert "a document without columns, and data.label=label asks for one: .jsonl, .ndjson, .json, .csv" in line
    assert "data.format=csv" in line and "there are" not in line


def test_archives_and_office_files_are_refused_by_name(write):
    zipped, tarred = b"PK\x03\x04" + b"\0" * 60, b"\0" * 257 + b"ustar\x0000" + b"\0" * 250
    for name, content, what in (
        ("x.zip", zipped, "a zip archive"),
        ("x.csv", zipped, "a zip archive"),
        ("x.xlsx", zipped + b"xl/workbook.xml", "an Excel workbook: save it as CSV"),
        ("x.tar.gz", gzip.compress(tarred), "a tar archive in .gz"),
        ("x.db", b"SQLite format 3\0" + b"\0" * 99, "an SQLite database"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x", "a git-lfs pointer, not the data"),
        ("x.txt", b"PAR1" + b"\0" * 99, "Parquet: data.format=parquet"),
        ("x.jsonl", b"\x80\x04\x95\x05", "pickled data: it can run code, and is never read"),
    ):
        assert f"it holds {what}" in refused(files=write(name, content))
