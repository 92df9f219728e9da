"""Rows of real users, one test per report: labels, templates, splits. Numbers are those of the reports."""

import json
import re

import pytest
from test_examples import WORDS, classified, talked, words  # noqa: F401  (a fixture)

from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data
from hfbsz.recipe.tasks import RowKind


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


def labels_of(rows, data):
    return [data.manifest.labels[int(rows[number].labels[0])] for number in range(len(rows))]


def test_case_02_the_order_of_a_tuned_head_is_kept(tmp_path, words):  # noqa: F811
    rows = [{"text": f"{WORDS[i % 10]} {i}", "label": ["neg", "pos"][i % 2]} for i in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = Data(files=str(path), pack=False, label="label", validation="20%", tokenizer=words)

    def prepared(own):
        return prepare(data, {}, lambda *_: None, kind=RowKind.LABEL, own_labels=own)

    assert prepared(None).manifest.labels == ("neg", "pos")
    assert prepared(["pos", "neg"]).manifest.labels == ("pos", "neg")
    assert prepared(["pos", "neg", "mixed"]).manifest.labels == ("pos", "neg", "mixed")
    assert prepared(["ham", "spam"]).manifest.labels == ("neg", "pos")


def test_case_04_values_that_are_no_classes(tmp_path, words):  # noqa: F811
    values = [9, 10, 2, None, float("nan"), "", 2.0]
    rows = [{"text": f"{WORDS[i % 10]} {i}", "label": values[i % 7]} for i in range(140)]
    data = classified(tmp_path, words, rows)
    assert data.manifest.labels == ("2", "9", "10")
    assert any(note.startswith("60 rows left out: no label") for note in data.notes)


def test_case_07_a_third_column_of_the_question(tmp_path):
    rows = [{"instruction": "Add", "input": f"{i} {i + 1}" if i % 2 else "", "output": 2 * i + 1} for i in range(60)]
    data, tokenizer = talked(tmp_path, rows, template=r"{instruction}\n{input}", response="output")
    texts = [tokenizer.decode(data.train[number].tokens) for number in range(len(data.train))]
    full = [re.fullmatch(r"User: Add\n(\d+) (\d+)\nAssistant: (\d+)<.endoftext.>\n?", text) for text in texts]
    assert sum(match is not None and int(match[1]) + int(match[2]) == int(match[3]) for match in full) > 15
    assert sum(re.fullmatch(r"User: Add\nAssistant: \d+<.endoftext.>\n?", text) is not None for text in texts) > 15
    assert data.manifest.columns == ("output", "instruction", "input")  # there is no `tools`
    assert data.manifest.unused_columns == ()
    plain, _ = talked(tmp_path, rows, prompt="instruction", response="output")
    assert plain.manifest.unused_columns == ("input",)


def test_case_07_a_column_of_system_messages(tmp_path):
    rows = [{"s": "be kind" if i % 2 else None, "q": f"how are you {i}", "a": "fine"} for i in range(60)]
    data, tokenizer = talked(tmp_path, rows, prompt="q", response="a", system="s")
    texts = [tokenizer.decode(data.train[number].tokens) for number in range(len(data.train))]
    assert any(text.startswith("System: be kind\nUser:") for text in texts)
    assert any(text.startswith("User:") for text in texts)


def test_case_08_an_answer_is_kept_byte_for_byte(tmp_path):
    rows = [{"q": f"body of f{i}", "a": f"    return {i}\n\n"} for i in range(60)]
    data, tokenizer = talked(tmp_path, rows, prompt="q", response="a")
    row = data.train[0]
    learned = tokenizer.decode(row.tokens[row.labels >= 0])
    assert re.fullmatch(r"     return \d+\n\n<.endoftext.>\n", learned)


def test_case_18_rows_that_are_all_one_text(tmp_path, words):  # noqa: F811
    rows = [{"text": "good film", "label": ["fresh", "rotten"][i % 2]} for i in range(80)]
    with pytest.raises(UserError, match="none of 80 rows is left to train on"):
        classified(tmp_path, words, rows)


def test_case_34_labels_of_the_whole_file_and_rare_ones(tmp_path, words):  # noqa: F811
    rows = [{"text": f"{WORDS[i % 10]} {i}", "label": f"intent_{i % 60}"} for i in range(100)]
    data = classified(tmp_path, words, rows, validation="20%")
    assert len(data.manifest.labels) == 60 and len(data.validation) == 20
    assert set(labels_of(data.train, data)) == set(data.manifest.labels)
    one_each = [{"text": f"{WORDS[i % 10]} {i}", "label": f"intent_{i}"} for i in range(40)]
    with pytest.raises(UserError, match="leaves 40 rows to train on and 0 to validate on"):
        classified(tmp_path, words, one_each)


def test_a_group_that_is_empty_is_no_group(tmp_path, words):  # noqa: F811
    rows = [
        {"text": f"{WORDS[i % 10]} {i}", "label": ["a", "b"][i % 2], "film": [None, "", f"{i // 4}"][i % 3]}
        for i in range(150)
    ]
    data = classified(tmp_path, words, rows, group="film")
    assert 10 < len(data.validation) < 60  # two thirds of the rows are no single group


def test_validation_of_other_labels_is_reported(tmp_path, words):  # noqa: F811
    rows = [{"text": f"{WORDS[i % 10]} {i}", "label": ["a", "b"][i % 2]} for i in range(150)]
    other = tmp_path / "held.jsonl"
    other.write_text("\n".join(json.dumps({"text": f"plot {i}", "label": "a"}) for i in range(40)))
    data = classified(tmp_path, words, rows, validation_files=str(other))
    assert any("every validation row has the label 'a'" in note for note in data.notes)


def test_a_label_that_only_validation_has_is_refused_with_words_that_work(tmp_path, words):  # noqa: F811
    rows = [{"text": f"{WORDS[i % 10]} {i}", "label": ["a", "b"][i % 2]} for i in range(150)]
    other = tmp_path / "held.jsonl"
    other.write_text("\n".join(json.dumps({"text": f"plot {i}", "label": ["a", "not sure"][i % 2]}) for i in range(40)))
    with pytest.raises(UserError, match=r"'data\.skip\.label=not sure'"):
        classified(tmp_path, words, rows, validation_files=str(other))
    data = classified(tmp_path, words, rows, validation_files=str(other), skip={"label": "not sure"})
    assert len(data.validation) == 20


def test_a_word_of_a_special_token_is_text(tmp_path):
    rows = [{"text": f"document {i} <|endoftext|> continues " * 3} for i in range(60)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = prepare(Data(files=str(path), vocab_size=300, sequence_length=32, validation="20%"), {}, lambda *_: None)
    end = load_tokenizer(data.tokenizer_path).eos_token_id
    tokens = [int(token) for number in range(len(data.train)) for token in data.train[number][1:]]
    assert tokens.count(end) <= data.manifest.train.documents
