"""A corpus in one text file: documents by a separator, and the pieces of long documents."""

import io
import random
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

from hfbsz.data.prepare.pieces import LONGEST, PIECE, pieces
from hfbsz.data.sources.open_file import ReadOptions
from hfbsz.data.sources.records import Tally
from hfbsz.data.sources.text_files import read_text_file
from hfbsz.errors import UserError


def documents(text, separator=None, tally=None):
    """The text of every document, with the records of each document joined."""
    texts, more = {}, False
    options = ReadOptions(separator=separator)
    for record in read_text_file("p", "n", "text", lambda: io.StringIO(text), options, tally or Tally()):
        texts[record.name] = texts.get(record.name, "") + record.columns["text"]
        more = record.more
    assert not more
    return list(texts.values())


def test_without_a_separator_the_file_is_one_document():
    assert documents("a b\n\nc") == ["a b\n\nc"]


@pytest.mark.parametrize(
    "text, separator, expected",
    [
        ("a<|e|>b\n<|e|><|e|>\n<|e|>c<|e|>", "<|e|>", ["a", "b\n", "c"]),
        ("a\n\n\nb\nb\n\n\nc", r"\n\n\n", ["a", "b\nb", "c"]),
        ("\n\na\nb\n\n\nc\n \nd\n\n\n", "blank", ["a\nb\n", "c\n", "d\n"]),
        ("a\r\nb\n\nc", "lines", ["a", "b", "c"]),
        ("\n = T = \n\n x\n = = S = = \n y\n = U = \n z\n", "/^ = [^=]+ = $/",
         [" = T = \n\n x\n = = S = = \n y\n", " = U = \n z\n"]),
        ("before\n# one\nx\n# two\ny", "/^# /", ["before\n", "# one\nx\n", "# two\ny"]),
    ],
)  # fmt: skip
def test_separators(text, separator, expected):
    assert documents(text, separator) == expected


@pytest.mark.parametrize("size", [2**18 - 3, 2**18 - 1, 2**18, 2**18 + 2])
def test_a_separator_across_two_reads(size):
    assert documents("x" * size + "<|e|>" + "y" * size + "<|e|>z", "<|e|>") == ["x" * size, "y" * size, "z"]


def test_a_document_longer_than_one_read():
    long = "".join(random.Random(0).choices("ab \n", k=3 * LONGEST))
    assert documents(f"a|{long}|b", "|") == ["a", long, "b"]


def test_a_frequent_marker_gives_a_note():
    tally = Tally()
    documents("x<|endoftext|>" * 30, None, tally)
    (note,) = tally.notes
    assert "'<|endoftext|>' 30 times" in note and "data.separator='<|endoftext|>'" in note
    assert len(documents("x<|endoftext|>" * 30, "<|endoftext|>")) == 30
    tally = Tally()
    documents(" = Title = \n text\n" * 30, None, tally)
    assert "data.separator='/^ = [^=]+ = $/'" in tally.notes[0]
    tally = Tally()
    documents("a few </s> markers </s> in prose", None, tally)
    assert tally.notes == []


def test_nul_bytes_and_invalid_separators_are_refused():
    with pytest.raises(UserError, match="NUL bytes"):
        documents("a\0b")
    with pytest.raises(UserError, match="not a valid regular expression"):
        documents("a", "/(/")


def test_pieces_add_up_to_the_text_and_end_where_a_pre_tokenizer_splits():
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text() * 20
    assert len(text) > LONGEST
    chunks = [text[start : start + 1000] for start in range(0, len(text), 1000)]
    result = list(pieces(chunks))
    assert "".join(piece.text for piece in result) == text
    assert [piece.more for piece in result] == [True] * (len(result) - 1) + [False]
    assert all(len(piece.text) <= 2 * PIECE for piece in result) and len(result) > 4
    assert [piece.text for piece in pieces([text])] == [piece.text for piece in result]  # regardless of the chunks
    for piece, following in pairwise(result):
        assert piece.text[-1].isalpha() and following.text[0].isspace()
        assert piece.text.endswith(following.before) and 0 < len(following.before) <= 128
    (short,) = pieces(["short"])
    assert short.text == "short" and not short.more


def test_a_text_without_spaces_is_split_too():
    assert "".join(piece.text for piece in pieces(["字" * (3 * LONGEST)])) == "字" * (3 * LONGEST)
