"""Tokenizers from folders."""

import json
import shutil

import pytest
from corpora import TEXTS, json_lines, kept_entries, made

from hfbsz.data.tokenizer import load_tokenizer, train_tokenizer
from hfbsz.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """vocab.json and merges.txt of a tokenizer trained here, and that tokenizer."""
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    trained = train_tokenizer(TEXTS, 300)
    path = tmp_path / "tokenizer"
    path.mkdir()
    trained.backend_tokenizer.model.save(str(path))
    return path, trained


def test_vocab_and_merges_alone_give_the_whole_tokenizer(folder, tmp_path):
    path, trained = folder
    assert sorted(file.name for file in path.iterdir()) == ["merges.txt", "vocab.json"]
    loaded = load_tokenizer(path)
    text = "the quick brown fox. Ünïcode <|endoftext|> x"
    assert loaded(text)["input_ids"] == trained(text)["input_ids"] and len(loaded) == len(trained)
    assert loaded.eos_token_id == trained.eos_token_id == loaded("<|endoftext|>")["input_ids"][0]
    data = made(files=str(json_lines(tmp_path / "x.jsonl")), tokenizer=str(path))
    assert data.counts["vocab_size"] == len(trained) and len(data.train) > 10
    loaded.save_pretrained(tmp_path / "saved")  # as a run does at its end
    assert load_tokenizer(tmp_path / "saved")(text)["input_ids"] == trained(text)["input_ids"]


def test_a_changed_merge_makes_other_rows(folder, tmp_path):
    path, _ = folder
    fields = {"files": str(json_lines(tmp_path / "x.jsonl")), "tokenizer": str(path)}
    made(**fields)
    merges = path / "merges.txt"
    merges.write_text("\n".join(merges.read_text().splitlines()[:-5]) + "\n")
    made(**fields)
    assert len(kept_entries()) == 2


def test_folders_that_hold_no_tokenizer(folder, tmp_path):
    path, _ = folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no tokenizer.json, nor vocab.json and merges.txt"):
        load_tokenizer(tmp_path / "empty")
    shutil.copy(path / "vocab.json", tmp_path / "empty")
    with pytest.raises(UserError, match=r"lacks merges.txt"):
        load_tokenizer(tmp_path / "empty")
    known = json.loads((path / "vocab.json").read_text())
    del known["<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(path)
    (path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(path)
