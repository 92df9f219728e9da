"""`hfbsz critical`: a table in, both critical batches and a picture out; wrong tables in one line."""

import pytest

from hfbsz.commands.critical import main

TABLE = (
    "batch,steps\n64,46000\n128,23000\n256,13282\n512,7000\n1024,3840\n2048,2528\n4096,1917\n8192,1600\n16384,1600\n"
)


def test_a_published_table(tmp_path, capsys):
    table, picture = tmp_path / "zhang.csv", tmp_path / "fit.png"
    table.write_text(TABLE)
    assert main([f"table={table}", "first=256", f"picture={picture}"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["balance"].split()[1] == "2,191" and lines["overhead"].split()[1] == "745"
    assert len([line for line in lines if line.replace(",", "").isdigit()]) == 9
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_seeds_and_columns_that_are_not_read(tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("seed, batch, steps\n0, 8, 100\n1, 8, 110\n0, 16, 55\n0, 32, 30\n0, 64, 20\n")
    assert main([f"table={table}"]) == 0
    assert "over 5 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("batch,step\n8,10\n", "no column steps; the columns are batch, step"),
        ("batch,steps\n8,10\n16,x\n", "line 3: steps: 'x'"),
        ("batch,steps\n8,10\n16\n", "line 3: steps: None"),
        ("batch,steps\n8,10\n16,5\n", "2 different batches"),
        ("batch,steps\n8,-1\n", "line 2: steps: '-1'"),
        ("", "the columns are none"),
        ("\xff\xfe".encode("latin-1"), "not a CSV file in UTF-8"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(tmp_path, capsys, content, part):
    table = tmp_path / "t.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([f"table={table}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and part in err


@pytest.mark.parametrize(
    ("words", "part"),
    [(["tabel=x"], "did you mean 'table'"), (["first=8"], "table=FILE.csv is missing"),
     (["table=/nowhere.csv"], "No such file"), (["table={table}", "first=-1"], "first: '-1'"),
     (["table={table}", "picture=x.pdf"], ".png or .svg"), (["table={table}", "picture={table}"], ".png or .svg")],
)  # fmt: skip
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, words, part):
    table = tmp_path / "t.csv"
    table.write_text(TABLE)
    assert main([word.format(table=table) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and part in err and table.read_text() == TABLE


@pytest.mark.parametrize("name", ["fit.png", "fit.svg"])
def test_its_own_picture_is_replaced_and_another_is_not(tmp_path, capsys, name):
    table, picture = tmp_path / "t.csv", tmp_path / name
    table.write_text(TABLE)
    for _ in range(2):
        assert main([f"table={table}", f"picture={picture}"]) == 0
    other = b"\x89PNG another" if name.endswith("png") else b"<?xml version='1.0'?><svg/>"
    picture.write_bytes(other)
    assert main([f"table={table}", f"picture={picture}"]) == 2
    assert "another file is there" in capsys.readouterr().err and picture.read_bytes() == other
