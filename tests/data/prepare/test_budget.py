"""How much data is prepared: as much as the budget needs, if there is much more."""

import json

import pytest

from hfbsz.data.prepare import budget as module
from hfbsz.data.prepare.budget import Needed, enough_of, needed_by
from hfbsz.data.rows import prepare
from hfbsz.errors import UserError
from hfbsz.recipe.fields import EvalSet
from hfbsz.recipe.load import load

LARGE = 10**9


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_limits(monkeypatch):
    """A corpus of 40 kB is large."""
    monkeypatch.setattr(module, "SMALL_CORPUS", 40_000)
    monkeypatch.setattr("hfbsz.data.prepare.corpus.SMALL_CORPUS", 40_000)
    monkeypatch.setattr(module, "_RESERVE", 8_000)


def prepared(*words, sets=None):
    recipe = load(["recipe=tests/tiny.yaml", "data.vocab_size=300", "data.sequence_length=16", *words]).recipe
    return prepare(recipe.data, sets or {}, lambda *_: None, needed_by(recipe))


def write(folder, documents, length=2000):
    folder.mkdir()
    for number in range(documents):
        (folder / f"{number:03}.txt").write_text(f"{number} " + "the quick brown fox jumps. " * (length // 27))
    return f"data.files={folder}/*.txt"


def test_small_corpora_and_those_that_the_budget_needs_are_prepared_completely():
    assert enough_of(Needed(64), 32_000_000, 128, None) is None
    assert enough_of(Needed(2**20), LARGE, 128, None) is None  # an eighth of it
    assert enough_of(None, LARGE, 128, None) is None  # epochs


def test_runs_of_similar_budgets_have_the_same_rows_of_a_large_corpus():
    few, more = (enough_of(Needed(count), LARGE, 128, None) for count in (64, 30_000))
    assert few == more == Needed(2**15)  # 16 MB of text
    assert enough_of(Needed(40_000, 40_000 * 128), LARGE, 128, None) == Needed(2**16, 2**16 * 128)


def test_a_stream_that_is_asked_for_is_read_as_far_as_it_is_needed():
    assert enough_of(Needed(70, 3), 100, 128, True) == Needed(70, 3)


def test_many_files_are_read_in_an_order_of_their_own_and_no_further(tmp_path, small_limits):
    files = write(tmp_path / "corpus", 60)
    data = prepared(files, "duration=64seq", "data.validation=10%")
    assert 100 < len(data.train) < 1000
    (note,) = [note for note in data.notes if "were prepared" in note]
    assert "data.stream=false prepares all" in note and f"({len(data.train):,} training rows)" in note
    assert len(data.validation)
    complete = prepared(files, "duration=64seq", "data.validation=10%", "data.stream=false")
    assert len(complete.train) > 3 * len(data.train) and not any("were prepared" in note for note in complete.notes)
    read = {int(text.split()[0]) for text in decoded(data) if text.split() and text.split()[0].isdigit()}
    assert max(read) > 30  # not the first ones by name


def decoded(data):
    from hfbsz.data.tokenizer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data.tokenizer_path)
    tokens = [token for index in range(len(data.train)) for token in data.train[index][:-1].tolist()]
    return tokenizer.decode(tokens).split("<|endoftext|>")


def test_one_large_document_keeps_a_tail_for_validation(tmp_path, small_limits):
    (tmp_path / "big.txt").write_text("".join(f"line {number} of the text\n" for number in range(400_000)))
    data = prepared(f"data.files={tmp_path}/big.txt", "duration=64seq", "data.validation=10%")
    assert data.manifest.train.bytes < 300_000 and len(data.train) >= 64 + 8
    assert 0.05 < data.manifest.validation.bytes / data.manifest.train.bytes < 0.2
    assert any("1 document only" in note for note in data.notes)


@pytest.mark.parametrize(
    "words", [("duration=2epochs",), ("duration=5000seq",), ("duration=64seq", "data.stream=false")]
)
def test_all_is_prepared_if_the_budget_needs_it_or_stream_is_false(tmp_path, small_limits, words):
    data = prepared(write(tmp_path / "corpus", 60), *words)
    assert data.manifest.train.documents + data.manifest.validation.documents == 60


def test_a_large_evaluation_set_is_read_no_further_than_training(tmp_path, small_limits):
    files = write(tmp_path / "corpus", 60)
    write(tmp_path / "other", 60), write(tmp_path / "few", 4)
    sets = {name: EvalSet(files=f"{tmp_path}/{name}/*.txt") for name in ("other", "few")}
    data = prepared(files, "duration=64seq", sets=sets)
    assert data.manifest.sets["other"].documents < 40 and data.manifest.sets["few"].documents == 4


def test_ragged_rows_budgeted_in_tokens(tmp_path, small_limits):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number} " + "ab " * (number % 9)}) + "\n" for number in range(9000)))
    data = prepared(f"data.files={path}", "data.pack=false", "duration=1000tok")
    assert len(data.train) < 3000
    assert data.manifest.train.tokens_per_row * len(data.train) >= 1000


def test_streams_need_a_budget_that_is_known_beforehand():
    with pytest.raises(UserError, match="of a stream is not known before it is read"):
        needed_by(load(["recipe=tests/tiny.yaml", "data.stream=true", "duration=1epochs"]).recipe)
    assert needed_by(load(["recipe=tests/tiny.yaml", "duration=1epochs"]).recipe) is None
