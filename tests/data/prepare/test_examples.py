"""Rows of fine-tuning tasks: split, deduplicated, counted, labeled; each kind of bad row has one message."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfbsz.data import IGNORED
from hfbsz.data.chat.template import TEMPLATE
from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer.tokenizer import train_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data, EvalSet
from hfbsz.recipe.tasks import RowKind

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
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def reviews(count=100):
    return [
        {"text": f"{WORDS[i % 10]} film {i}", "label": ["rotten", "fresh"][i % 2], "film": str(i // 4)}
        for i in range(count)
    ]


def classified(folder, words, records, sets=None, **fields):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in records))
    defaults = {"pack": False, "label": "label", "validation": "20%", "sequence_length": 8, "tokenizer": words}
    data = Data(**{**defaults, "files": str(path), **fields})
    return prepare(data, sets or {}, lambda *_: None, kind=RowKind.LABEL)


def test_rows_hold_tokens_and_a_label_and_groups_stay_together(tmp_path, words):
    data = classified(tmp_path, words, reviews(), group="film")
    assert data.manifest.labels == ("fresh", "rotten")
    films = {name: {int(rows[i].tokens[-1] - 12) // 4 for i in range(len(rows))} for name, rows in
             (("train", data.train), ("validation", data.validation))}  # fmt: skip
    assert films["train"] and films["validation"] and not films["train"] & films["validation"]
    for index in range(len(data.train)):
        tokens, labels = data.train[index]
        assert labels.tolist() == [1 - (int(tokens[-1]) - 12) % 2]
    assert len(data.train) + len(data.validation) == 100 and data.facts.tokens_per_row == 3


def test_what_is_left_out_is_counted(tmp_path, words):
    rows = [*reviews(), {"text": None, "label": "fresh", "film": "x"}, {"text": "plot", "label": "plot", "film": "x"}]
    rows += [{"text": "film", "label": None, "film": "x"}, {"text": " FILM  1 bad", "label": "fresh", "film": "y"}]
    rows += [{"text": "bad film 0", "label": "fresh", "film": "0"}, dict(reviews()[2])]
    rows += [{"text": "good film " * 9, "label": "fresh", "film": "z"}]
    data = classified(tmp_path, words, rows, skip={"label": "plot"})
    notes = "\n".join(data.notes)
    assert "1 row left out: label is 'plot'" in notes
    assert "1 row left out: no text" in notes and "1 row left out: no label" in notes
    assert "with the text of an earlier one" in notes or "that validation has too" in notes
    assert "longer than data.sequence_length=8 tokens: cut there" in notes and "training: " in notes


def test_the_same_text_with_another_label_is_reported(tmp_path, words):
    rows = reviews() + [dict(row, label="fresh") for row in reviews()[:60:2]]
    kept = classified(tmp_path, words, rows, group="film", duplicates="keep")
    assert any("of them with another label: kept" in note for note in kept.notes)
    dropped = classified(tmp_path, words, rows, group="film")
    assert len(kept.train) - len(dropped.train) > 10 and len(dropped.train) + len(dropped.validation) == 100


def test_a_leak_leaves_training_and_validation_stays(tmp_path, words):
    rows = [dict(row, film=row["text"]) for row in reviews()] + [dict(row, film="again") for row in reviews()[:50]]
    data = classified(tmp_path, words, rows, group="film")
    seen = [{tuple(rows[i].tokens.tolist()) for i in range(len(rows))} for rows in (data.train, data.validation)]
    assert not seen[0] & seen[1] and any("that validation has too: dropped" in note for note in data.notes)


def test_fewer_rows_are_part_of_more(tmp_path, words):
    def texts(count):
        data = classified(tmp_path, words, reviews(), rows=count)
        return {tuple(data.train[i].tokens.tolist()) for i in range(len(data.train))}

    assert len(texts(20)) == 20 and texts(20) < texts(40)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda rows: [dict(row, label="fresh") for row in rows], {}, "all 100 rows have the label 'fresh'"),
        (
            lambda rows: rows,
            {"labels": ["rotten", "frech"]},
            "label 'fresh', which is not one of rotten, frech; did",
        ),
        (lambda rows: [dict(row, text=None) for row in rows], {}, "holds no row to use: no text"),
        (lambda rows: [], {}, "holds no row to use"),
        (lambda rows: [dict(row, text=3) for row in rows], {}, "none of 100 rows is left to train on"),
        (lambda rows: [dict(row, text=["a"]) for row in rows], {}, "it holds a list, not text, in column 'text'"),
        (lambda rows: [dict(row, label=["a", "b"]) for row in rows], {}, "rows.jsonl:1: the label is a list"),
        (lambda rows: [dict(row, label=n % 3 - 1) for n, row in enumerate(rows)], {}, "data.skip.label=-1 leaves them"),
        (lambda rows: rows, {"label": "labell"}, "no column 'labell' .*did you mean 'label'"),
        (lambda rows: rows, {"id": "film"}, "two rows have the id '0'"),
        (lambda rows: rows, {"rows": 1000}, "data.rows: 1,000 is more than the"),
        (lambda rows: rows, {"label": None}, "data.label: name the column"),
        (lambda rows: rows, {"tokenizer": None}, "data.tokenizer: fine-tuning needs"),
        (lambda rows: rows[:2], {"group": "film"}, "take another share"),
    ],
)
def test_bad_rows_are_refused_in_a_line(tmp_path, words, change, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        classified(tmp_path, words, change(reviews()), **fields)
    assert len(caught.value.lines) == 1


def other_reviews(folder, **fields):
    """A set of other columns, with a row that the training labels do not know."""
    rows = [{"body": f"{WORDS[i % 10]} plot", "verdict": ["rotten", "fresh"][i % 2]} for i in range(6)]
    path = folder / "other.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"body": "loud scene", "verdict": "unsure"}]))
    return {"other": EvalSet(**{"files": str(path), "text": "body", "label": "verdict", **fields})}


def test_a_set_has_columns_and_cleaning_of_its_own_and_labels_of_training(tmp_path, words):
    kept = {"skip": {"verdict": "unsure"}, "id": None}
    rows = [dict(row, name=f"review {number}") for number, row in enumerate(reviews())]
    usual = {"id": "name", "group": "film", "skip": {"film": "0"}}
    data = classified(tmp_path, words, rows, other_reviews(tmp_path, **kept), **usual)
    assert [data.sets["other"][i].labels.tolist() for i in range(6)] == [[1], [0]] * 3
    assert data.sets["other"][0].tokens.tolist() == [2, 8] and len(data.sets["other"]) == 6
    notes = "\n".join(data.notes)
    assert "1 row left out: verdict is 'unsure'" in notes and "4 rows left out: film is '0'" in notes
    with pytest.raises(UserError, match=r"no column 'name' \(eval.sets.other.id\)"):
        classified(tmp_path, words, rows, other_reviews(tmp_path, skip={}), **usual)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "label 'unsure', which is not one of fresh, rotten.*eval.sets.other.skip.verdict=unsure"),
        ({"label": "verdit"}, r"no column 'verdit' \(eval.sets.other.label\); did you mean 'verdict'"),
        ({"label": None}, "eval.sets.other.label: name the column"),
        ({"skip": {"verdict": ["unsure", "fresh", "rotten"]}}, "eval.sets.other.* holds no row to use"),
        ({"files": __file__}, "read as text, a document without columns, and eval.sets.other.label=verdict"),
    ],
)
def test_a_bad_set_is_refused_in_a_line(tmp_path, words, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        classified(tmp_path, words, reviews(), other_reviews(tmp_path, **fields))
    assert len(caught.value.lines) == 1


def test_another_column_of_a_set_is_other_rows(tmp_path, words):
    rows = [{"text": f"bad film {i}", "again": f"good film {i}", "label": ["rotten", "fresh"][i % 2]} for i in range(9)]
    (tmp_path / "o.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def first(**fields):
        sets = {"o": EvalSet(files=str(tmp_path / "o.jsonl"), **fields)}
        return classified(tmp_path, words, reviews(), sets).sets["o"][0].tokens[0]

    assert (first(), first(text="again"), first(text="text")) == (2, 3, 2)


def talked(tmp_path, rows, sets=None, **fields):
    tokenizer = train_tokenizer(["User: Assistant: hello there, how are you doing today?"] * 3, 300)
    tokenizer.save_pretrained(tmp_path / "bpe")
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    defaults = {"pack": False, "validation": "20%", "sequence_length": 64, "tokenizer": str(tmp_path / "bpe")}
    data = Data(**{**defaults, "files": str(path), **fields})
    return prepare(data, sets or {}, lambda *_: None, kind=RowKind.CONVERSATION), tokenizer


def test_only_answers_are_learned(tmp_path):
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
    with pytest.raises(UserError, match=r"none of the \d+ rows has an answer within data.sequence_length=64"):
        talked(tmp_path, long, prompt="question", response="answer")
    with pytest.raises(UserError, match=r"talk.jsonl:1: a conversation as text must be JSON"):
        talked(tmp_path, [{"messages": "hello"}], messages="messages")
    with pytest.raises(UserError, match=r"data.messages: name the column"):
        talked(tmp_path, rows)


def test_sets_of_the_other_form_of_conversation(tmp_path):
    pairs = [{"question": f"how are you {i}?", "answer": f"fine {i}"} for i in range(50)]
    chats = [
        {"turns": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"there {i}"}]}
        for i in range(5)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in chats))
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs[:5]))
    of_chats = EvalSet(files=str(tmp_path / "chats.jsonl"), messages="turns")
    of_pairs = EvalSet(files=str(tmp_path / "pairs.jsonl"), prompt="question", response="answer")
    beside_pairs, tokenizer = talked(tmp_path, pairs, {"o": of_chats}, prompt="question", response="answer")
    beside_chats, _ = talked(tmp_path, chats * 9, {"o": of_pairs}, messages="turns", duplicates="keep")
    for data, answer in ((beside_pairs, " there 0"), (beside_chats, " fine 0")):
        labels = data.sets["o"][0].labels
        assert len(data.sets["o"]) == 5 and tokenizer.decode(labels[labels != IGNORED]).startswith(answer)
