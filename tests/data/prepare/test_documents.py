"""The split of a corpus into training and held-out text: the same on every machine, no text in both parts, and two
parts of the same kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfbsz.data.prepare.corpus import unigram_nats
from hfbsz.data.prepare.documents import SECTION, Document, is_held_out, sections, split_sections
from hfbsz.data.rows import prepare
from hfbsz.errors import UserError
from hfbsz.recipe.load import load

LINES = st.lists(st.sampled_from(["", " ", "x" * 30, "def f(a, b):", "    return a + b", "y" * 3000]), max_size=200)


def silent(*_: object) -> None: ...


@given(LINES.map("\n".join))
def test_sections_are_the_text_and_of_bounded_length(text):
    parts = list(sections(text))
    assert "".join(parts) == text
    assert all(SECTION <= len(part) <= 2 * SECTION for part in parts[:-1]) and len(parts[-1]) <= 2 * SECTION


@given(LINES.map("\n".join), st.sampled_from([0.05, 0.3, 0.9]))
def test_a_split_into_sections_loses_nothing_but_white_space(text, share):
    parts = list(split_sections([Document("a", text)], share))
    rest = text
    for document, held in parts:
        index = rest.index(document.text)
        assert not rest[:index].strip()
        rest = rest[index + len(document.text) :]
        assert held == (document.name != "a") and document.text.strip()
    assert not rest.strip()


@pytest.mark.parametrize("unit", ["document", "section"])
def test_equal_texts_are_in_one_part(tmp_path, unit):
    """60 texts, each in three documents: none is in both parts, though their names differ."""
    texts = [f"text {number} " + f"of words that number {number} repeats, " * 30 for number in range(60)]
    for number in range(180):
        (tmp_path / f"{number}.txt").write_text(texts[number % 60] + "\n" * (number // 60))
    words = ["recipe=debug", f"data.files={tmp_path}/*.txt", "data.vocab_size=300", "data.pack=false"]
    recipe = load([*words, f"data.validation_unit={unit}", "data.validation=30%", "data.sequence_length=4096"]).recipe
    prepared = prepare(recipe.data, {}, silent)
    train, held_out = (
        {bytes(rows[i][:12]) for i in range(len(rows))} for rows in (prepared.train, prepared.validation)
    )
    assert len(train) >= 20 and len(held_out) >= 5 and not train & held_out


def test_the_parts_of_the_default_corpus_are_alike(cache, monkeypatch):
    """Unigram cross-entropies within 0.03 nats/token; with complete files they may differ by 0.2."""
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    prepared = prepare(load(["recipe=debug"]).recipe.data, {}, silent)
    counts = [np.zeros(prepared.manifest.vocab_size, np.int64) for _ in range(2)]
    for rows, count in zip((prepared.train, prepared.validation), counts, strict=True):
        for number in range(len(rows)):
            count += np.bincount(rows[number], minlength=len(count))
    train, held_out = (unigram_nats(part, counts[0]) for part in counts)
    assert abs(held_out - train) < 0.03 and 0.03 < counts[1].sum() / sum(map(np.sum, counts)) < 0.07
    assert not any("differ" in note for note in prepared.notes)


def test_unlike_parts_are_noted(tmp_path):
    """Few documents: the end of the text is held out, which here is of another kind than the rest."""
    text = "one two three four five six seven eight nine ten\n" * 9000 + "0 1 2 3 4 5 6 7 8 9 " * 9000
    (tmp_path / "a.txt").write_text(text)
    words = ["recipe=debug", f"data.files={tmp_path}/a.txt", "data.vocab_size=300", "data.validation=20%"]
    for extra, noted in (([], True), (["data.validation_unit=section"], False)):
        notes = prepare(load([*words, *extra]).recipe.data, {}, silent).notes
        assert any("losses cannot be compared" in note for note in notes) == noted


def test_the_hash_is_the_same_on_every_machine():
    assert "".join(text for text in "abcdefgh" if is_held_out(text, 0.5)) == "bcdef"


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=debug", "data.validation_unit=section", "data.validation_files=x.txt", "data.files=y.txt"],
        ["recipe=small_batch", "data.validation_unit=section"],
        ["recipe=debug", "data.validation_unit=line"],
    ],
)
def test_a_unit_that_does_not_apply_is_refused(words):
    with pytest.raises(UserError, match="validation_unit"):
        load(words)
