"""Tokenizers from folders."""

import json
import shutil

import pytest
from corpora import TEXTS, json_lines, kept_entries, made

from hfbsz.data.rows import prepare
from hfbsz.data.tokenizer.tokenizer import ends_of, load_tokenizer, save_tokenizer, tokenizer_files, train_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data
from hfbsz.recipe.tasks import RowKind


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with vocab.json and merges.txt of a trained tokenizer, and that tokenizer."""
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    trained = train_tokenizer(TEXTS, 300)
    path = tmp_path / "tokenizer"
    path.mkdir()
    trained.backend_tokenizer.model.save(str(path))
    return path, trained


def test_vocab_and_merges_suffice_for_the_tokenizer(folder, tmp_path):
    path, trained = folder
    assert sorted(file.name for file in path.iterdir()) == ["merges.txt", "vocab.json"]
    loaded = load_tokenizer(path)
    text = "the quick brown fox. Ünïcode <|endoftext|> x"
    assert loaded(text)["input_ids"] == trained(text)["input_ids"] and len(loaded) == len(trained)
    assert loaded.eos_token_id == trained.eos_token_id == loaded("<|endoftext|>")["input_ids"][0]
    data = made(files=str(json_lines(tmp_path / "x.jsonl")), tokenizer=str(path))
    assert data.manifest.vocab_size == len(trained) and len(data.train) > 10
    loaded.save_pretrained(tmp_path / "saved")  # as at the end of a run
    assert load_tokenizer(tmp_path / "saved")(text)["input_ids"] == trained(text)["input_ids"]


def test_a_changed_merge_gives_another_cache_entry(folder, tmp_path):
    path, _ = folder
    fields = {"files": str(json_lines(tmp_path / "x.jsonl")), "tokenizer": str(path)}
    made(**fields)
    merges = path / "merges.txt"
    merges.write_text("\n".join(merges.read_text().splitlines()[:-5]) + "\n")
    made(**fields)
    assert len(kept_entries()) == 2


def test_folders_without_a_tokenizer_are_refused(folder, tmp_path):
    path, _ = folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no tokenizer.json, nor vocab.json and merges.txt"):
        load_tokenizer(tmp_path / "empty")
    shutil.copy(path / "vocab.json", tmp_path / "empty")
    with pytest.raises(UserError, match=r"lacks merges.txt"):
        load_tokenizer(tmp_path / "empty")
    vocabulary = json.loads((path / "vocab.json").read_text())
    del vocabulary["<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(path)
    (path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_case_16_damaged_files_are_named(folder, tmp_path, file):
    folder[1].save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / file
    content = path.read_text()
    for damaged, reason in (
        (POINTER, f" is a git-lfs pointer, not the file itself: git -C {path.parent} lfs pull"),
        (content[: len(content) // 2], " is cut or damaged ("),
        ("", " is empty: fetch it again"),
    ):
        path.write_text(damaged)
        with pytest.raises(UserError) as caught:
            load_tokenizer(path.parent)
        (line,) = caught.value.lines
        assert line.startswith(f"data.tokenizer: '{path.parent}': {file}{reason}"), line


def test_case_16_a_missing_vocabulary_is_refused(folder, tmp_path):
    folder[1].save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").unlink()
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "saved")
    (line,) = caught.value.lines
    assert "data.tokenizer: " in line and "github" not in line


def test_a_git_lfs_pointer_instead_of_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text(POINTER)  # transformers would build a tokenizer of its three lines
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match=r"vocab\.txt is a git-lfs pointer"):
        load_tokenizer(tmp_path, needs_end=False)


def test_the_chat_template_is_among_the_tokenizer_files(folder, tmp_path):
    folder[1].chat_template = "{{ messages }}"
    folder[1].save_pretrained(tmp_path / "saved")
    assert "chat_template.jinja" in {path.name for path in tokenizer_files(str(tmp_path / "saved"))}


def split_by(regex):
    """The content of a tokenizer.json whose pre-tokenizer splits by a regular expression."""
    written = json.loads(train_tokenizer(TEXTS, 300).backend_tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    written["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, written["pre_tokenizer"]]}
    return json.dumps(written)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", split_by("(((("), "unmatched parenthesis"),
        ("tokenizer.json", "[" * 200_000, "tokenizer.json is cut or damaged (maximum recursion depth"),
        ("tokenizer.json", '{"a":' * 200_000, "tokenizer.json is cut or damaged (maximum recursion depth"),
        ("tokenizer.json", "[]", "cannot be loaded"),
        ("tokenizer.json", "3", "cannot be loaded"),
        ("tokenizer_config.json", "[" * 200_000, "tokenizer_config.json is cut or damaged"),
        ("tokenizer_config.json", "[]", "cannot be loaded"),
        ("tokenizer_config.json", '{"eos_token": 5}', "cannot be loaded"),
        ("config.json", "[]", "cannot be loaded"),
        ("config.json", "{" * 10**5, "config.json is cut or damaged"),
    ],
)
def test_case_s09_an_unusable_tokenizer_gives_one_line(tmp_path, name, text, message):
    save_tokenizer(train_tokenizer(TEXTS, 300), tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    (line,) = caught.value.lines
    assert message in line and line.startswith("data.tokenizer: ")


def test_case_s09_a_text_that_cannot_be_encoded_is_reported_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    save_tokenizer(train_tokenizer(TEXTS, 300), tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(split_by("(a+)+$"))
    rows = [{"text": f"some words {number}", "label": "xy"[number % 2]} for number in range(40)]
    rows[23]["text"] = "a" * 40 + "b "
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"files": str(tmp_path / "x.jsonl"), "tokenizer": str(tmp_path / "tokenizer")}
    for kind, more in ((RowKind.TEXT, {}), (RowKind.LABEL, {"label": "label", "pack": False})):
        with pytest.raises(UserError) as caught:
            prepare(Data(**fields, **more), {}, lambda *_: None, kind=kind)
        (line,) = caught.value.lines
        assert "x.jsonl:24: data.tokenizer: it cannot tokenize this text: " in line and "retry-limit-in-match" in line


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [1, null, "x"]}'])
def test_an_invalid_generation_config_gives_no_end_token(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    assert ends_of(str(tmp_path)) <= {1}
