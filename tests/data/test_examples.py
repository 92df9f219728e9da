"""Rows of fine-tuning tasks: split, cleaned, counted, labelled; bad rows are told of, one message each."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfbsz.data import IGNORED
from hfbsz.data.conversations import TEMPLATE
from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer import train_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe import Data

WORDS = ["bad", "good", "film", "fine", "dull", "loud", "plot", "actor", "scene", "ending"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def words(tmp_path):
    """A tokenizer of whole words, as BERT's without an end of text."""
    names = ["[PAD]", "[UNK]", *WORDS, *map(str, range(200))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    made.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def reviews(count=100):
    return [
        {"text": f"{WORDS[i % 10]} film {i}", "label": ["rotten", "fresh"][i % 2], "film": str(i // 4)}
        for i in range(count)
    ]


def classified(folder, words, records, **fields):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in records))
    wanted = {"pack": False, "label": "label", "validation": "20%", "sequence_length": 8, "tokenizer": words}
    data = Data(**{**wanted, "files": str(path), **fields})
    return prepare(data, {}, lambda *_: None, task="classification")


def test_rows_hold_tokens_and_a_label_and_groups_stay_together(tmp_path, words):
    data = classified(tmp_path, words, reviews(), group="film")
    assert data.counts["labels"] == ["fresh", "rotten"]
    films = {name: {int(rows[i].tokens[-1] - 12) // 4 for i in range(len(rows))} for name, rows in
             (("train", data.train), ("validation", data.sets[""]))}  # fmt: skip
    assert films["train"] and films["validation"] and not films["train"] & films["validation"]
    for index in range(len(data.train)):
        tokens, labels = data.train[index]
        assert labels.tolist() == [1 - (int(tokens[-1]) - 12) % 2]
    assert len(data.train) + len(data.sets[""]) == 100 and data.facts.tokens_per_row == 3


def test_what_is_left_out_is_counted(tmp_path, words):
    rows = [*reviews(), {"text": None, "label": "fresh", "film": "x"}, {"text": "plot", "label": "plot", "film": "x"}]
    rows += [{"text": "film", "label": None, "film": "x"}, {"text": " FILM  1 bad", "label": "fresh", "film": "y"}]
    rows += [{"text": "bad film 0", "label": "fresh", "film": "0"}, dict(reviews()[2])]
    rows += [{"text": "good film " * 9, "label": "fresh", "film": "z"}]
    data = classified(tmp_path, words, rows, skip={"label": "plot"})
    told = "\n".join(data.notes)
    assert "1 rows left out: label is 'plot'" in told and "2 rows left out: no text or no label" in told
    assert "repeat the text of an earlier one" in told or "stand in validation too" in told
    assert "longer than 8 tokens: cut there" in told and "training: " in told


def test_the_same_text_with_another_label_is_told(tmp_path, words):
    rows = reviews() + [dict(row, label="fresh") for row in reviews()[:60:2]]
    kept = classified(tmp_path, words, rows, group="film", duplicates="keep")
    assert any("of them with another label: kept" in note for note in kept.notes)
    dropped = classified(tmp_path, words, rows, group="film")
    assert len(kept.train) - len(dropped.train) > 10 and len(dropped.train) + len(dropped.sets[""]) == 100


def test_a_leak_leaves_training_and_validation_stays(tmp_path, words):
    rows = [dict(row, film=row["text"]) for row in reviews()] + [dict(row, film="again") for row in reviews()[:50]]
    data = classified(tmp_path, words, rows, group="film")
    seen = [{tuple(rows[i].tokens.tolist()) for i in range(len(rows))} for rows in (data.train, data.sets[""])]
    assert not seen[0] & seen[1] and any("stand in validation too: dropped" in note for note in data.notes)


def test_fewer_rows_are_part_of_more(tmp_path, words):
    def texts(count):
        data = classified(tmp_path, words, reviews(), rows=count)
        return {tuple(data.train[i].tokens.tolist()) for i in range(len(data.train))}

    assert len(texts(20)) == 20 and texts(20) < texts(40)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda rows: [dict(row, label="fresh") for row in rows], {}, "all .* training rows have the label 'fresh'"),
        (
            lambda rows: rows,
            {"labels": ["rotten", "frech"]},
            "label 'fresh', which is none of rotten, frech; did",
        ),
        (lambda rows: [dict(row, text=None) for row in rows], {}, "holds no row to use: no text or no label"),
        (lambda rows: [], {}, "holds no row to use"),
        (lambda rows: [dict(row, text=3) for row in rows], {}, "a int, not text, in column 'text'"),
        (lambda rows: rows, {"label": "labell"}, "no column 'labell' .*did you mean 'label'"),
        (lambda rows: rows, {"id": "film"}, "two rows have the id '0'"),
        (lambda rows: rows, {"rows": 1000}, "data.rows: 1,000 is more than the"),
        (lambda rows: rows, {"label": None}, "data.label: name the column"),
        (lambda rows: rows, {"tokenizer": None}, "data.tokenizer: fine-tuning takes"),
        (lambda rows: rows[:2], {"group": "film"}, "take another share"),
    ],
)
def test_bad_rows_are_refused_in_a_line(tmp_path, words, change, fields, message):
    with pytest.raises(UserError, match=message) as told:
        classified(tmp_path, words, change(reviews()), **fields)
    assert len(told.value.lines) == 1


def talked(tmp_path, rows, **fields):
    tokenizer = train_tokenizer(["User: Assistant: hello there, how are you doing today?"] * 3, 300)
    tokenizer.save_pretrained(tmp_path / "bpe")
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    wanted = {"pack": False, "validation": "20%", "sequence_length": 64, "tokenizer": str(tmp_path / "bpe")}
    return prepare(Data(**{**wanted, "files": str(path), **fields}), {}, lambda *_: None, task="instruction"), tokenizer


def test_only_answers_are_learnt(tmp_path):
    rows = [{"question": f"how are you {i}?", "answer": f"fine {i}"} for i in range(50)]
    data, tokenizer = talked(tmp_path, rows, prompt="question", response="answer")
    for index in range(len(data.train)):
        tokens, labels = data.train[index]
        assert tokenizer.decode(labels[labels != IGNORED]).startswith(" fine ")
        assert tokenizer.decode(labels[labels != IGNORED]).endswith("<|endoftext|>\n")
        assert (labels[labels != IGNORED] == tokens[labels != IGNORED]).all()
    assert data.train.text_bytes[0] == len(tokenizer.decode(data.train[0].labels[data.train[0].labels >= 0]).encode())
    saved = (data.tokenizer_path / "chat_template.jinja").read_text()
    assert saved == TEMPLATE


def test_rows_without_an_answer_are_counted_or_refused(tmp_path):
    rows = [{"question": f"how are you {i}?", "answer": "fine" if i % 2 else ""} for i in range(60)]
    data, _ = talked(tmp_path, rows, prompt="question", response="answer")
    assert any("30 rows left out: no answer to learn" in note for note in data.notes)
    long = [{"question": "how are you " * 40 + str(i), "answer": "fine"} for i in range(60)]
    with pytest.raises(UserError, match=r"no row has a target within data.sequence_length=64"):
        talked(tmp_path, long, prompt="question", response="answer")
    with pytest.raises(UserError, match=r"talk.jsonl:1: a conversation is a list"):
        talked(tmp_path, [{"messages": "hello"}], messages="messages")
    with pytest.raises(UserError, match=r"data.messages: name the column"):
        talked(tmp_path, rows)
