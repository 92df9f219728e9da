"""Encodings, byte order marks and line ends of text files."""

import csv
import io

import pytest
from source_reader import read, refused, texts

ROWS = [(f"r{number} a fine film" + ", really" * (number % 3 == 0), ("neg", "pos")[number % 2]) for number in range(30)]


def table(rows=ROWS, **form) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **form).writerows([("text", "label"), *rows])
    return text.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(name, content) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(write, codec, end):
    rows = [*ROWS, ("naïve 猫 😀", "pos")]
    path = write("x.csv", table(rows, lineterminator=end).encode(codec))
    records, tally = read("text", "label", files=path)
    assert texts(records) == [text for text, _ in rows] and list(tally.columns) == ["text", "label"]
    assert tally.notes[-1].endswith("UTF-8") is (codec == "utf-8")


@pytest.mark.parametrize(
    ("word", "codec", "field"),
    [("café", "latin-1", "cp1252"), ("“so”", "cp1252", "cp1252"), ("привет", "cp1251", "cp1251"),
     ("你好世界", "gb18030", "gb18030"), ("hello", "utf-16-le", "utf-16-le"), ("hello", "utf-16-be", "utf-16-be")],
)  # fmt: skip
def test_another_encoding_is_refused_with_one_that_reads_the_file(write, word, codec, field):
    path = write("x.csv", table([*ROWS, (word, "pos")]).encode(codec))
    line = refused("text", "label", files=path)
    assert f"data.encoding={field}" in line and (f"{path}:32" in line or codec.startswith("utf"))
    assert texts(read("text", "label", files=path, encoding=field)[0])[-1] == word


def test_wrong_encodings_are_refused(write):
    damaged = write("x.csv", "text,label\nné,pos\n".encode() + b"caf\xe9,neg\n")
    assert f"{damaged}:3: not UTF-8" in refused("text", "label", files=damaged)
    assert "the file is damaged there" in refused("text", "label", files=damaged)
    good = write("y.csv", "text,label\nné,pos\n")
    assert "leave out data.encoding" in refused("text", "label", files=good, encoding="ascii")
    for name in ("utf9", "hex"):
        assert f"no text encoding {name!r}" in refused(files=good, encoding=name)
    marked = write("z.csv", "text,label\nné,pos\n".encode("utf-8-sig"))
    records, tally = read("text", "label", files=marked, encoding="cp1252")
    assert texts(records) == ["né"] and "not as cp1252" in tally.notes[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_line_of_undecodable_bytes_is_right_far_into_a_file(write, end):
    content = end.join(["text,label", *(f"row {number} of the film,pos" for number in range(40_000)), ""]).encode()
    path = write("x.csv", content + b"caf\xe9,neg")
    assert refused("text", "label", files=path).startswith(f"{path}:40002: not UTF-8 text")
    assert len(read("text", "label", files=path, encoding="cp1252")[0]) == 40_001
