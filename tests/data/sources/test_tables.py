"""Delimited tables of many kinds: every line is read as a row, or a note accounts for it."""

import csv
import io
import re
import shlex

import pandas
import pytest
from source_reader import read, refused, texts

from hfbsz.errors import UserError
from hfbsz.recipe.load import load

ROWS = [(f"r{number} a fine film" + ", really" * (number % 3 == 0), ("neg", "pos")[number % 2]) for number in range(30)]
PLAIN = [(text.replace(",", ""), label) for text, label in ROWS]


def table(rows=ROWS, head=("text", "label"), **form) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **form).writerows([head, *rows] if head else rows)
    return text.getvalue()


def unquoted(rows, delimiter="\t") -> str:
    return "\n".join(delimiter.join(row) for row in [("text", "label"), *rows]) + "\n"


def spanning(first=10, last=30) -> list[tuple[str, str]]:
    """Rows of which one begins with a quote and a later one ends with a quote."""
    rows = [(f"r{number} film", ("neg", "pos")[number % 2]) for number in range(80)]
    rows[first] = ('"' + rows[first][0], rows[first][1])
    rows[last] = (rows[last][0] + '"', rows[last][1])
    return rows


@pytest.fixture
def write(tmp_path):
    def write(name, content) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def typed(line: str, path: str) -> dict:
    """The recipe fields that a message advises to set, parsed as on the command line."""
    words = [word.rstrip(",:;") for word in shlex.split(line.replace("'", "")) if re.match(r"data\.\w+=", word)]
    return load(["task=classification", f"data.files={path}", *words]).recipe.data.model_dump(exclude_unset=True)


def counted(note: str) -> bool:
    """Whether the counts of a note add up to its number of lines."""
    rows, lines = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:rows|lines)", note)[:2])
    return rows + sum(int(number) for number in re.findall(r"(\d+) (?:header|skip|comm|blank|insi)", note)) == lines


def test_case_01_literal_quotes_of_a_tsv_join_no_rows(write):
    for ending in ("tsv", "tab"):
        records, tally = read("text", "label", files=write(f"x.{ending}", unquoted(spanning())))
        assert len(records) == tally.rows == 80 and texts(records)[10] == '"r10 film'
        assert "open in line 12 and close in line 32" in tally.notes[0] and "data.quoting=none" in tally.notes[0]
        assert tally.notes[-1] == f"x.{ending}: 80 rows of 81 lines (1 header), tab-separated, UTF-8"


def test_the_same_quotes_of_a_csv_are_refused_and_both_remedies_work(write):
    path = write("x.csv", unquoted(spanning(), ","))
    mixed = unquoted([('"a, b"', "pos"), *spanning()], ",")
    line = refused("text", "label", files=path)
    assert f"{path}:12: the quotes that open in line 12 and close in line 32 hold 21 lines that are each a row" in line
    assert "data.quoting=none reads" in line and "data.quoting=minimal reads" in line
    assert "line 2 needs its quotes" in refused("text", "label", files=write("y.csv", mixed))
    assert len(read("text", "label", files=path, quoting="none")[0]) == 80
    records, tally = read("text", "label", files=path, quoting="minimal")
    assert len(records) == 60 and "60 rows of 81 lines (1 header, 20 inside quotes)" in tally.notes[-1]


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_an_unclosed_quote_is_an_ordinary_character(write, delimiter):
    rows = spanning(5, 5)[:20]
    rows[5] = ('"' + rows[5][0].strip('"'), rows[5][1])
    path = write("x.csv" if delimiter == "," else "x.tsv", unquoted(rows, delimiter))
    records, tally = read("text", "label", files=path)
    assert texts(records) == [text for text, _ in rows]
    assert "data.quoting=none" in tally.notes[0] and "line 7" in tally.notes[0]


@pytest.mark.parametrize("start", ['5" disk', '"hello" he said', 'he said "hello"'])
@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_quotes_inside_a_text_are_not_removed(write, delimiter, start):
    rows = [(f"{start} {number}", "pos") for number in range(6)]
    path = write("x.csv" if delimiter == "," else "x.tsv", unquoted(rows, delimiter))
    assert texts(read("text", "label", files=path)[0]) == [text for text, _ in rows]


def test_quotes_around_some_texts_of_a_tsv_are_not_removed(write):
    rows = [('"a great film"' if number == 3 else "bad", "pos") for number in range(6)]
    records, tally = read("text", "label", files=write("x.tsv", unquoted(rows)))
    assert texts(records)[3] == '"a great film"' and "data.quoting=none" in tally.notes[0]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t"), ("tab", "\t")])
def test_quoted_tables_are_read_as_by_pandas(write, ending, delimiter, quoting):
    rows = [*ROWS, ('say "so", twice\r\nand\n\n# again\t', "pos"), ("é\u2028ü", "neg"), ("", "pos")]
    path = write(f"x.{ending}", table(rows, delimiter=delimiter, quoting=quoting))
    records, tally = read("text", "label", files=path)
    frame = pandas.read_csv(path, sep=delimiter, keep_default_na=False)
    assert texts(records) == [text for text, _ in rows] and len(frame) == len(records)
    assert counted(tally.notes[-1]) and "3 inside quotes" in tally.notes[-1]


@pytest.mark.parametrize(
    ("content", "text", "note"),
    [
        ("text,label\n" + '"he said \\"hi, you\\"",pos\n' * 3, 'he said "hi, you"', "backslashes"),
        ("label,text\n" + 'pos, "a, b"\n' * 3, "a, b", "spaces before opening quotes"),
    ],
)
def test_other_quoting_rules_give_a_note(write, content, text, note):
    records, tally = read("text", "label", files=write("x.csv", content))
    assert texts(records) == [text] * 3 and note in tally.notes[0]


def test_malformed_quotes_are_refused_with_their_line(write):
    path = write("x.csv", 'text,label\n"a, b",pos\n"he said "hi", and left",neg\n')
    line = refused("text", "label", files=path)
    assert line.startswith(f"{path}:3: ") and "data.quoting=none" in line


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_delimiters_are_detected(write, ending, delimiter):
    rows = PLAIN if ending == "csv" and delimiter != "," else ROWS
    records, tally = read("text", "label", files=write(f"x.{ending}", table(rows, delimiter=delimiter)))
    assert texts(records) == [text for text, _ in rows]
    usual = delimiter == {"csv": ",", "tsv": "\t"}[ending]
    assert ("detected, not" in tally.notes[-1]) is not usual


def test_delimiters_of_a_recipe(write):
    path = write("x.dat", "1::Toy Story (1995)::Animation\n2::Jumanji::Children's\n")
    records, _ = read("text", "label", files=path, format="csv", delimiter="::", header=["id", "text", "label"])
    assert texts(records) == ["Toy Story (1995)", "Jumanji"]
    assert len(read("text", files=write("x.csv", table(PLAIN, delimiter="\t")), delimiter="\\t")[0]) == 30
    assert "sep" in refused(files=path, format="csv", delimiter="\n")
    spreadsheet = write("y.csv", "sep=;\n" + table(delimiter=";"))
    assert "1 skipped" in read("text", "label", files=spreadsheet)[1].notes[-1]


def test_one_unquoted_column_is_read_as_one_text_per_line(write):
    records, tally = read(files=write("x.csv", "text\nHello, world\nBye\n"))
    assert texts(records) == ["Hello, world", "Bye"] and "each line is one text" in tally.notes[0]
    assert texts(read(files=write("y.csv", 'text\n"Hello, world"\nBye\n'))[0]) == ["Hello, world", "Bye"]
    assert "data.quoting=minimal" in refused(files=write("z.csv", 'text\n"two\nlines"\nBye\n'))


def test_every_line_is_accounted_for(write):
    content = 'Report\n# by me\ntext,label\n\na,pos\n# no\n   \n"b\nc",neg\n'
    records, tally = read("text", "label", files=write("x.csv", content), comment="#", skip_lines=1)
    assert texts(records) == ["a", "b\nc"]
    note = (
        "x.csv: 2 rows of 9 lines (1 header, 1 skipped, 2 comments, 2 blank, 1 inside quotes), comma-separated, UTF-8"
    )
    assert tally.notes == [note] and counted(note)


def test_many_tables_give_one_note(write, tmp_path):
    for number in range(3):
        write(f"{number}.csv", table())
    records, tally = read("text", "label", files=str(tmp_path / "*.csv"))
    assert len(records) == 90
    assert tally.notes == ["3 tables (0.csv … 2.csv): 90 rows of 93 lines (3 headers), comma-separated, UTF-8"]


def test_a_table_without_a_header_is_refused_with_fields_that_work(write):
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        rows = [(("ham", "spam")[number % 2], f"this is the long text of row {number}") for number in range(10)]
        path = write(name, table(rows, head=None, delimiter=delimiter))
        line = refused("text", "label", files=path)
        assert "data.header=false data.text=1 data.label=0" in line and "there are 'ham', 'this is" in line
        records, tally = read("text", "label", **typed(line, path))
        assert len(records) == 10 and records[1].columns == {"1": rows[1][1], "0": "spam"} and counted(tally.notes[-1])
        named, _ = read("text", "label", files=path, header=["label", "text"])
        assert texts(named) == [text for _, text in rows]


def test_lines_before_the_header_are_refused_with_fields_that_work(write):
    path = write("x.csv", "Report of May\n\n" + table())
    line = refused("text", "label", files=path)
    assert "line 3 names them: data.skip_lines=2" in line
    assert len(read("text", "label", **typed(line, path))[0]) == 30


@pytest.mark.parametrize("row", ["{0},film {0},pos", "film {0},pos,"])
def test_an_unnamed_column_is_refused_with_fields_that_work(write, row):
    path = write("x.csv", "text,label\n" + "".join(row.format(number) + "\n" for number in range(5)))
    line = refused("text", "label", files=path)
    assert "each row has one more: name it" in line
    assert texts(read("text", "label", **typed(line, path))[0])[4] == "film 4"
    same = write("y.csv", "text,label\n" + "well, a film,pos\n" * 5)
    assert "put quotes around texts that hold ','" in refused("text", "label", files=same)


def test_duplicate_column_names(write):
    path = write("x.csv", "text,label,text\na,pos,b\n")
    line = refused("text", "label", files=path)
    assert "data.header=[text,label,text_2]" in line and texts(read("text", "label", **typed(line, path))[0]) == ["a"]
    records, tally = read("text", "label", files=write("y.csv", "text,label,x,x\na,pos,b,c\n"))
    assert records[0].columns == {"text": "a", "label": "pos"} and "'x'; they are not read" in tally.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,pos\nb\n", ":3: row 2 has fewer fields than the 2 of the header (it has 1: ['b'])"),
        ("text,label\na,pos\n\nb,c,pos\n", ":4: row 2 has more fields than the 2 of the header (it has 3: "),
        ('text,label\n"a, x",pos\nb,c,pos\n', ":3: row 2 has more fields"),
        ("text, label\na,pos\n", "no column 'label' (data.label); did you mean ' label'?; there are 'text', ' label'"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n', "it seems to hold JSON lines: data.format=jsonl"),
        ("<!DOCTYPE html><html>text,label</html>", "it holds an HTML page"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_their_line(write, content, message):
    assert message in refused("text", "label", files=write("x.csv", content))


def test_a_header_in_both_the_recipe_and_the_file_is_refused(write):
    assert "leave data.header out" in refused("text", "label", files=write("x.csv", table()), header=["text", "label"])


def test_nul_characters_give_a_note(write):
    records, tally = read("text", "label", files=write("x.csv", table([*ROWS, ("a\0b", "pos")])))
    assert texts(records)[-1] == "a\0b" and "1 row holds NUL" in tally.notes[0]


def test_fields_for_tables_are_refused_for_other_files(write):
    path = write("x.txt", "words\n")
    assert "data.skip_lines is for tables" in refused(files=path, skip_lines=2)
    assert "data.json_field is for JSON documents" in refused(files=write("x.csv", table()), json_field="x")


def test_the_two_additional_header_lines_of_orange_are_skipped(write):
    content = 'Category\tText\r\nd\tstring\r\nclass\tinclude=True\r\n\r\nearn\tshares rose\r\nacq\ta "bid" won\r\n'
    records, tally = read("text", "label", files=write("x.tab", content), text="Text", label="Category")
    assert [record.columns["Category"] for record in records] == ["earn", "acq"]
    assert "lines 2 and 3, Orange's types and flags" in tally.notes[0] and counted(tally.notes[-1])


def test_a_changed_file_is_detected_again(write, tmp_path):
    path = write("x.tsv", unquoted(spanning()))
    assert len(read("text", "label", files=path)[0]) == 80
    write("x.tsv", table(delimiter=";"))
    assert len(read("text", "label", files=path)[0]) == 30


def test_advice_names_the_part_of_the_recipe(write):
    from hfbsz.data.sources.records import Columns, Tally
    from hfbsz.data.sources.sources import open_set
    from hfbsz.recipe.fields import Data, EvalSet

    path = write("x.csv", unquoted(spanning(), ","))
    opened = open_set("other", EvalSet(files=path), Data())
    with pytest.raises(UserError, match=r"eval.sets.other.quoting=none"):
        list(opened.source.records(Columns({"eval.sets.other.text": "text"}), Tally()))
    other = load([f"eval.sets.other={path}", "eval.sets.other.quoting=none"]).recipe.eval.sets["other"]
    as_characters = open_set("other", other, Data())
    assert len(list(as_characters.source.records(Columns({"data.text": "text"}), Tally()))) == 80
    assert opened.source.stamp() != as_characters.source.stamp()
